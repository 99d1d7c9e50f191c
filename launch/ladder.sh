#!/usr/bin/env bash
# Every method of a pair of data sets, over several seeds, as many runs at a time as there are cores; then the page that
# compares them. Killed and called again it goes on; finished runs are skipped.
#
#   bash launch/ladder.sh PAIR [section.key=value ...]     PAIR: mini, day2dusk, drawn2real
#
#   PHOTOGRAPHS_ROOT=FOLDER     the photographs of day2dusk and drawn2real (experiments/base/day2dusk.yaml says which)
#   SEEDS="0 1 2"
#   METHODS="source_only oracle"    some of them; cycada_* need source_only, cycada_feature also cycada_pixel_segmenter
#   JOBS=2                      runs at a time, one thread each
#   RUNS=runs                   folder of all runs; the page is written to RUNS/report/PAIR

for here in "$(dirname "$0")" launch; do
  [ ! -e "$here/lib.sh" ] || break
done
source "$here/lib.sh"

pair=${1:-}
if [ -z "$pair" ] || [ ! -d "experiments/$pair" ]; then
  echo "error: name a pair: mini, day2dusk or drawn2real; got '$pair'" >&2
  exit 2
fi
shift
if [ "$pair" != mini ] && [ ! -d "${PHOTOGRAPHS_ROOT:-}" ]; then
  echo "error: PHOTOGRAPHS_ROOT=${PHOTOGRAPHS_ROOT:-}: no such folder; experiments/base/$pair.yaml says what it holds" >&2
  exit 2
fi
SEEDS=${SEEDS:-0 1 2}
JOBS=${JOBS:-$(nproc)}
first="source_only"
second="oracle adaptsegnet_target_forward adaptsegnet_single adaptsegnet_multi minent advent fda"
second="$second cycada_pixel cycada_feature_only"
METHODS=${METHODS:-$first $second cycada_pixel_segmenter cycada_feature}
export OMP_NUM_THREADS=1

# shellcheck disable=SC2317  # the shells that xargs starts call it
settings_of() { # METHOD SEED: what the method reads of that seed's other runs
  local runs=$RUNS/$pair
  case $1 in
    cycada_pixel | cycada_feature_only) echo "init=$runs/source_only-seed$2" ;;
    cycada_pixel_segmenter) echo "data.source.root=$runs/cycada_pixel-seed$2/translated" ;;
    cycada_feature) echo "init=$runs/cycada_pixel_segmenter-seed$2 data.source.root=$runs/cycada_pixel-seed$2/translated" ;;
  esac
}

# shellcheck disable=SC2317
one() { # METHOD SEED: its run, and what others need of it; its output goes to a file
  local method=$1 seed=$2 folder=$pair/$1-seed$2
  # shellcheck disable=SC2046  # settings are words
  train_logged "$folder" "experiments/$pair/$method.yaml" "seed=$seed" $(settings_of "$method" "$seed") "${@:3}" || return
  [ "$method" != cycada_pixel ] || "$PYTHON" -m da translate "$RUNS/$folder" "$RUNS/$folder/translated" >>"$RUNS/$folder.log" 2>&1 || {
    echo "error: $RUNS/$folder: $(tail -n 1 "$RUNS/$folder.log")" >&2
    return 1
  }
}

export -f one settings_of train_logged
export RUNS PYTHON pair

# shellcheck disable=SC2016  # for those shells
step() { # METHOD ...: these for all seeds, JOBS at a time
  local method seed
  for method in "$@"; do
    for seed in $SEEDS; do
      [[ " $METHODS " != *" $method "* ]] || echo "$method $seed"
    done
  done | xargs -r -P "$JOBS" -L 1 bash -c 'one "${@: -2:1}" "${@: -1}" "${@:1:$#-2}"' bash "${words[@]}" || failed=1
}

words=("$@") failed=0
"$PYTHON" -m da data miniature >/dev/null # once, before several runs ask for it
step "$first"
# shellcheck disable=SC2086  # a list
step $second
step cycada_pixel_segmenter
step cycada_feature
write_page "$pair"
exit "$failed"
