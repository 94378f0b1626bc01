"""The contract kit's harness for a database file, with the hooks that a URL cannot provide."""

import asyncio
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import mqcore_sql
from mqcore.clock import Clock
from mqcore.config.plugins import Plugins
from mqcore.contract import UrlHarness
from mqcore.spi import Backend

__all__ = ["SqliteHarness", "plugins"]


def plugins() -> Plugins:
    """Return the plugin of this checkout, whatever is installed."""
    found = Plugins([])
    found.register(mqcore_sql)
    return found


class SqliteHarness(UrlHarness):
    """A file has no server that could be restarted or silenced, and it can be searched."""

    silence = 0.2

    def __init__(self, path: Path, clock: Clock | None = None) -> None:
        super().__init__(f"sqlite:///{path}", plugins=plugins(), clock=clock)
        self.path = path

    async def restart(self) -> None:
        """Hook 3: nothing runs that could be restarted."""

    async def kill(self, backend: Backend) -> None:
        """Hook 5: close the file first, so that the end of the instance changes nothing in it."""
        instance: Any = backend
        await instance.run(lambda driver: driver._db.close())
        await backend.close()

    async def stored(self, body: bytes) -> Mapping[str, int]:
        """Hook 10: count the rows with this body, by the number of their queue."""
        return await asyncio.to_thread(self._count, body)

    def _count(self, body: bytes) -> dict[str, int]:
        with closing(sqlite3.connect(self.path)) as connection:
            return dict(
                connection.execute(
                    "SELECT q.name, count(m.id) FROM mq_queues q LEFT JOIN mq_messages m "
                    "ON m.queue = q.id AND m.body = ? GROUP BY q.name",
                    (body,),
                )
            )
