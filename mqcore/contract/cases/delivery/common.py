"""Time limits that several cases share."""

from __future__ import annotations

LONG = 600.0
"""Seconds for a receive that the case ends itself."""
