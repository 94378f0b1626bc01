"""Rates and slots in a transaction: one row for each key, and the lines of those that wait."""

import math
from collections.abc import Iterable

from mqcore_sql.database import Columns, Database
from mqcore_sql.tasks import statements as sql

__all__ = ["SqlLimits"]


class SqlLimits:
    """What one transaction reads and writes of them.

    The row of a key is locked when it is read. It exists while somebody has a slot, so only the
    holder of that lock changes the line.
    """

    def __init__(self, database: Database) -> None:
        self._db = database
        self._stored: dict[str, bytes | None] = {}
        self._put: dict[str, tuple[bytes | None, float]] = {}
        self._lines: dict[str, dict[str, float | None]] = {}

    def lock(self, keys: Iterable[str]) -> None:
        """Lock and read rows, in one order: transactions with several keys do not block others."""
        unread = sorted(key for key in keys if key not in self._stored)
        if unread:
            self._stored.update(dict.fromkeys(unread))
            for key, value in self._db.query(sql.LIMITS, keys=unread):
                self._stored[key] = bytes(value)

    def get(self, key: str) -> bytes | None:
        """Return the value of a key."""
        if key in self._put:
            return self._put[key][0]
        self.lock([key])
        return self._stored[key]

    def put(self, key: str, value: bytes | None, until: float) -> None:
        """Write the value of a key; None removes it."""
        self._put[key] = (value, until)

    def line(self, key: str) -> dict[str, float | None]:
        """Return what changes in a line: since when a task waits, None for one that leaves."""
        return self._lines.setdefault(key, {})

    def first(self, key: str) -> tuple[str, float] | None:
        """Return the first in a line."""
        changed = self.line(key)
        waiting = [(since, task) for task, since in changed.items() if since is not None]
        found = self._db.query(sql.LINE, key=key, limit=len(changed) + 1)
        waiting += [(since, task) for task, since in found if task not in changed]
        if not waiting:
            return None
        since, task = min(waiting)
        return task, since

    def write(self) -> None:
        """Write everything."""
        put = sorted(self._put.items())
        for key, (value, until) in put:
            if value is None:
                if self._stored.get(key) is not None:
                    self._db.change(sql.REMOVE_LIMITS, keys=[key])
                continue
            columns: Columns = {
                "key": ("text", [key]),
                "value": ("{bytes}", [value]),
                "until": ("double precision", [None if until == math.inf else until]),
            }
            if self._stored.get(key) is None:
                self._db.insert("task_limits", columns)
            else:
                self._db.update("task_limits", columns)

        for key, changed in self._lines.items():
            if changed:
                self._db.change(sql.LEAVE_LINE, key=key, tasks=sorted(changed))
            if waiting := {task: since for task, since in changed.items() if since is not None}:
                columns = {
                    "key": ("text", [key] * len(waiting)),
                    "since": ("double precision", list(waiting.values())),
                    "task": ("text", list(waiting)),
                }
                self._db.insert("task_lines", columns)
