"""The table of defaults in the documentation has the values that the code has."""

import re
from pathlib import Path

import pytest

from mqcore import defaults
from mqcore.messages.message import Limits
from mqcore.rules.retry import RetryPolicy

PAGE = Path(__file__).parents[2] / "docs" / "semantics.md"
POLICY, LIMITS = RetryPolicy(), Limits()
KIB = 1024

ROWS = {
    "retry policy when none is given": (
        f"{defaults.MAX_ATTEMPTS} attempts, exponential from {POLICY.backoff.base:g} s, "
        f"cap {POLICY.backoff.cap:g} s, full jitter"
    ),
    "prefetch of the pull API": f"{defaults.PREFETCH}",
    "time limit of a handler": f"{defaults.HANDLER_TIMEOUT:g} s; None for no limit",
    "linger of a batch consumer": f"{defaults.LINGER:g} s",
    "publish timeout": f"{defaults.PUBLISH_TIMEOUT:g} s",
    "request timeout": f"{defaults.REQUEST_TIMEOUT:g} s, also the ttl of its message",
    "lease": f"{defaults.LEASE:g} s, renewed every third of it",
    "grace at shutdown": f"{defaults.GRACE:g} s",
    "payload, headers": (
        f"{LIMITS.payload // KIB**2} MiB; {LIMITS.headers} headers, "
        f"{LIMITS.header_bytes // KIB} KiB in all, {LIMITS.header_value // KIB} KiB a value"
    ),
    "priority": f"{defaults.PRIORITY}",
    "redrives of one dead letter": f"{defaults.REDRIVES}, then only by force",
}


def documented() -> dict[str, str]:
    """Return the rows of the table *Defaults*: name and value."""
    section = PAGE.read_text("utf-8").split("\n## Defaults\n")[1].split("\n## ")[0]
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in section.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 3}


@pytest.mark.parametrize("name", ROWS)
def test_the_documentation_names_the_default(name: str) -> None:
    assert documented()[name] == ROWS[name]


def test_the_documentation_names_the_concurrency() -> None:
    row = documented()["concurrency, prefetch of a handler"]
    assert row.startswith(f"{defaults.CONCURRENCY}, and twice the concurrency")
    assert defaults.PREFETCH_PER_SLOT == 2
