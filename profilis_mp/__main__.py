"""``python -m profilis_mp``."""

import sys

from profilis_mp.cli import main

sys.exit(main())
