"""The defaults of core, in one place.

Signatures, settings and the command line take their values from here, and a test compares them with
the table *Defaults* in `docs/semantics.md`. All times are in seconds.
"""

__all__ = [
    "CONCURRENCY",
    "GRACE",
    "HANDLER_TIMEOUT",
    "LEASE",
    "LINGER",
    "MAX_ATTEMPTS",
    "PREFETCH",
    "PREFETCH_PER_SLOT",
    "PRIORITY",
    "PUBLISH_TIMEOUT",
    "REDRIVES",
    "REQUEST_TIMEOUT",
]

PUBLISH_TIMEOUT = 10.0
"""How long a publish waits for its confirmation (G1)."""

REQUEST_TIMEOUT = 30.0
"""How long a request waits for its reply; also the ttl of the request's message."""

PRIORITY = 5
"""The priority of a message that names none (G8)."""

LEASE = 30.0
"""How long a claim on a message holds without renewal (G5)."""

PREFETCH = 10
"""How many unsettled messages a consumer of the pull API may hold (G12)."""

CONCURRENCY = 10
"""How many runs of a handler may happen at the same time."""

PREFETCH_PER_SLOT = 2
"""How many unsettled messages a worker may hold for each concurrent run (G12)."""

HANDLER_TIMEOUT = 300.0
"""How long one run of a handler may take (G4)."""

LINGER = 0.2
"""How long a batch handler waits for more messages after the first one."""

MAX_ATTEMPTS = 3
"""How often a message is handled before it becomes a dead letter, the first run included (G10)."""

REDRIVES = 5
"""How often a dead letter may be redriven without `force=True` (G11)."""

GRACE = 30.0
"""How long a worker waits at shutdown for the handlers that run (G13)."""
