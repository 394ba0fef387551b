#!/usr/bin/env bash
# The bundled model kairos-tiny from an empty machine: record, train, measure, show. Two cores, about 80 minutes.
#
#   runs/tiny.sh [folder, default runs/tiny]
#
# Every command goes on where it was stopped: start the script again. docs/training.md says what happens in it.
set -euo pipefail
out=${1:-runs/tiny}

# glibc otherwise returns large buffers to the system at every step: worth about 8 % of training.
export MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=17179869184

# 1,600 episodes of the table top by experts, disturbed experts, random play and stillness, a quarter of them plain, the
# others under varied light, colours and camera, a quarter from the wide square. About 20 minutes.
kairos record --out "$out/record" --episodes 1600 --decisions 48 --workers 2 \
  --conditions plain=0.25,varied=0.5,wide=0.25

# Tokenizer (what is coloured counts most: the cube is small), then world-action model: 2,000 and 2,400 steps. 70 minutes.
kairos train --data.path "$out/record" --out "$out/train" --pixels.coloured 10

# Success of the action-only policy in the simulator, and how far imagined rollouts stay true.
kairos eval closed-loop --policy random,expert,policy --episodes 50 --workers 2 \
  --model "$out/train/model" --out "$out/closed-loop"
kairos eval imagination --model "$out/train/model" --out "$out/imagination"

# The demo of it: imagine beside reality, plan, act.
kairos demo --model "$out/train/model" --out "$out/demo"
