"""The table: each mutant, the guarantee that it breaks, and the case that caught it."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from mutants.mutant import all_mutants, caught

from mqcore.contract import all_cases

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Print the table of all mutants, or of the named ones; with `--all`, every case that fails.

    Return 1 when one escapes.
    """
    logging.disable()  # what goes wrong is wanted here
    began = time.perf_counter()
    names = {argument for argument in arguments if not argument.startswith("-")}
    mutants = [mutant for mutant in all_mutants() if not names or mutant.name in names]
    width = max((len(mutant.name) for mutant in mutants), default=0)
    count = 0
    for mutant in mutants:
        cases = all_cases() if "--all" in arguments else None
        found = caught(mutant, cases)
        results = (
            list(found)
            if cases
            else [result for result in [next(found, None)] if result is not None]
        )
        count += bool(results)
        by = " ".join(result.case.name for result in results) or "NOT CAUGHT"
        print(f"{mutant.name:<{width}}  {mutant.guarantee:<4} {by}", flush=True)  # noqa: T201 - it is a command
    print(f"{count} of {len(mutants)} mutants caught, in {time.perf_counter() - began:.1f} s")  # noqa: T201 - as above
    return int(count < len(mutants) or not mutants)
