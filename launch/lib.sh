# shellcheck shell=bash
# What the launch scripts share. Each sources this file first; it leaves the shell in the project's folder with
# PYTHON set to an interpreter that has the packages.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

GPUS=${GPUS:-1}      # processes on this machine, one per GPU
RUNS=${RUNS:-runs}   # folder of all runs

has_packages() { # does this interpreter import what training needs, and what the caller names in NEEDS?
  # shellcheck disable=SC2086  # NEEDS is a list
  "$1" - torch torchvision numpy scipy tensorboard yaml cv2 PIL pydantic tqdm ${NEEDS:-} <<'PY' >/dev/null 2>&1
import importlib.util, sys
assert all(importlib.util.find_spec(name) for name in sys.argv[1:])
PY
}

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python .venv/bin/python; do
    if [ -n "$candidate" ] && has_packages "$candidate"; then
      PYTHON=$candidate
      return
    fi
  done
  echo "The active Python lacks the packages; installing requirements.txt into .venv ..."
  [ -x .venv/bin/python ] || python3 -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
  PYTHON=.venv/bin/python
}

# choose_table TABLE ROOTS: prints TABLE, or `mini` (and on standard error why) when one of the data roots is not set.
choose_table() {
  local table=$1 roots=$2 root
  for root in $roots; do
    if [ -z "${!root:-}" ]; then
      echo "$root is not set, so this runs the miniature: small rendered streets, two CPU cores, some minutes." >&2
      echo "For the full experiment set: $roots" >&2
      table=mini
      break
    fi
  done
  echo "$table"
}

# run_experiment TABLE NAME [section.key=value ...]: trains experiments/TABLE/NAME.yaml
run_experiment() {
  local table=$1 name=$2
  shift 2
  local command=("$PYTHON" -m da)
  if [ "$GPUS" -gt 1 ]; then
    command=("$PYTHON" -m torch.distributed.run --standalone "--nproc-per-node=$GPUS" -m da)
  fi
  "${command[@]}" train "experiments/$table/$name.yaml" --runs "$RUNS" "$@"
}

find_python
