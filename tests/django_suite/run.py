"""Run Django's own tests of task backends, unmodified, against mqcore's backends.

    python tests/django_suite/run.py DJANGO_SDIST --store sqlite:///tasks.db

The tests are those of `tests/tasks` in the sdist of Django. They test `DummyBackend` and
`ImmediateBackend`; here these two names stand for `MqcoreBackend`, without a worker, and for
`EagerBackend`. What is left out is printed, with the reason.
"""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).parent


def main() -> None:
    """Put our backends in the place of Django's, and run the tests as Django does."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("sdist", type=Path, help="the unpacked sdist of Django")
    parser.add_argument("--store", default="memory://suite", help="the store of tasks")
    given = parser.parse_args()
    os.environ["MQCORE_SUITE_STORE"] = given.store

    tests = given.sdist.resolve() / "tests"
    sys.path[:0] = [str(tests), str(HERE)]

    from django.tasks.backends import dummy, immediate  # noqa: PLC0415 - only Django 6 has it
    from suite_backends import Enqueued, Here  # noqa: PLC0415 - as above

    dummy.DummyBackend = Enqueued
    immediate.ImmediateBackend = Here
    sys.argv = [
        str(tests / "runtests.py"),
        *("tasks", "--settings=suite_settings", "--parallel=1", "--verbosity=1"),
    ]
    os.chdir(tests)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
