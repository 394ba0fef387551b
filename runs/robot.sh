#!/usr/bin/env bash
# The closed loop of a robot, without one: a script shows a task on a fake SO-101, the bundled model is fine-tuned on the
# recording, and the arm is driven by it, through LeRobot's own driver, and through a policy server with a slow line.
#
#   runs/robot.sh [folder, default runs/robot]                    about a quarter of an hour of one core
#
# Needs `kairos sims install lerobot-robots`. TASK, TRIALS, STEPS (of the model) and TOKENIZER (steps) can be given as
# variables. Trainings go on where they were stopped: start the script again. docs/robots.md says what happens in it.
set -euo pipefail
out=${1:-runs/robot} task=${TASK:-reach} trials=${TRIALS:-50} steps=${STEPS:-220} tokenizer=${TOKENIZER:-100}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# 200 demonstrations of 3 s, from which the expert is led astray now and then.
[ -e "$out/shown" ] || kairos robot record fake:so101 --leader expert --task "$task" --out "$out/shown" --episodes 200 \
  --seconds 3 --rate-hz 10 --disturb 0.06 --cameras front --size 64,64 --log "$out/record-safety.jsonl"

# Before: the bundled model with this robot's fields, and one step. After: fine-tuned.
flags="--data.path $out/shown --init kairos-tiny --validation 8 --starts 4 --tokenizer-batch 32 --tokenizer.warmup 10
  --tokenizer.ema 0.95 --model.warmup 30 --model.ema 0.97 --model.lr 1e-3 --batch 8 --loss.frames 12 --loss.policy 4
  --loss.tasks 1 --video-every 8 --own-from 1 --sample-every 100000"
kairos train $flags --data.limit 20 --tokenizer.steps 1 --model.steps 1 --out "$out/before"
kairos train $flags --tokenizer.steps "$tokenizer" --model.steps "$steps" --out "$out/tuned"

for model in before tuned; do
  echo "== $model, $trials trials on the arm"
  kairos robot run fake:so101 --task "$task" --model "$out/$model/model" --episodes "$trials" --decisions 40 \
    --seed 1000 --log "$out/run-safety.jsonl"
done
python benchmarks/arm_latency.py --model "$out/tuned/model" --task "$task" --episodes "$trials"
