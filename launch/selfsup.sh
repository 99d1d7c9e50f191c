#!/usr/bin/env bash
# Pretraining without labels, then few labels: an encoder learns from images of both domains by each task, a segmenter
# starts from it with a few labelled images of the target, one starts from model.weights alone, and the page compares
# them. Resumable, finished is skipped.
#
#   bash launch/selfsup.sh [seed=1] [section.key=value ...]                     settings of all runs
#   FINETUNE=data.batch_size=4 sbatch --gpus-per-node=4 launch/selfsup.sh       from the project folder
#
#   GTA5_ROOT, CITYSCAPES_ROOT   the data; without them the miniature runs
#   PAIR=day2dusk                another folder of experiments that has the tasks and finetune; its data root is set
#   TASKS="rotation jigsaw inpainting"
#   LABELS=20                    labelled images; which ones: data.source.labels_draw in FINETUNE
#   PRETRAIN="run.steps=2000"    further settings of the first stage, FINETUNE="..." of the second
#   GPUS=4                       processes, one per GPU
#   RUNS=runs/other              folder of all runs; a chain with other settings needs another one
#SBATCH --job-name=selfsup
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120 --requeue
#SBATCH --output=slurm-%x-%j.log --open-mode=append

for here in "$(dirname "$0")" launch "${SLURM_SUBMIT_DIR:-.}/launch"; do # Slurm runs a copy of this script
  [ ! -e "$here/lib.sh" ] || break
done
[ -e "$here/lib.sh" ] || { echo "error: no launch/lib.sh in $PWD; submit from the project folder" >&2; exit 2; }
source "$here/lib.sh"

own="name experiment init method.from_scratch"
refuse_settings "$own" "" "$@"
# shellcheck disable=SC2086  # settings are words
refuse_settings "seed $own" "a seed is for all runs; " ${PRETRAIN:-} ${FINETUNE:-}
seed=$(read_seed "$@")
TASKS=${TASKS:-rotation jigsaw inpainting}
LABELS=${LABELS:-20}
table=${PAIR:-$(choose_table gta2city "GTA5_ROOT CITYSCAPES_ROOT")}
for task in $TASKS; do
  [ -e "experiments/$table/$task.yaml" ] || { echo "error: $task: no such file in experiments/$table" >&2; exit 2; }
done

# shellcheck disable=SC2206  # settings are words
pretrain=(${PRETRAIN:-})
# shellcheck disable=SC2206
finetune=("data.source.labels=$LABELS" method.l2_sp=null method.head_steps=0 ${FINETUNE:-})
none=("${finetune[@]}" "name=no_task_${LABELS}_labels" init=null method.from_scratch=true)

check=()
for task in $TASKS; do
  check+=("experiments/$table/$task.yaml" "$@" ${pretrain[@]+"${pretrain[@]}"} ",")
done
check+=("experiments/$table/finetune.yaml" "$@" "${none[@]}")
run_alone train --check --processes "$((NODES * GPUS))" --runs "$RUNS" "${check[@]}"

for task in $TASKS; do
  echo "== $task"
  train_file "experiments/$table/$task.yaml" "$@" ${pretrain[@]+"${pretrain[@]}"}
done
echo "== $LABELS labels without a task"
train_file "experiments/$table/finetune.yaml" "$@" "${none[@]}"
for task in $TASKS; do
  echo "== $LABELS labels after $task"
  train_file "experiments/$table/finetune.yaml" "$@" "${finetune[@]}" "name=${task}_${LABELS}_labels" \
    "init=$RUNS/$table/$task-seed$seed"
done
write_page "$table"
run_next "bash launch/finetune.sh RUN DATA" "from any of these runs to your own labels"
