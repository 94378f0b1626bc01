"""Where a failure points to."""

from __future__ import annotations

OPEN = "Backend.open: the Capabilities that it returns"
