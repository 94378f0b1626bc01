"""Time limits that several cases share."""

from __future__ import annotations

LONG = 600.0
"""Seconds that a receive may wait which the case itself brings to its end."""
