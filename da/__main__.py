"""`python -m da COMMAND`, and `da COMMAND` where the package is installed."""

import sys

from da.tune import tune


def main() -> None:
    tune()  # before anything loads torch
    from da.cli import main as run_command

    sys.exit(run_command())


if __name__ == "__main__":
    main()
