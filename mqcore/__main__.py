"""`python -m mqcore`: the same as the command `mqcore`."""

import sys

from mqcore.cli import main

sys.exit(main())
