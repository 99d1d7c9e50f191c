#!/usr/bin/env bash
# How many labels is an adaptation worth? Fine-tuning with few labelled images of the target from every start that there
# is: random weights, each task without labels, ImageNet, both, and what launch/ladder.sh trained; then the page of all.
# Killed and called again it goes on; finished runs are skipped.
#
#   PHOTOGRAPHS_ROOT=FOLDER bash launch/few_labels.sh [section.key=value ...]        settings of the fine-tuning
#
#   STARTS="imagenet source_only"   some of them; the tasks begin at random weights as scratch_TASK, at ImageNet's as TASK;
#                                   source_only, adaptsegnet_multi and other names are runs of `launch/ladder.sh day2dusk`
#   LABELS="5 20 62"                labelled images
#   DRAWS="0 1 2"                   which ones: a seed each, also of the fine-tuning
#   PRETRAIN="run.steps=300"        settings of the tasks
#   JOBS=2                          runs at a time, one thread each
#   RUNS=runs                       folder of all runs; the page is written to RUNS/report/few_labels

for here in "$(dirname "$0")" launch; do
  [ ! -e "$here/lib.sh" ] || break
done
source "$here/lib.sh"

if [ ! -d "${PHOTOGRAPHS_ROOT:-}" ]; then
  echo "error: PHOTOGRAPHS_ROOT=${PHOTOGRAPHS_ROOT:-}: no such folder; experiments/base/day2dusk.yaml says what it holds" >&2
  exit 2
fi
STARTS=${STARTS:-random scratch_rotation scratch_jigsaw scratch_inpainting imagenet rotation jigsaw inpainting source_only adaptsegnet_multi}
LABELS=${LABELS:-5 20 62}
DRAWS=${DRAWS:-0 1 2}
JOBS=${JOBS:-$(nproc)}
words=("$@") failed=0
export OMP_NUM_THREADS=1 RUNS PYTHON PRETRAIN=${PRETRAIN:-}

# shellcheck disable=SC2317  # the shells that xargs starts call it
pretrain() { # TASK or scratch_TASK
  local task=${1#scratch_} rates=()
  if [ "$1" != "$task" ]; then
    rates=(model.weights=none)
    case $task in
      rotation) rates+=(method.lr=0.05 method.head_lr_mult=1.0) ;;
      jigsaw) rates+=(method.lr=0.02) ;;
    esac
  fi
  # shellcheck disable=SC2086  # settings are words
  train_logged "few_labels/$1-seed0" "experiments/day2dusk/$task.yaml" experiment=few_labels "name=$1" \
    ${rates[@]+"${rates[@]}"} $PRETRAIN
}

# shellcheck disable=SC2317
finetune() { # START LABELS DRAW [settings ...]
  local start=()
  case $1 in
    random) start=(init=null model.weights=none method.from_scratch=true) ;;
    imagenet) start=(init=null) ;;
    *rotation | *jigsaw | *inpainting) start=("init=$RUNS/few_labels/$1-seed0") ;;
    *) start=("init=$RUNS/day2dusk/$1-seed0") ;;
  esac
  train_logged "few_labels/$1_$2_labels-seed$3" experiments/day2dusk/finetune.yaml experiment=few_labels \
    "name=$1_$2_labels" method.head_steps=0 "${start[@]}" "seed=$3" "data.source.labels=$2" "data.source.labels_draw=$3" "${@:4}"
}
export -f train_logged pretrain finetune

# shellcheck disable=SC2016  # for the shells that xargs starts
for start in $STARTS; do
  case $start in *rotation | *jigsaw | *inpainting) echo "$start" ;; esac
done | xargs -r -P "$JOBS" -L 1 bash -c 'pretrain "$1"' bash || failed=1
# shellcheck disable=SC2016
for draw in $DRAWS; do
  for labels in $LABELS; do
    for start in $STARTS; do
      echo "$start $labels $draw"
    done
  done
done | xargs -r -P "$JOBS" -L 1 bash -c 'finetune "${@: -3:1}" "${@: -2:1}" "${@: -1}" "${@:1:$#-3}"' bash "${words[@]}" || failed=1
run_alone report "$RUNS/few_labels" -o "$RUNS/report/few_labels" || failed=1
exit "$failed"
