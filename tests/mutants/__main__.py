"""`python -m tests.mutants [NAME…]`: show which case catches which mutant."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest does: `mutants` is found in tests/

from mutants.table import main

sys.exit(main(sys.argv[1:]))
