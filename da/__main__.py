"""`python -m da COMMAND`."""

import sys

from da.tune import tune

tune()  # before anything loads torch

from da.cli import main  # noqa: E402

sys.exit(main())
