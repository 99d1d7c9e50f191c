"""`python -m da COMMAND`."""

import sys

from da.cli import main

sys.exit(main())
