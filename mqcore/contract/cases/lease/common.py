"""The lease that the cases ask for."""

from __future__ import annotations

from mqcore.rules.retry import RetryPolicy
from mqcore.spi import (
    Capability,
)

LEASE = 1.0


ONCE = RetryPolicy(1)


LEASES = (Capability.LEASE,)
