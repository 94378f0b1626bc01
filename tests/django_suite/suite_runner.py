"""Django's test runner, without the tests that say that a backend cannot do what ours can."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest import TestSuite

from django.test.runner import DiscoverRunner

if TYPE_CHECKING:
    from collections.abc import Iterator

IMMEDIATE = "tasks.test_immediate_backend.ImmediateBackendTestCase"
LEFT_OUT = {
    f"{IMMEDIATE}.test_cannot_get_result": "it says that results cannot be retrieved; ours can",
    f"{IMMEDIATE}.test_cannot_refresh_result": "it says that results cannot be read again; "
    "ours can",
    f"{IMMEDIATE}.test_cannot_pass_run_after": "it says that run_after is refused; ours takes it",
}


class Runner(DiscoverRunner):  # type: ignore[misc]  # a class without annotations
    """Leaves out what is listed, and says so."""

    def build_suite(self, *args: Any, **kwargs: Any) -> TestSuite:
        """Return the tests. Raises `LookupError` for a test of the list that does not exist."""
        tests = list(_flat(super().build_suite(*args, **kwargs)))
        if missing := LEFT_OUT.keys() - {test.id() for test in tests}:
            raise LookupError(f"left out, but not there: {', '.join(sorted(missing))}")
        print(f"{len(tests)} tests of Django; left out are:")
        for name, reason in LEFT_OUT.items():
            print(f"  {name.rpartition('.')[2]}: {reason}")
        return TestSuite(test for test in tests if test.id() not in LEFT_OUT)


def _flat(suite: Any) -> Iterator[Any]:
    for each in suite:
        if isinstance(each, TestSuite):
            yield from _flat(each)
        else:
            yield each
