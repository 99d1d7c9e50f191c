#!/usr/bin/env bash
# FDA, GTA5 -> Cityscapes, both stages: a model for each of three windows, pseudo labels of their mean, a model of the
# second stage for each window, and the table of all six with the mean of the last three. Resumable, finished is skipped.
#
#   bash launch/gta2city_fda.sh [seed=1] [section.key=value ...]
#   sbatch --gpus-per-node=4 launch/gta2city_fda.sh data.batch_size=4 [...]     from the project folder
#
#   GTA5_ROOT, CITYSCAPES_ROOT   the data; without them the miniature runs
#   GPUS=4                       processes, one per GPU; give data.batch_size, a multiple of their number
#   BETAS="0.01 0.05 0.09"       half widths of the windows, over the shorter side
#   RUNS=runs/other              folder of all runs; a chain with other settings needs another one
#SBATCH --job-name=fda_gta2city
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120 --requeue
#SBATCH --output=slurm-%x-%j.log --open-mode=append

for here in "$(dirname "$0")" launch "${SLURM_SUBMIT_DIR:-.}/launch"; do # Slurm runs a copy of this script
  [ ! -e "$here/lib.sh" ] || break
done
[ -e "$here/lib.sh" ] || { echo "error: no launch/lib.sh in $PWD; submit from the project folder" >&2; exit 2; }
source "$here/lib.sh"

refuse_settings "name experiment method.beta method.lambda_pseudo" "other windows are BETAS=..., " "$@"
seed=$(read_seed "$@")
table=$(choose_table gta2city "GTA5_ROOT CITYSCAPES_ROOT")
runs=$RUNS/$table labels=$RUNS/$table/fda_pseudo_labels-seed$seed
BETAS=${BETAS:-0.01 0.05 0.09}
limit=()
for word in "$@"; do
  case $word in run.time_limit=*) limit=("$word") ;; esac
done

first=() second=()
for beta in $BETAS; do
  echo "== fda, beta $beta"
  train_file "experiments/$table/fda.yaml" "$@" "name=fda_$beta" "method.beta=$beta"
  first+=("$runs/fda_$beta-seed$seed")
done
echo "== pseudo labels"
run_alone label "${first[@]}" "$labels" ${limit[@]+"${limit[@]}"}
for beta in $BETAS; do
  echo "== fda_self, beta $beta"
  train_file "experiments/$table/fda_self.yaml" "$@" "name=fda_self_$beta" "method.beta=$beta" "data.target.root=$labels"
  second+=("$runs/fda_self_$beta-seed$seed")
done
run_alone evaluate "${first[@]}" --ensemble probabilities
run_alone evaluate "${second[@]}" --ensemble probabilities
write_page "$table"
run_next "bash launch/gta2city_source_only.sh" "the baseline; the page then shows both"
