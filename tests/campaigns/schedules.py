"""Two and five schedulers, killed at random, from March to November in six time zones.

`python tests/campaigns/schedules.py [--seeds 3]` prints a line for each number of schedulers; about
a minute for each seed. Every planned instant must have been sent exactly once.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.scheduling import Fleet, planned_triggers

FIRST, LAST = datetime(2026, 3, 1, tzinfo=UTC), datetime(2026, 11, 8, tzinfo=UTC)


def main() -> int:
    """Run the campaign; the exit code is 1 when an instant was not sent once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=1)
    wrong = 0

    print("schedulers  seed  instants  sent    kills  steps    wrong  seconds")
    for schedulers in (2, 5):
        for seed in range(parser.parse_args().seeds):
            began = time.perf_counter()
            fleet = Fleet(
                planned_triggers(), schedulers=schedulers, start=FIRST.timestamp(), seed=seed
            )
            it = fleet.run(LAST.timestamp())
            print(
                f"{schedulers:<12}{seed:<6}{it.planned:<10}{it.fired:<8}{it.kills:<7}{it.steps:<9}"
                f"{len(it.wrong):<7}{time.perf_counter() - began:.0f}",
                flush=True,
            )
            for line in it.wrong[:10]:
                print(f"  {line}")
            wrong += len(it.wrong)
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
