#!/usr/bin/env bash
# AdaptSegNet, GTA5 -> Cityscapes, multi level.
#
#   bash launch/gta2city_adaptseg.sh [section.key=value ...]
#   sbatch --gpus-per-node=4 launch/gta2city_adaptseg.sh [section.key=value ...]     from the project folder; also -N 2
#
#   GTA5_ROOT, CITYSCAPES_ROOT      the data; without them the miniature runs
#   GPUS=4                          processes, one per GPU
#   EXPERIMENT=adaptsegnet_single   another file of experiments/gta2city
#SBATCH --job-name=adaptseg_gta2city
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120 --requeue
#SBATCH --output=slurm-%x-%j.log --open-mode=append

for here in "$(dirname "$0")" launch "${SLURM_SUBMIT_DIR:-.}/launch"; do # Slurm runs a copy of this script
  [ ! -e "$here/lib.sh" ] || break
done
[ -e "$here/lib.sh" ] || { echo "error: no launch/lib.sh in $PWD; submit from the project folder" >&2; exit 2; }
source "$here/lib.sh"

train_table gta2city "GTA5_ROOT CITYSCAPES_ROOT" adaptsegnet_multi "$@"
run_next "bash launch/gta2city_source_only.sh" "the baseline; the page then shows both" \
  "EXPERIMENT=oracle bash launch/gta2city_source_only.sh" "the upper bound: the target's own labels" \
  "bash launch/gta2city_cycada.sh" "another method"
