#!/usr/bin/env bash
# A small model of LIBERO's object and spatial tasks from nothing but the scripted expert. Two cores, about two hours,
# and 2.1 GB for LIBERO's simulator in an environment of its own.
#
#   runs/libero.sh [folder, default runs/libero]
#
# Every command goes on where it was stopped: start the script again. docs/benchmarks.md says what happens in it; the
# bundled kairos-libero was made of these steps with detours, which its card tells.
set -euo pipefail
out=${1:-runs/libero}
suites=libero_object,libero_spatial

# LIBERO's simulator, task files, initial states and original assets, and LIBERO-plus's tasks for the last table.
kairos sims install libero-plus

# Demonstrations from the initial states 0-39 of each task; later states stay unseen for the evaluation.
kairos record-libero --out "$out/demonstrations" --per-task 40 --initial-states 0-39 --workers 2

# First model. `tiny-words` reads instructions word by word: two equal bowls differ by the sentence only.
kairos train --data.path "$out/demonstrations" --out "$out/first" --preset tiny-words --pixels.coloured 10 \
  --tokenizer.steps 1600 --model.steps 2400 --loss.frames 12 --video-every 4

# Dataset aggregation: the model acts, the expert says at every frame what it would have done.
kairos record-libero --out "$out/own" --model "$out/first/model" --behaviours policy=0.7,disturbed_policy=0.3 \
  --keep all --noise 0.1 --per-task 5 --initial-states 0-39 --decisions 50

# Second model, from both recordings. Of twelve steps one learns to imagine, the others act only.
kairos train --data.path "$out/demonstrations" --data.more "$out/own" --data.weights 0.8,0.2 --init "$out/first/model" \
  --out "$out/second" --model.steps 2400 --loss.frames 12 --loss.policy 3 --video-every 12

# Success on initial states that no recording holds, with intervals, and the perturbed tasks by dimension.
kairos eval libero --policy policy --model "$out/second/model" --suites "$suites" \
  --trials 10 --first-state 40 --rendering fast --workers 2 --out "$out/base"
kairos eval libero-plus --policy policy --model "$out/second/model" --suites "$suites" --first-state 40 \
  --prompt base --sample 140 --rendering fast --workers 2 --out "$out/plus"
kairos eval table "$out/plus"
