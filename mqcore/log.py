"""The logger `mqcore`, which an application's logging configuration cannot silence by accident.

`logging.config.dictConfig` and `fileConfig` disable every logger that exists and that they do not
name, unless they are told otherwise. A worker whose log ends there would be silent about lost
connections and dead letters.
"""

from __future__ import annotations

import logging

__all__ = ["log"]

_LOGGER = logging.getLogger("mqcore")


def log() -> logging.Logger:
    """Return the logger, enabled. Whoever wants less of it sets its level."""
    if _LOGGER.disabled:
        _LOGGER.disabled = False
    return _LOGGER
