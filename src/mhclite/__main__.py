"""Entry point of `python -m mhclite`."""

import sys

from mhclite.cli import main

sys.exit(main())
