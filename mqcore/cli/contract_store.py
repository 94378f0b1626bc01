"""`mqcore contract run-store URL`: tests whether a task store does what the seam promises."""

from collections.abc import Iterator
from typing import Annotated

import typer

from mqcore.cli.common import Json
from mqcore.cli.output import escaped, one_line, print_json
from mqcore.contract.store.harness import store_of
from mqcore.contract.store.run import StoreResult, run_store_contract

__all__ = ["run_store"]


def run_store(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="The task store, for instance memory://tests.", show_default=False
        ),
    ],
    *,
    schedules: Annotated[
        int, typer.Option(help="How many schedules the explorer runs.", min=0)
    ] = 1_000,
    comparisons: Annotated[
        int, typer.Option(help="How many runs of random changes are compared.", min=0)
    ] = 100,
    seed: Annotated[
        int, typer.Option(help="The seed of the first one; a failure prints its seed.", min=0)
    ] = 0,
    json: Json = False,
) -> int:
    """Run the contract of task stores on a store for tests. EVERYTHING IN THE STORE IS REMOVED.

    A schedule or comparison that failed is repeated by its seed: --seed N --schedules 1
    --comparisons 1. The exit code is 1 when something fails.
    """
    results = run_store_contract(
        store_of(url), schedules=schedules, comparisons=comparisons, seed=seed
    )
    found = list(results if json else _printed(results))
    is_good = all(result.is_good for result in found)
    verdict = "passed" if is_good else "failed"

    if json:
        parts = [
            {"name": it.name, "done": it.done, "seconds": it.seconds, "error": it.error}
            for it in found
        ]
        print_json({"parts": parts, "verdict": verdict})
    else:
        print(verdict)
    return 0 if is_good else 1


def _printed(results: Iterator[StoreResult]) -> Iterator[StoreResult]:
    """Print each result as it comes."""
    for result in results:
        status = "passed" if result.is_good else "failed"
        words = [status, result.name, result.done, f"{result.seconds:.2f} s"]
        print(one_line(" ".join(filter(None, words))), flush=True)
        for line in escaped(result.error, lines=True).splitlines():
            print(f"    {line}")
        yield result
