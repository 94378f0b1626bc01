"""The name of a worker, under which it writes heartbeats and gets commands."""

from __future__ import annotations

import os
import re
import socket

from mqcore.messages.message import new_id

__all__ = ["worker_name"]

_LONGEST_HOST = 100
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._-]")


def worker_name() -> str:
    """Return a new name for a worker of this process: host, process id, and a random part."""
    host = _NOT_IN_NAMES.sub("-", socket.gethostname())[:_LONGEST_HOST]
    return f"{host}:{os.getpid()}:{new_id()[:8]}"
