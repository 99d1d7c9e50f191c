#!/usr/bin/env bash
# One experiment with several seeds: a job array where there is Slurm, else one after the other.
#
#   bash launch/seeds.sh experiments/gta2city/adaptsegnet_multi.yaml 0 1 2 [section.key=value ...]
#
#   GPUS=4                                             processes, one per GPU
#   SBATCH_GPUS_PER_NODE=4 SBATCH_PARTITION=long ...   settings of sbatch
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120 --requeue
#SBATCH --output=slurm-%x-%A_%a.log --open-mode=append

for here in "$(dirname "$0")" launch "${SLURM_SUBMIT_DIR:-.}/launch"; do # Slurm runs a copy of this script
  [ ! -e "$here/lib.sh" ] || break
done
[ -e "$here/lib.sh" ] || { echo "error: no launch/lib.sh in $PWD; submit from the project folder" >&2; exit 2; }
source "$here/lib.sh"

[ $# -gt 0 ] || { echo "error: name an experiment file and seeds, such as $0 experiments/mini/oracle.yaml 0 1 2" >&2; exit 2; }
file=$1
shift
seeds=() settings=()
for word in "$@"; do
  if [[ $word =~ ^[0-9]+$ ]]; then seeds+=("$word"); else settings+=("$word"); fi
done
[ "${#seeds[@]}" -gt 0 ] || { echo "error: no seeds; for example: bash launch/seeds.sh $file 0 1 2" >&2; exit 2; }
# Stages of a chain: each seed would start from the same earlier stage, and the seeds' spread would be too small.
if [ -r "$file" ] && sed 's/#.*//' "$file" | grep -q -- '-seed0'; then
  echo "error: $file starts from another run of seed 0; launch/gta2city_cycada.sh seed=1 trains a whole chain, or give" \
    "python -m da train that seed's init=... and data.source.root=..." >&2
  exit 2
fi

if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  train_file "$file" "seed=$SLURM_ARRAY_TASK_ID" ${settings[@]+"${settings[@]}"}
elif [ -z "${SLURM_JOB_ID:-}" ] && command -v sbatch >/dev/null; then
  "$PYTHON" -m da train "$file" "seed=${seeds[0]}" ${settings[@]+"${settings[@]}"} --runs "$RUNS" --check >/dev/null
  array=$(IFS=,; echo "${seeds[*]}")
  sbatch "--job-name=$(basename "$file" .yaml)-seeds" "--array=$array" launch/seeds.sh "$file" "$@"
else
  for seed in "${seeds[@]}"; do train_file "$file" "seed=$seed" ${settings[@]+"${settings[@]}"}; done
fi
