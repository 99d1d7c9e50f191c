"""`python -m da` in float64, so that rounding stays far below what a mistake would show.

python tests/in_double.py train ...
"""

import sys

import torch

import da.run  # noqa: F401  what it loads needs the true float32

torch.set_default_dtype(torch.float64)
torch.float32 = torch.float64
torch.Tensor.float = torch.Tensor.double

from da.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
