#!/usr/bin/env bash
# CyCADA, GTA5 -> Cityscapes: all stages in order, each resumable and skipped when finished, and the table at the end.
#
#   bash launch/gta2city_cycada.sh [seed=1] [section.key=value ...] [STAGE:section.key=value ...]
#
#   sbatch --gpus-per-node=4 launch/gta2city_cycada.sh data.batch_size=4 [...]     from the project folder
#
#   GTA5_ROOT, CITYSCAPES_ROOT   the data; without them the miniature runs
#   GPUS=4                       processes, one per GPU; give data.batch_size, a multiple of their number (left out,
#                                cycada_pixel gets one image for each, and the others' recipes must divide)
#   RUNS=runs/other              folder of all runs; a chain with other settings needs another one
#   STAGE                        source_only, cycada_pixel, cycada_pixel_segmenter, cycada_feature,
#                                cycada_feature_only or oracle: a setting for that stage alone, for example
#                                cycada_pixel:method.lambda_sem=0
#
# The oracle's source is the target's data set: data.source.* reaches it only as oracle:data.source.*.
#SBATCH --job-name=cycada_gta2city
#SBATCH --nodes=1 --ntasks-per-node=1 --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120 --requeue
#SBATCH --output=slurm-%x-%j.log --open-mode=append

for here in "$(dirname "$0")" launch "${SLURM_SUBMIT_DIR:-.}/launch"; do # Slurm runs a copy of this script
  [ ! -e "$here/lib.sh" ] || break
done
[ -e "$here/lib.sh" ] || { echo "error: no launch/lib.sh in $PWD; submit from the project folder" >&2; exit 2; }
source "$here/lib.sh"

stages="source_only cycada_pixel cycada_pixel_segmenter cycada_feature cycada_feature_only oracle"
seed=0 batch=""
refuse() { echo "error: $*" >&2; exit 2; }
for word in "$@"; do
  key=${word%%=*} name=""
  [[ $key != *:* ]] || { name=${key%%:*} key=${key#*:}; }
  [[ -z $name || " $stages " == *" $name "* ]] || refuse "$word: no stage $name; stages: $stages"
  case $name:$key in
    *:name | *:experiment) refuse "$word: the stages find each other by name; for another chain set RUNS=another/folder" ;;
    :seed) seed=${word#*=} ;;
    *:seed) refuse "$word: all stages share one seed; give it as ${word#*:}" ;;
    source_only:init) ;;
    *:init) refuse "$word: the chain sets what a stage starts from; only source_only:init=... is free" ;;
    cycada_pixel_segmenter:data.source.root | cycada_feature:data.source.root)
      refuse "$word: the chain trains this stage on the translations; leave it out" ;;
    :data.batch_size | cycada_pixel:data.batch_size) batch=$word ;;
  esac
done
words=("$@")
if [ "$((NODES * GPUS))" -gt 1 ] && [ -z "$batch" ]; then
  words+=("cycada_pixel:data.batch_size=$((NODES * GPUS))")
  echo "cycada_pixel: data.batch_size=$((NODES * GPUS)), an image for each process (its recipe's batch is 1)"
fi
table=$(choose_table gta2city "GTA5_ROOT CITYSCAPES_ROOT")

run() { # run NAME: the folder of a stage's run
  echo "$RUNS/$table/$1-seed$seed"
}

translated=$(run cycada_pixel)/translated

read_settings() { # read_settings NAME: into `settings`, the caller's for one stage, then the chain's own
  local word
  settings=()
  for word in ${words[@]+"${words[@]}"}; do
    case ${word%%=*} in
      "$1":*) settings+=("${word#*:}") ;;
      *:*) ;; # another stage's
      data.source | data.source.*) [ "$1" = oracle ] || settings+=("$word") ;;
      *) settings+=("$word") ;;
    esac
  done
  case $1 in
    cycada_pixel | cycada_feature_only) settings+=("init=$(run source_only)") ;;
    cycada_pixel_segmenter) settings+=("data.source.root=$translated") ;;
    cycada_feature) settings+=("init=$(run cycada_pixel_segmenter)" "data.source.root=$translated") ;;
  esac
}

check=()
for name in $stages; do
  read_settings "$name"
  check+=("experiments/$table/$name.yaml" ${settings[@]+"${settings[@]}"} ",")
done
run_alone train --check --processes "$((NODES * GPUS))" --runs "$RUNS" "${check[@]}"

for name in $stages; do
  echo "== $name"
  read_settings "$name"
  train_file "experiments/$table/$name.yaml" ${settings[@]+"${settings[@]}"}
  [ "$name" = cycada_pixel ] || continue
  limit=()
  for word in ${settings[@]+"${settings[@]}"}; do
    case $word in run.time_limit=*) limit=("$word") ;; esac
  done
  run_alone translate "$(run cycada_pixel)" "$translated" ${limit[@]+"${limit[@]}"}
done
run_alone evaluate "$(run source_only)" "$(run cycada_feature_only)" "$(run cycada_pixel_segmenter)" \
  "$(run cycada_feature)" "$(run oracle)"
write_page "$table"
run_next "bash launch/gta2city_adaptseg.sh" "another method; the page then shows both"
