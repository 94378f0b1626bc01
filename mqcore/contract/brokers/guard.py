"""Ends servers whose test run has died: a separate script that imports nothing of mqcore.

Usage: `python guard.py FOLDER`, started by `Processes`.

It reads lines from standard input. Each line lists the process groups that run now and replaces the
line before. When the input ends, the starter has ended: the groups are killed and the folder is
removed.
"""

import os
import shutil
import signal
import sys
from contextlib import suppress


def main() -> None:
    """Wait for the end of standard input, then clean up."""
    groups: list[int] = []
    for line in sys.stdin:
        groups = [int(word) for word in line.split()]

    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    shutil.rmtree(sys.argv[1], ignore_errors=True)


if __name__ == "__main__":
    main()
