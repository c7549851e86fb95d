#!/bin/bash
# From an empty environment to a segmentation of one's own scan, each command timed:
#     bash first_run.sh CHECKOUT SOURCE CONFIG SCAN FOLDER [SETTINGS ...]
# CHECKOUT is a clone of mim3d, SOURCE the scans, CONFIG a name that ships for `pretrain` and
# `finetune`, SCAN the file to segment, FOLDER an empty folder; SETTINGS go to both trainings.
# Prints a Markdown table: minutes on the clock, and minutes of a core.
set -euo pipefail
checkout=$1 source=$2 config=$3 scan=$4 folder=$5
settings=("${@:6}")
cd "$folder"

TIMEFORMAT='%R %U %S'
timed() {
    local line
    line=$({ time "${@:2}" >> log.txt 2>&1; } 2>&1)
    awk -v shown="$1" '{printf "| `%s` | %.1f | %.1f |\n", shown, $1 / 60, ($2 + $3) / 60}' <<< "$line"
}

echo '| command | minutes on the clock | minutes of a core |'
echo '|---|---:|---:|'
timed 'python3 -m venv venv && source venv/bin/activate' python3 -m venv venv
source venv/bin/activate
timed 'pip install torch==2.13.0' pip install --quiet torch==2.13.0
timed 'pip install -e mim3d' pip install --quiet -e "$checkout"
timed 'mim3d inspect SOURCE' mim3d inspect "$source"
timed 'mim3d prepare SOURCE --out store' mim3d prepare "$source" --out store
timed "mim3d pretrain $config --data.store store --out pretrained" \
    mim3d pretrain "$config" --data.store store --out pretrained "${settings[@]}"
timed "mim3d finetune $config --data.store store --init pretrained --out tuned" \
    mim3d finetune "$config" --data.store store --init pretrained --out tuned "${settings[@]}"
timed 'mim3d predict tuned SCAN --out predictions' mim3d predict tuned "$scan" --out predictions
