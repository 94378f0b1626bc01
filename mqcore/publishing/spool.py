"""`Spool`: the queues in which publishes wait while their broker is away.

    publish ─► Lane ─► one queue of parcels for each target ─► Relay ─► the broker

A target, a queue or a router, has a *lane*: its publishes in the order in which they came. As soon
as one of them goes to the spool, all later ones do, until the lane is empty: none overtakes another
(G9). A relay for each lane empties it while the broker is there.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from mqcore.connection.tasks import begin_later
from mqcore.errors import (
    ConnectionLost,
    MqcoreError,
    QueueNotFound,
    TopologyMismatch,
    UnsupportedFeature,
)
from mqcore.publishing.parcel import enclose
from mqcore.publishing.relay import Relay, check_relays, relay_specs
from mqcore.rules.redact import describe_error
from mqcore.spi import (
    ErrorKind,
    Failed,
    Stored,
    SupportsAlter,
    SupportsBrowse,
    SupportsCount,
    Unknown,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterator, Sequence

    from mqcore.connection.connection import Connection
    from mqcore.events import Event, Events
    from mqcore.publishing.destination import Destination
    from mqcore.publishing.parcel import Parcel
    from mqcore.spi import Outcome, QueueCounts

__all__ = ["DEAD", "Lane", "Spool", "lane_name"]

QUEUES, ROUTES = "mq.spool.", "mq.spool-routes."
"""How the names of lanes begin: of queues, and of routers."""
DEAD = "mq.spooled.dlq"
"""What the broker refused for good. A redrive puts it back into its lane."""
_LOOK = 5.0
"""Seconds between two looks at what the spool holds, other processes' messages included."""
_HOLD = 1.0
"""Seconds for which the publishes of a lane may wait while its last parcels are relayed."""
_SOON = 0.05
_BATCH = 500
_FORWARDED = {"message.relayed", "message.dead", "relay.held", "settle.failed"}


def lane_name(target: str, *, is_router: bool) -> str:
    """Return the name of the queue in which the publishes to a target wait."""
    return f"{ROUTES if is_router else QUEUES}{target}"


class _Place:
    """One publish in its lane: with `parcels` as soon as it is to be spooled."""

    __slots__ = ("future", "is_taken", "parcels", "timeout")

    def __init__(self) -> None:
        self.parcels: Sequence[Parcel] | None = None
        self.future: asyncio.Future[list[Outcome]] | None = None
        self.timeout = 0.0
        self.is_taken = False


