"""Where a failure points to."""

from __future__ import annotations

MOVE = "Subscription.settle: Move"
