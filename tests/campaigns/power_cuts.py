"""Power cuts while messages are published and settled: what was confirmed is on the disk.

    python tests/campaigns/power_cuts.py sqlite postgresql --cuts 50

It needs root, a loop device and ext4. A cut stops the writer, copies what the disk holds, and opens
the copy; the file system keeps everything else in memory for five minutes. `sqlite-off` and
`postgresql-off` confirm without waiting for the disk, and show that the cuts are real: they lose
messages. Ends with 1 when `sqlite` or `postgresql` has lost a confirmed message, or gives back one
whose acknowledgement was confirmed.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.power_cut_server import PostgresqlOnDisk
from support.power_cuts import Database, Sqlite, cuts

DATABASES: dict[str, Callable[[], Database]] = {
    "sqlite": Sqlite,
    "sqlite-normal": lambda: Sqlite("normal"),
    "sqlite-off": lambda: Sqlite("off"),
    "postgresql": PostgresqlOnDisk,
    "postgresql-off": lambda: PostgresqlOnDisk("off"),
}
PROMISED = ("sqlite", "postgresql")


def main() -> int:
    """Cut each database that is named, and print a row for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("databases", nargs="+", choices=list(DATABASES))
    parser.add_argument("--cuts", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    is_clean = True

    for name in options.databases:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="power-cuts-") as folder:
            found = list(cuts(DATABASES[name](), options.cuts, Path(folder), options.seed))
        losing = sum(cut.lost > 0 for cut in found)
        returning = sum(cut.returned > 0 for cut in found)
        print(
            f"{name}: {len(found)} cuts in {time.monotonic() - began:.0f} s; at the last one "
            f"{found[-1].published:,} messages were published and {found[-1].settled:,} settled. "
            f"Cuts that lost confirmed messages: {losing} (most in one: "
            f"{max(cut.lost for cut in found)}). Cuts after which settled ones were there again: "
            f"{returning} (most in one: {max(cut.returned for cut in found)})",
            flush=True,
        )
        if name in PROMISED:
            is_clean = is_clean and all(cut.is_clean for cut in found)

    return int(not is_clean)


if __name__ == "__main__":
    sys.exit(main())
