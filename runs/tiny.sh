#!/usr/bin/env bash
# The bundled model kairos-tiny from an empty machine: record, train, measure, show. Two cores, about half a day.
#
#   runs/tiny.sh [folder, default runs/tiny]
#
# Every command goes on where it was stopped: start the script again. docs/training.md says what happens in it.
set -euo pipefail
out=${1:-runs/tiny}

# glibc otherwise returns large buffers to the system at every step: worth about 8 % of training.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184

# 2,000 episodes of the table top by experts, disturbed experts, random play and stillness, a fifth of them plain, the
# others under varied light, colours and camera, two fifths from the wide square, half of those on a table of any colour.
# About 25 minutes.
kairos record --out "$out/record" --episodes 2000 --decisions 48 --workers 2 \
  --conditions plain=0.2,varied=0.4,wide=0.2,painted=0.2

# Tokenizer (what is coloured counts most: the cube is small), then world-action model. Every thousand steps leave a whole
# model in snapshots/, and report.html shows the curves. Beside other work, start this script with `nice -n 15`.
kairos train --data.path "$out/record" --out "$out/train" --pixels.coloured 10 \
  --tokenizer.steps 9000 --tokenizer.lr 3e-3 --tokenizer-batch 32 \
  --model.steps 16000 --model.warmup 300 --model.ema 0.999 --own-whole 0.3 --loss.object 2 \
  --sample-every 500 --snapshot-every 1000

# Success of the action-only policy in the simulator, how far imagined rollouts stay true, and how far they may be
# believed; all of it on the model's card.
kairos eval closed-loop --policy random,expert,policy --episodes 50 --workers 2 \
  --model "$out/train/model" --out "$out/closed-loop"
# What imagined pictures are measured with is trained on real ones of the plain scene: kairos eval probe.
kairos eval imagination --model "$out/train/model" --out "$out/imagination"
kairos eval calibration --model "$out/train/model" --out "$out/calibration"
kairos card "$out/train/model" --measured "$out/closed-loop,$out/imagination,$out/calibration" --name kairos-tiny

# The demo of it: imagine beside reality, plan, act.
kairos demo --model "$out/train/model" --out "$out/demo"
