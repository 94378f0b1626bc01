"""What a contender of `benchmarks/tasks.py` is asked: `worker`, `tasks N` or `chord N`."""

import sys
import time
from collections.abc import Callable

__all__ = ["serve"]


def serve(
    work: Callable[[], None], send_and_read: Callable[[int], int], chord: Callable[[int], int]
) -> None:
    """Do what the command line asks for; print the rate of a second and larger run."""
    if sys.argv[1] == "worker":
        work()
        return
    run, count = {"tasks": send_and_read, "chord": chord}[sys.argv[1]], int(sys.argv[2])
    run(10)  # until the worker is up
    began = time.perf_counter()
    if run(count) != sum(number + 1 for number in range(count)):
        raise AssertionError
    print(count / (time.perf_counter() - began))
