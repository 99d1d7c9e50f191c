#!/usr/bin/env bash
# All checks: format, lint, types, tests (two at a time).
#
#   bash launch/test.sh [pytest arguments]      for example  -m 'not slow'
NEEDS="pytest xdist ruff mypy"
source "$(dirname "$0")/lib.sh"

"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
if command -v shellcheck >/dev/null; then shellcheck -x -P launch launch/*.sh; fi
exec "$PYTHON" -m pytest -n 2 --dist loadgroup "$@"
