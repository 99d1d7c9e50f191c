#!/usr/bin/env bash
# One GPU, under 8 minutes, no data: what every trainer's update costs, what run.deterministic costs, whether a killed run
# and one in an NCCL group end bit for bit as a plain one, and the rows of `python -m da bench step`. One table, printed
# and written as gpu_check.md and gpu_check.json. Exit code 1: a row failed; 2: there is no GPU.
#
#   bash launch/gpu_check.sh
#
#   OUT=gpu_check               folder to write
#   METHODS="source_only"       some trainers (default: all)
#   MOST_SECONDS=450            that it may take
#   DEVICE=cpu                  tiny sizes on the CPU, which try this check; its figures mean nothing

for here in "$(dirname "$0")" launch "${SLURM_SUBMIT_DIR:-.}/launch"; do # Slurm runs a copy of this script
  [ ! -e "$here/lib.sh" ] || break
done
source "$here/lib.sh"

if [ "${1:-}" = train ]; then # EXPERIMENT.yaml [section.key=value ...]: what the check runs under torchrun
  GPUS=1 NODES=1 RESTARTS=0
  export DA_GROUP_OF_ONE=1
  train_file "${@:2}"
  exit
fi

METHODS=${METHODS:-}
# shellcheck disable=SC2086  # a list
exec "$PYTHON" -m da gpu-check --out "${OUT:-gpu_check}" --device "${DEVICE:-cuda}" --seconds "${MOST_SECONDS:-450}" \
  --launcher launch/gpu_check.sh ${METHODS:+--methods $METHODS} "$@"
