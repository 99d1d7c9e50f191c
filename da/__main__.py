"""`python -m da COMMAND`."""

import multiprocessing
import os
import sys

from da.tune import tune

tune()  # before anything loads torch

from da.cli import main  # noqa: E402

code = main()
if multiprocessing.active_children():  # one that hangs in a disk that is gone would be waited for without end
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
sys.exit(code)
