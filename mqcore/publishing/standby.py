"""`Standby`: opens and closes a fallback together with its broker.

The broker may be away when the application starts: then it is connected to later, as after a loss,
and what the application declares is declared then.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mqcore.connection.connection import Connection
from mqcore.connection.tasks import begin_later
from mqcore.errors import ConnectionLost, MqcoreError
from mqcore.events import Events
from mqcore.log import log
from mqcore.publishing.destination import Forwarding
from mqcore.publishing.spool import Spool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mqcore.config.fallback import Fallback
    from mqcore.spi import Backend

__all__ = ["Standby"]


class Standby:
    """The fallback of one broker."""

    def __init__(
        self,
        connection: Connection,
        make_store: Callable[[], Backend],
        fallback: Fallback,
        *,
        is_enabled: bool,
    ) -> None:
        """`connection` is the broker's, `make_store` makes a backend of the spool.

        Without `is_enabled` the broker is not used at all.
        """
        self.fallback = fallback
        self._connection = connection
        self._is_enabled = is_enabled
        self.make_store = make_store
        store = Connection(make_store(), clock=connection.clock, events=Events())
        events, forwarding = connection.events, Forwarding(connection)
        self.spool = Spool(store, forwarding, events, fallback.max_length)
        self._later: set[asyncio.Task[None]] = set()

    async def open(self, ready: Callable[[], Awaitable[None]]) -> None:
        """Open the spool and connect to the broker; `ready` is called when it is connected.

        A broker that is away is connected to later. Raises what connecting raises for any other
        reason, such as a wrong password, and when the spool cannot be used either.
        """
        try:
            await self.spool.open()
            if await self._connect():
                await ready()
            else:
                self.when_connected(ready)
        except BaseException:
            await self.close()
            await self._connection.close()
            raise
        self.spool.start()

    async def _connect(self) -> bool:
        """Return whether the broker is there; it is connected to later otherwise."""
        store = self.spool.connection
        if self._is_enabled:
            try:
                await self._connection.open()
            except ConnectionLost as error:
                if not self.spool.is_usable:
                    raise
                self._connection.open_later(store.capabilities, error)
                return False
            return True

        if self.spool.error is not None:
            raise self.spool.error
        off = ConnectionLost("the broker is switched off by the setting enabled=false")
        self._connection.open_later(store.capabilities, off, reconnects=False)
        return False

    def when_connected(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do work as soon as the broker is there. A failure is logged."""
        task = begin_later(self._when_connected(work))
        self._later.add(task)
        task.add_done_callback(self._later.discard)

    async def _when_connected(self, work: Callable[[], Awaitable[None]]) -> None:
        while not self._connection.is_closed:
            with suppress(ConnectionLost):
                await self._connection.ready("declaring")
                try:
                    await work()
                except ConnectionLost:
                    raise
                except MqcoreError as error:
                    log().error("declaring after the broker came back: %s", error)
                return

    def state(self) -> dict[str, Any]:
        """Return the fields of `SpoolHealth`."""
        spool = self.spool
        return {
            "depth": spool.depth,
            "age": spool.age,
            "usable": spool.is_usable,
            "error": spool.why_unusable,
        }

    async def close(self, limit: float | None = None) -> None:
        """Stop relaying and close the spool, within `limit` seconds when the process ends (G13)."""
        tasks = list(self._later)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.spool.close(limit)