class Lane:
    """The publishes to one target, in the order in which they came."""

    def __init__(self, spool: Spool, name: str) -> None:
        """Nothing waits in it yet, as far as is known."""
        self.name = name
        self.is_spooled = False
        """Whether something may wait in the spool, so that later publishes must not overtake it."""
        self.depth, self.since = 0, 0.0
        """How many messages wait, and since when; as far as is known without asking."""
        self._spool = spool
        self._clock = spool.connection.clock
        self._line: dict[_Place, None] = {}
        self._held = 0
        self._gate = asyncio.Lock()
        self._is_declared = False
        self._writer: asyncio.Task[None] | None = None
        self._relay: asyncio.Task[None] | None = None

    async def pass_gate(self, timeout: float) -> None:
        """Wait while the last parcels are relayed, in turn. Usually there is nothing to wait for.

        Raises `TimeoutError`.
        """
        if not self._held:
            return
        self._held += 1
        try:
            async with self._clock.timeout(timeout), self._gate:
                pass
        finally:
            self._held -= 1

    @contextmanager
    def place(self) -> Iterator[_Place]:
        """Return a context for one publish: later ones are spooled after it, if it is."""
        place = _Place()
        self._line[place] = None
        try:
            yield place
        finally:
            if self._line.pop(place, False) is None:
                self._write_soon()

    async def store(
        self, place: _Place, parcels: Sequence[Parcel], timeout: float
    ) -> Sequence[Outcome]:
        """Put parcels into the spool, after those of earlier publishes; return their outcomes."""
        place.parcels, place.timeout = parcels, timeout
        place.future = asyncio.get_running_loop().create_future()
        self.expect()
        self._write_soon()

        try:
            async with self._clock.timeout(timeout):
                return await place.future
        except TimeoutError:
            text = f"the spool did not store it within {timeout:g} s"
            outcome = Unknown(text) if place.is_taken else Failed(ErrorKind.TRANSIENT, text)
            return [outcome] * len(parcels)

    def expect(self) -> None:
        """Note that something waits in the spool, or will."""
        if not self.is_spooled:
            self.is_spooled, self.since = True, self._clock.now()
        if self._relay is None:
            self._relay = begin_later(self._relay_all())

    def _write_soon(self) -> None:
        if self._writer is None and self._line:
            self._writer = begin_later(self._write())

    def _take(self) -> list[_Place]:
        """Take the publishes at the head of the line that are to be spooled."""
        taken: list[_Place] = []
        for place in self._line:
            if place.parcels is None or len(taken) >= _BATCH:
                break  # it is on its way to the broker: what came later waits for its end
            taken.append(place)
        for place in taken:
            place.is_taken = True
            del self._line[place]
        return taken

    async def _write(self) -> None:
        try:
            while taken := self._take():
                parcels = [parcel for place in taken for parcel in place.parcels or ()]
                timeout = max(place.timeout for place in taken)
                outcomes = iter(await self._store(parcels, timeout))
                for place in taken:
                    own = [next(outcomes) for _ in place.parcels or ()]
                    if place.future is not None and not place.future.done():
                        place.future.set_result(own)
        finally:
            self._writer = None

    async def _store(self, parcels: Sequence[Parcel], timeout: float) -> Sequence[Outcome]:
        """Store parcels in the order given. Never raises."""
        connection = self._spool.connection
        try:
            await self.declare()
            batch = [enclose(parcel, self.name) for parcel in parcels]
            outcomes = await connection.publish(batch, timeout)
        except MqcoreError as error:
            return [Failed(ErrorKind.TRANSIENT, describe_error(error), error)] * len(parcels)

        self.depth += sum(type(outcome) is Stored for outcome in outcomes)
        if any(_is_missing(outcome) for outcome in outcomes):
            self._is_declared = False  # an operator has deleted it: the next publish declares it
        return outcomes

    async def declare(self) -> None:
        """Declare the lane's queue, once."""
        if self._is_declared:
            return
        connection, limit = self._spool.connection, self._spool.max_length
        specs = relay_specs(self.name, max_length=limit, dead_letter=DEAD)
        try:
            await connection.declare(specs)
        except TopologyMismatch:
            # the limit is another one than when the spool was used last
            if not isinstance(connection.backend, SupportsAlter):
                raise
            await connection.alter(self.name, {"max_length": limit})
            await connection.declare(specs)
        self._is_declared = True

    async def declare_again(self) -> None:
        """Declare the lane's queue, which may have been deleted."""
        self._is_declared = False
        await self.declare()

    async def _relay_all(self) -> None:
        """Relay until the lane is empty; waits while the broker is away."""
        relay = Relay(
            self._spool.connection,
            self.name,
            self._spool.destination,
            dead_letter=DEAD,
            full_patience=None,
        )
        try:
            while True:
                await relay.drain()
                if await self._close(relay):
                    return
                await self._clock.sleep(_SOON)
        except ConnectionLost:
            return  # closed for good
        finally:
            self._relay = None

    async def _close(self, relay: Relay) -> bool:
        """Relay the last parcels while publishes wait, so that they may go to the broker again."""
        self._held += 1
        try:
            with suppress(TimeoutError):
                async with self._gate, self._clock.timeout(_HOLD):
                    while self._writer is not None:
                        await asyncio.wait([self._writer])
                    await relay.drain()
                    if not any(place.parcels is not None for place in self._line):
                        self.is_spooled, self.depth = False, 0
                        return True
        finally:
            self._held -= 1
        return False

    async def stop(self) -> None:
        """Stop relaying; what waits is relayed by the next process that opens the spool."""
        if self._relay is not None:
            self._relay.cancel()
            await asyncio.gather(self._relay, return_exceptions=True)

    async def flush(self) -> None:
        """Wait for the answers to what is being stored."""
        if self._writer is not None:
            await asyncio.wait([self._writer])


