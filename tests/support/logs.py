"""Logs that other processes are writing."""

from __future__ import annotations

from pathlib import Path

__all__ = ["whole_lines"]


def whole_lines(log: Path) -> list[str]:
    """Return the lines that have ended: a reader may see a part of the one that is written now."""
    whole, _, _ = log.read_text().rpartition("\n")
    return whole.splitlines()
