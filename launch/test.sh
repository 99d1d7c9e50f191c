#!/usr/bin/env bash
# All checks: format, lint, types, tests.
#
#   bash launch/test.sh [pytest arguments]      for example  -m 'not slow'
NEEDS="pytest ruff mypy"
source "$(dirname "$0")/lib.sh"

"$PYTHON" -m ruff format --check .
"$PYTHON" -m ruff check .
"$PYTHON" -m mypy
if command -v shellcheck >/dev/null; then shellcheck -x -P launch launch/*.sh; fi
exec "$PYTHON" -m pytest "$@"