class Spool:
    """All lanes of a broker's fallback, in one store."""

    def __init__(
        self, connection: Connection, destination: Destination, events: Events, max_length: int
    ) -> None:
        """`connection` is the store's, with events of its own; `events` are the broker's."""
        self.connection = connection
        self.destination = destination
        self.max_length = max_length
        self.error: Exception | None = None
        """Why the spool cannot be used, as far as `connection` does not know."""
        self._events = events
        self._lanes: dict[str, Lane] = {}
        self._watching: asyncio.Task[None] | None = None
        connection.events.listen(self._on_event)

    @property
    def is_usable(self) -> bool:
        """Whether parcels can be stored now."""
        return self.error is None and self.connection.connected

    @property
    def why_unusable(self) -> str:
        """Why parcels cannot be stored, or an empty text."""
        error = self.error or self.connection.error
        return "" if self.is_usable or error is None else describe_error(error)

    @property
    def depth(self) -> int:
        """How many messages wait, as far as is known without asking."""
        return sum(lane.depth for lane in self._lanes.values())

    @property
    def age(self) -> float:
        """For how many seconds the oldest of them has waited."""
        since = [lane.since for lane in self._lanes.values() if lane.depth]
        return max(self.connection.clock.now() - min(since), 0.0) if since else 0.0

    async def open(self) -> None:
        """Open the store, and find what waits in it.

        A store that cannot be opened now is tried again later: the broker does not depend on it.
        Raises `UnsupportedFeature` for a backend that cannot be a spool.
        """
        try:
            await self.connection.open()
        except MqcoreError as error:
            self.error = error
            self._events.emit("spool.failed", error=describe_error(error))
            return

        try:
            check_relays(self.connection, "a fallback")
        except UnsupportedFeature:
            await self.connection.close()
            raise
        with suppress(MqcoreError):  # it is looked at again
            await self._look()

    def start(self) -> None:
        """Begin to look for what waits, also what other processes have left."""
        self._watching = begin_later(self._watch())

    async def close(self, limit: float | None = None) -> None:
        """Stop relaying, answer what is being stored, and close the store.

        With `limit` a store that does not answer is left after so many seconds (G13). Its relays'
        claims end with their lease.
        """
        loop = asyncio.get_running_loop()
        until = None if limit is None else loop.time() + limit

        def left() -> float | None:
            return None if until is None else max(until - loop.time(), 0.0)

        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching], timeout=left())
        lanes = list(self._lanes.values())
        await _ended([lane.stop() for lane in lanes], None if limit is None else limit / 2)
        flushing = asyncio.gather(*(lane.flush() for lane in lanes))
        await self.connection.close(left())
        await _ended([flushing], left())

    def lane(self, target: str, *, is_router: bool) -> Lane:
        """Return the lane of a queue or router."""
        return self._lane(lane_name(target, is_router=is_router))

    def _lane(self, name: str) -> Lane:
        lane = self._lanes.get(name)
        if lane is None:
            lane = self._lanes[name] = Lane(self, name)
        return lane

    async def declare(self, queues: Sequence[str]) -> None:
        """Declare the lanes of queues, for consumers of the spool, also one that was deleted."""
        for name in queues:
            await self.lane(name, is_router=False).declare_again()

    async def _watch(self) -> None:
        clock = self.connection.clock
        while True:
            # at once: a relay that began before the broker was connected to has ended
            if self.is_usable:
                with suppress(MqcoreError):
                    await self._look()
            await clock.sleep(_LOOK)
            if self.error is not None:
                await self._open_again()

    async def _open_again(self) -> None:
        try:
            await self.connection.open()
        except MqcoreError as error:
            self.error = error
        else:
            self.error = None

    async def _look(self) -> None:
        """Note what waits in the spool."""
        backend = self.connection.backend
        if not isinstance(backend, SupportsCount):
            return
        for lane in self._lanes.values():
            if lane.is_spooled:
                lane.expect()
        found = await self.connection.call("counting the spool", lambda: backend.count(None))
        for counts in found:
            if counts.name.startswith((QUEUES, ROUTES)) and counts.role == "relay":
                await self._note(self._lane(counts.name), counts)

    async def _note(self, lane: Lane, counts: QueueCounts) -> None:
        lane.depth = counts.ready + (counts.leased or 0)
        if not lane.depth:
            return  # a retry that is not due yet holds up no publish; it is noted when it is due
        lane.expect()
        backend = self.connection.backend
        if isinstance(backend, SupportsBrowse):
            with suppress(QueueNotFound):
                entries = await self.connection.call(
                    f"looking at {lane.name!r}", lambda: backend.browse(lane.name, 1)
                )
                if entries and (stored := entries[0].message.published_at) is not None:
                    lane.since = stored

    def _on_event(self, event: Event) -> None:
        if event.name in _FORWARDED:
            self._events.emit(
                event.name, event.queue, event.message_id, event.attempt, **event.fields
            )
        elif event.name == "connection.lost":
            self._events.emit("spool.failed", error=event.fields.get("error", ""))


async def _ended(work: Sequence[Awaitable[object]], limit: float | None) -> None:
    """Wait until all of it has ended, and cancel what has not after `limit` seconds."""
    tasks = [asyncio.ensure_future(each) for each in work]
    if tasks:
        _, pending = await asyncio.wait(tasks, timeout=limit)
        for task in pending:
            task.cancel()


def _is_missing(outcome: Outcome) -> bool:
    return isinstance(outcome, Failed) and outcome.kind is ErrorKind.NOT_FOUND
