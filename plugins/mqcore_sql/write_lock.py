"""Whether a session of SQLAlchemy has the write lock of an SQLite file.

SQLite does not say so. But who has changed a row in the open transaction has the lock, and so has a
`SharedConnection` that has its turn. What is missed is a statement that changes no row, and a
`BEGIN IMMEDIATE`, on a connection that is not shared.
"""

import os
from typing import TYPE_CHECKING, Any

from mqcore_sql.share import SharedConnection

if TYPE_CHECKING:
    from sqlalchemy.engine import Connection

__all__ = ["WriteLocks"]


class WriteLocks:
    """The connections of one session on SQLite files, as they were when their transactions began.

    `holding` may be called in any thread.
    """

    def __init__(self) -> None:
        self._began: dict[Any, tuple[str, int]] = {}

    def begin(self, connection: "Connection") -> None:
        """Note a connection whose transaction begins."""
        path = connection.engine.url.database
        if connection.dialect.name != "sqlite" or not path:
            return
        client = connection.connection.driver_connection
        changes = getattr(client, "total_changes", None)
        if changes is not None:
            self._began[client] = path, changes

    def holding(self, file: tuple[int, int]) -> str:
        """Return the path of a file, by device and inode, if its lock is held certainly."""
        for client, (path, changes) in list(self._began.items()):
            if _is_same(path, file) and _has_written(client, changes):
                return path
        return ""


def _is_same(path: str, file: tuple[int, int]) -> bool:
    try:
        found = os.stat(path)  # noqa: PTH116 - for each publish of such a handler
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == file


def _has_written(client: Any, changes: int) -> bool:
    connection = getattr(client, "_conn", client)  # that of aiosqlite
    try:
        if isinstance(connection, SharedConnection) and connection.has_turn:
            return True
        return bool(client.in_transaction and client.total_changes > changes)
    except Exception:  # noqa: BLE001 - it is closed, or a client library of another kind
        return False
