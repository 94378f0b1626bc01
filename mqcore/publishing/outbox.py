"""`Outbox`: the queue of an application's database whose parcels go to the broker.

A publish inside a transaction (`session=`) stores a parcel there, through the transaction. The
relay publishes what was committed. It runs inside every worker and in `mqcore relay`.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from mqcore.config.settings import open_backend
from mqcore.config.url import BrokerUrl
from mqcore.connection.connection import Connection
from mqcore.connection.tasks import begin_later
from mqcore.errors import ConfigurationError, MqcoreError, QueueNotFound
from mqcore.publishing.destination import Forwarding
from mqcore.publishing.detour import Detour
from mqcore.publishing.enlisting import OUTBOX, Place
from mqcore.publishing.relay import Relay, check_relays, relay_specs
from mqcore.rules.checks import described
from mqcore.rules.redact import describe_error
from mqcore.spi import SupportsBrowse, SupportsCount, SupportsEnlist

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from mqcore.config.plugins import Plugins
    from mqcore.config.settings import Settings
    from mqcore.publishing.destination import Destination
    from mqcore.publishing.publisher import Publisher
    from mqcore.publishing.standby import Standby

__all__ = ["Outbox", "check_outbox", "look_at", "make_outbox", "opened"]

_LOOK = 5.0
"""Seconds between two looks at what waits."""


class Outbox:
    """The connection to the application's database, and the relay to the broker."""

    def __init__(self, source: Connection, destination: Destination) -> None:
        """`source` is opened and closed by this object."""
        self.source = source
        self.place = Place(source, is_outbox=True)
        self._destination = destination
        self._watching: asyncio.Task[None] | None = None
        self._depth, self._since = 0, 0.0

    async def open(self) -> None:
        """Connect, and declare the queue of parcels.

        Raises `UnsupportedFeature` for a backend that cannot store messages in a transaction.
        """
        await self.source.open()
        try:
            self.source.supporting(
                SupportsEnlist, "outbox= needs a database, sqlite:// or postgresql://"
            )
            check_relays(self.source, "outbox=")
            await self._declare()
            await self._look()
        except BaseException:
            await self.source.close()
            raise
        self._watching = begin_later(self._watch())

    async def close(self, limit: float | None = None) -> None:
        """Disconnect, within `limit` seconds when the process has to end (G13)."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching], timeout=limit)
        await self.source.close(limit)

    def state(self) -> dict[str, Any]:
        """Return the fields of `OutboxHealth`."""
        source, error = self.source, self.source.error
        return {
            "depth": self._depth,
            "age": max(source.clock.now() - self._since, 0.0) if self._depth else 0.0,
            "usable": source.connected,
            "error": "" if source.connected or error is None else describe_error(error),
        }

    async def _watch(self) -> None:
        """Look at what waits; also what other processes have committed."""
        while True:
            await self.source.clock.sleep(_LOOK)
            if self.source.connected:
                with suppress(MqcoreError):  # it is looked at again
                    await self._look()

    async def _look(self) -> None:
        self._depth, since = await look_at(self.source)
        self._since = self.source.clock.now() if since is None else since

    async def relay(self) -> None:
        """Publish what was committed until the task is cancelled."""
        await self._make_relay().run()

    async def drain(self) -> None:
        """Publish what was committed until nothing waits."""
        await self._make_relay().drain()

    def _make_relay(self) -> Relay:
        return Relay(self.source, OUTBOX, self._destination, redeclare=self._declare)

    async def _declare(self) -> None:
        await self.source.declare(relay_specs(OUTBOX))


async def look_at(source: Connection) -> tuple[int, float | None]:
    """Return how many messages wait in an outbox, and when the oldest was stored."""
    doing, backend = f"looking at {OUTBOX!r}", source.backend
    if not isinstance(backend, SupportsCount):
        return 0, None
    found = await source.call(doing, lambda: backend.count([OUTBOX]))
    depth = sum(counts.ready + (counts.leased or 0) for counts in found)

    if depth and isinstance(backend, SupportsBrowse):
        with suppress(QueueNotFound):
            entries = await source.call(doing, lambda: backend.browse(OUTBOX, 1))
            return depth, entries[0].message.published_at if entries else None
    return depth, None


def check_outbox(url: object, where: str) -> None:
    """Raise `ConfigurationError` for an outbox that is not a URL."""
    if url is not None and not isinstance(url, (str, BrokerUrl)):
        raise ConfigurationError(
            f"{where}: outbox= takes the URL of a database, for instance sqlite:///shop.db, not "
            f"{described(url)}"
        )


def make_outbox(
    options: Mapping[str, object],
    settings: Settings,
    plugins: Plugins,
    publisher: Publisher,
    standby: Standby | None,
) -> Outbox | None:
    """Return the outbox that code or settings name, not yet connected; the code's goes first."""
    url, broker = options.get("outbox", settings.outbox), publisher.connection
    if not isinstance(url, (str, BrokerUrl)):
        return None
    backend = open_backend(url, settings, plugins, broker.clock)
    destination: Destination = Forwarding(broker)
    if standby is not None and standby.fallback.consume:
        destination = Detour(broker, standby.spool)
    outbox = Outbox(Connection(backend, clock=broker.clock, events=broker.events), destination)
    publisher.places.append(outbox.place)
    return outbox


@asynccontextmanager
async def opened(outbox: Outbox | None) -> AsyncIterator[None]:
    """Open an outbox, and close it again if the block fails."""
    if outbox is None:
        yield
        return
    await outbox.open()
    try:
        yield
    except BaseException:
        await outbox.close()
        raise
