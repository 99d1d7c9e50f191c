#!/usr/bin/env bash
# CyCADA, GTA5 -> Cityscapes: all stages in order, each resumable and skipped when finished, and the table at the end.
#
#   bash launch/gta2city_cycada.sh [seed=1] [section.key=value ...] [STAGE:section.key=value ...]
#
#   sbatch --gpus-per-node=4 launch/gta2city_cycada.sh [...]     from the project folder
#
#   GTA5_ROOT, CITYSCAPES_ROOT   the data; without them the miniature runs
#   GPUS=4                       processes, one per GPU
#   STAGE                        source_only, cycada_pixel, cycada_pixel_segmenter, cycada_feature,
#                                cycada_feature_only or oracle: a setting for that stage alone, for example
#                                cycada_pixel:method.lambda_sem=0
#SBATCH --job-name=gta2city_cycada
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120 --requeue
#SBATCH --output=slurm-%x-%j.log --open-mode=append

here=$(dirname "$0")
[ -e "$here/lib.sh" ] || here=${SLURM_SUBMIT_DIR:-.}/launch # Slurm runs a copy of this script, far from lib.sh
[ -e "$here/lib.sh" ] || { echo "error: no launch/lib.sh in $PWD; submit from the project folder" >&2; exit 2; }
source "$here/lib.sh"

seed=0
for word in "$@"; do
  case $word in seed=*) seed=${word#seed=} ;; esac
done
table=$(choose_table gta2city "GTA5_ROOT CITYSCAPES_ROOT")

run() { # run NAME: the folder of a stage's run
  echo "$RUNS/$table/$1-seed$seed"
}

stage() { # stage NAME [setting ...]: train one stage with the caller's settings, then the chain's own
  local name=$1 word settings=()
  shift
  for word in ${words[@]+"${words[@]}"}; do
    case ${word%%=*} in
      "$name":*) settings+=("${word#*:}") ;;
      *:*) ;; # another stage's
      *) settings+=("$word") ;;
    esac
  done
  echo "== $name"
  run_experiment "$table" "$name" ${settings[@]+"${settings[@]}"} "$@"
}

words=("$@")
stages="source_only cycada_pixel cycada_pixel_segmenter cycada_feature cycada_feature_only oracle"
for word in "$@"; do
  name=${word%%=*}
  [[ "$name" != *:* || " $stages " == *" ${name%%:*} "* ]] || {
    echo "error: $word: no stage ${name%%:*}; stages: $stages" >&2
    exit 2
  }
done
translated=$(run cycada_pixel)/translated
stage source_only
stage cycada_pixel "init=$(run source_only)"
run_alone translate "$(run cycada_pixel)" "$translated"
stage cycada_pixel_segmenter "data.source.root=$translated"
stage cycada_feature "init=$(run cycada_pixel_segmenter)" "data.source.root=$translated"
stage cycada_feature_only "init=$(run source_only)"
stage oracle
"$PYTHON" -m da evaluate "$(run source_only)" "$(run cycada_feature_only)" "$(run cycada_pixel_segmenter)" \
  "$(run cycada_feature)" "$(run oracle)"
