"""The logger `mqcore`.

An application's logging configuration cannot silence it by accident. By default
`logging.config.dictConfig` and `fileConfig` disable every existing logger that they do not name. A
worker would then not report lost connections and dead letters.
"""

from __future__ import annotations

import logging

__all__ = ["log"]

_LOGGER = logging.getLogger("mqcore")


def log() -> logging.Logger:
    """Return the logger, enabled. To see less of it, set its level."""
    if _LOGGER.disabled:
        _LOGGER.disabled = False
    return _LOGGER
