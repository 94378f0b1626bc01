"""Settling: acknowledge at once, or store a successor and acknowledge then (G3).

    settle ─┬─ Ack ───────────► acknowledged
            └─ Move, Release ─► successor stored and confirmed ─► acknowledged, each by itself

Confirms and acknowledgements use two connections, so a successor may be delivered before its source
is acknowledged. A process that dies of the successor then would leave two copies. So this process
does not hand out a successor until the broker has answered that it read the acknowledgement: what
was only written is lost when the process dies.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic

from mqcore.spi import (
    DONE,
    STALE,
    Ack,
    Clock,
    ErrorKind,
    Failed,
    Move,
    Outcome,
    Outgoing,
    Release,
    Settled,
    Settlement,
    Stored,
    Unknown,
)
from mqcore_rabbitmq.confirms import PlannedMessage
from mqcore_rabbitmq.frames import Properties
from mqcore_rabbitmq.layout import Layout
from mqcore_rabbitmq.message_format import HOP, LINEAGE, fit, id_of, released
from mqcore_rabbitmq.plan import Successor
from mqcore_rabbitmq.sender import Sender
from mqcore_rabbitmq.topology import Topology
from mqcore_rabbitmq.unsettled import HeldMessage, Unsettled, read_receipt

__all__ = ["Settler"]

_CopyName = tuple[str, object, object]
"""Id, hop and lineage: they name one stored copy."""
_PROOF_TIMEOUT = 5.0
"""Seconds after which a successor is handed out although the broker has not answered."""


class _Source:
    """A delivery whose successor, or released copy, is being stored."""

    def __init__(self, item: Move | Release, unsettled: Unsettled, held: HeldMessage) -> None:
        self.item, self.unsettled, self.held = item, unsettled, held
        self.successor: _CopyName | None = None
        self.result: Settled = STALE
        held.is_settling = True
        if isinstance(item, Move):
            message = item.to.message
            self.successor = message.id, str(message.hop), message.lineage or None

    def acknowledge(self) -> None:
        """Acknowledge the delivery: its successor is stored."""
        if self.held.is_settling and self.unsettled.holds(self.held):
            self.unsettled.ack(self.held)
            self.result = DONE
        self.held.is_settling = False

    def end(self, outcome: Outcome) -> None:
        """Note how storing the successor ended, unless it is acknowledged already."""
        if not self.held.is_settling:
            return

        if isinstance(outcome, Stored) or not self.unsettled.holds(self.held):
            self.acknowledge()
        elif isinstance(self.item, Release):
            # The broker marks it as redelivered, as after a crash, but it is not lost.
            self.unsettled.give_back(self.held)
            self.result = DONE
        else:
            self.result = outcome


class Settler:
    """Settles the deliveries of one generation of the connection, of all its subscriptions."""

    def __init__(self, sender: Sender, topology: Topology, clock: Clock) -> None:
        self.generation = os.urandom(4)
        self.unsettled: dict[int, Unsettled] = {}
        """By the serial of their channel."""
        self._sender = sender
        self._topology = topology
        self._clock = clock
        self._deferred: dict[_CopyName, list[Callable[[], None]]] = {}
        """Successors that must not be handed out yet, and what to call when they may."""
        self._proofs: set[asyncio.Task[None]] = set()

    async def settle(self, batch: Sequence[Settlement], timeout: float) -> list[Settled]:
        """Settle; an answer for each, in order."""
        results: list[Settled] = [STALE] * len(batch)
        sources: dict[int, _Source] = {}

        for at, item in enumerate(batch):
            found = self._find(item.receipt)
            if found is None:
                continue
            unsettled, held = found
            if isinstance(item, Ack):
                unsettled.ack(held)
                results[at] = DONE
            else:
                sources[at] = _Source(item, unsettled, held)

        if sources:
            await self._move(list(sources.values()), timeout)
        for at, source in sources.items():
            results[at] = source.result
        return results

    async def _move(self, sources: Sequence[_Source], timeout: float) -> None:
        """Store successors and released copies; then let successors through after the proof."""
        try:
            await self._store(sources, timeout)
        finally:
            for source in sources:
                source.held.is_settling = False
            moved = [source for source in sources if source.successor is not None]
            proof = asyncio.create_task(self._let_successors_in(moved))
            self._proofs.add(proof)
            proof.add_done_callback(self._proofs.discard)

    async def _let_successors_in(self, moved: Sequence[_Source]) -> None:
        """Hand out successors once the broker has read the acknowledgements of the sources (G3)."""
        with suppress(Exception):  # a lost channel returns its sources and drops what waits here
            async with asyncio.timeout(_PROOF_TIMEOUT):
                channels = {source.unsettled for source in moved}
                await asyncio.gather(*(unsettled.prove() for unsettled in channels))

        for source in moved:
            if source.successor is not None:
                for take_in in self._deferred.pop(source.successor, ()):
                    take_in()

    def _find(self, receipt: bytes) -> tuple[Unsettled, HeldMessage] | None:
        """Return the delivery of a receipt, or None when it is not ours any more."""
        serial, tag = read_receipt(receipt, self.generation)
        unsettled = self.unsettled.get(serial)
        if unsettled is None or not unsettled.alive:
            return None

        held = unsettled.held.get(tag)
        if held is None or not held.is_out or held.is_settling:
            return None
        return unsettled, held

    async def _store(self, sources: Sequence[_Source], timeout: float) -> None:
        """Store successors and released copies, and acknowledge the source of each at once."""
        until = monotonic() + timeout
        for source in sources:
            if source.successor is not None:
                self._deferred.setdefault(source.successor, [])

        with suppress(Exception):  # a lost channel or a silent broker: the next steps report it
            async with asyncio.timeout(timeout / 2):
                releasing = {it.unsettled for it in sources if isinstance(it.item, Release)}
                await asyncio.gather(*(unsettled.pause() for unsettled in releasing))

        now = self._clock.now()
        successors = [self._successor(source.item, source.held) for source in sources]
        outcomes = await self._send(sources, successors, until, now)

        # A full queue refuses released copies too. These may exceed the bound (G12).
        refused = [at for at, outcome in enumerate(outcomes) if _is_full(sources[at].item, outcome)]
        if refused:
            full = [sources[at] for at in refused]
            copies = [self._copy(source.held, refusable=False) for source in full]
            again = await self._send(full, copies, until, now)
            for at, outcome in zip(refused, again, strict=True):
                outcomes[at] = outcome

        for source, outcome in zip(sources, outcomes, strict=True):
            source.end(outcome)
        # Written at once: a process that dies after our answer leaves no source behind.
        for unsettled in {source.unsettled for source in sources}:
            unsettled.flush()

    async def _send(
        self,
        sources: Sequence[_Source],
        items: Sequence[Outgoing | PlannedMessage],
        until: float,
        now: float,
    ) -> list[Outcome]:
        """Store these, and acknowledge the source of each as soon as it is confirmed."""
        try:
            return await self._sender.publish(
                items,
                until - monotonic(),
                now,
                moved=True,
                stored=lambda at: sources[at].acknowledge(),
            )
        except Exception as error:  # noqa: BLE001 - nothing is known to be stored, so no source may go
            return [Unknown(f"storing the successor failed: {error!r}", error)] * len(items)

    def _successor(self, item: Move | Release, held: HeldMessage) -> Outgoing | PlannedMessage:
        """Return what a Move stores, or the marked copy that a release stores."""
        if isinstance(item, Move):
            to = item.to
            return Successor(to.to, to.message, to.delay, to.ttl, held.properties)
        return self._copy(held, refusable=True)

    def _copy(self, held: HeldMessage, *, refusable: bool) -> PlannedMessage:
        """Return the marked copy of a released message.

        It goes to its own queue and counts against the bound of that, or, if it must not be
        refused, to the private queue beside it.
        """
        layout = self._topology.layout(held.queue)
        due = layout.due if layout is not None else None
        queue = held.queue if refusable or due is None else due
        priority = _native_priority(held, layout)
        properties = released(held.properties, held.expires, held.takeovers, priority)
        fit(properties, self._topology.rpc.server.room)
        refusal = "full" if due not in (None, queue) else ""
        return PlannedMessage("", queue, properties, held.body, queue, refusal)

    def defers(self, properties: Properties, take_in: Callable[[], None]) -> bool:
        """Whether a delivery is a successor that must wait; `take_in` is called when it may go."""
        if not self._deferred:
            return False

        headers = properties.headers or {}
        hop, lineage = headers.get(HOP), headers.get(LINEAGE)
        if not isinstance(hop, str) or not isinstance(lineage, (str, type(None))):
            return False  # a plain client's headers may have any type

        waiting = self._deferred.get((id_of(properties), hop, lineage))
        if waiting is None:
            return False
        waiting.append(take_in)
        return True


def _is_full(item: Move | Release, outcome: Outcome) -> bool:
    return (
        isinstance(item, Release) and isinstance(outcome, Failed) and outcome.kind is ErrorKind.FULL
    )


def _native_priority(held: HeldMessage, layout: Layout | None) -> int | None:
    """Return AMQP's own priority for a released copy. `layout` is None for a foreign queue.

    A quorum queue of 4.0 and later delivers a priority above 4 before no priority. Messages of ours
    have none there, because each level is a queue of its own.
    """
    if layout is None:
        return held.properties.priority
    return None if layout.quorum else held.level
