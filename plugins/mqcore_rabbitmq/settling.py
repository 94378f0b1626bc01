"""Letting go: acknowledgements at once, and what needs a successor when that is stored (G3).

    settle ─┬─ Ack ───────────────────────────────────────────► acknowledged
            └─ Move, Release ─► stored, confirmed one by one ──► acknowledged, each as soon as its own successor is there

Confirm and acknowledgement go by two connections, so a successor may be delivered before its source
has been let go. Whoever died of it then would leave two copies. So nobody in this process gets the
successor until the broker has answered that it has read the acknowledgement: what was only written
is lost when the process dies with something unread.
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
from mqcore_rabbitmq.link import written
from mqcore_rabbitmq.message_format import HOP, LINEAGE, fit, id_of, released
from mqcore_rabbitmq.plan import Successor
from mqcore_rabbitmq.sender import Sender
from mqcore_rabbitmq.topology import Topology
from mqcore_rabbitmq.unsettled import HeldMessage, Unsettled, read_receipt

__all__ = ["Settler"]

_Name = tuple[str, object, object]
_PROOF = 5.0
"""Seconds after which a successor is handed out although the broker has not answered."""


class _PendingSource:
    """A source whose successor is being stored, or the copy of it that a release stores; `name` is the successor's."""

    def __init__(self, item: Move | Release, unsettled: Unsettled, held: HeldMessage) -> None:
        self.item, self.unsettled, self.held = item, unsettled, held
        self.name: _Name | None = None
        self.result: Settled = STALE
        held.busy = True
        if isinstance(item, Move):
            message = item.to.message
            self.name = message.id, str(message.hop), message.lineage or None

    def let_go(self) -> None:
        """Its successor is stored."""
        if self.held.busy and self.unsettled.holds(self.held):
            self.unsettled.ack(self.held)
            self.result = DONE
        self.held.busy = False

    def answer(self, outcome: Outcome) -> None:
        """What came of storing it; `let_go` may have been called before."""
        if not self.held.busy:
            return
        if isinstance(outcome, Stored) or not self.unsettled.holds(self.held):
            self.let_go()
        elif isinstance(self.item, Release):
            self.unsettled.give_back(self.held)  # as taken over, as after a crash, and not lost
            self.result = DONE
        else:
            self.result = outcome


class Settler:
    """Settles what one generation of the connection has handed out, whichever subscription it was."""

    def __init__(self, sender: Sender, topology: Topology, clock: Clock) -> None:
        self.generation = os.urandom(4)
        self.unsettled: dict[int, Unsettled] = {}
        """By their channel."""
        self._sender = sender
        self._topology = topology
        self._clock = clock
        self._on_their_way: dict[_Name, list[Callable[[], None]]] = {}
        """Successors, by id, hop and lineage, and who waits to take them in."""
        self._letting_in: set[asyncio.Task[None]] = set()

    async def settle(self, batch: Sequence[Settlement], timeout: float) -> list[Settled]:
        """Settle; an answer for each, in order."""
        results: list[Settled] = [STALE] * len(batch)
        leaving: dict[int, _PendingSource] = {}
        for at, item in enumerate(batch):
            found = self._find(item.receipt)
            if found is None:
                continue
            if isinstance(item, Ack):
                found[0].ack(found[1])
                results[at] = DONE
            else:
                leaving[at] = _PendingSource(item, *found)
        if leaving:
            try:
                await self._store(list(leaving.values()), timeout)
            finally:
                for it in leaving.values():
                    it.held.busy = False
                letting_in = asyncio.create_task(
                    self._let_in([it for it in leaving.values() if it.name is not None])
                )
                self._letting_in.add(letting_in)
                letting_in.add_done_callback(self._letting_in.discard)
            for at, it in leaving.items():
                results[at] = it.result
        return results

    async def _let_in(self, moved: Sequence[_PendingSource]) -> None:
        """Hand out successors once their sources are gone for certain: who dies of one leaves no other copy (G3)."""
        with suppress(
            Exception
        ):  # a channel that is lost takes its sources back, and what waits here with them
            async with asyncio.timeout(_PROOF):
                await asyncio.gather(
                    *(unsettled.prove() for unsettled in {it.unsettled for it in moved})
                )
        for it in moved:
            self._arrived(it.name)

    def _find(self, receipt: bytes) -> tuple[Unsettled, HeldMessage] | None:
        """Return what a receipt stands for, None when it is not ours any more."""
        serial, tag = read_receipt(receipt, self.generation)
        unsettled = self.unsettled.get(serial)
        held = unsettled.held.get(tag) if unsettled is not None and unsettled.alive else None
        return (
            (unsettled, held)
            if unsettled is not None and held is not None and held.out and not held.busy
            else None
        )

    async def _store(self, leaving: Sequence[_PendingSource], timeout: float) -> None:
        """Store successors and given-back copies, and let go of the source of each at once."""
        until = monotonic() + timeout
        for it in leaving:
            if it.name is not None:
                self._on_their_way.setdefault(it.name, [])
        with suppress(
            Exception
        ):  # a channel that is lost, or a broker that does not answer: what follows tells
            async with asyncio.timeout(timeout / 2):
                releasing = {it.unsettled for it in leaving if isinstance(it.item, Release)}
                await asyncio.gather(*(unsettled.pause() for unsettled in releasing))
        now = self._clock.now()
        outcomes = await self._send(
            leaving, [self._successor(it.item, it.held) for it in leaving], until, now
        )

        # A full queue refuses what is given back to it, and that may exceed the bound (G12).
        refused = [at for at, outcome in enumerate(outcomes) if _is_full(leaving[at].item, outcome)]
        if refused:
            full = [leaving[at] for at in refused]
            copies = [self._copy(it.held, refusable=False) for it in full]
            for at, outcome in zip(
                refused, await self._send(full, copies, until, now), strict=True
            ):
                outcomes[at] = outcome

        for it, outcome in zip(leaving, outcomes, strict=True):
            it.answer(outcome)
        for unsettled in {it.unsettled for it in leaving}:
            unsettled.flush()
        await written()  # who dies after our answer leaves no source behind

    async def _send(
        self,
        leaving: Sequence[_PendingSource],
        items: Sequence[Outgoing | PlannedMessage],
        until: float,
        now: float,
    ) -> list[Outcome]:
        """Store these, and let go of the source of each that is confirmed."""

        def stored(at: int) -> None:
            leaving[at].let_go()

        try:
            return list(
                await self._sender.publish(
                    items, until - monotonic(), now, moved=True, stored=stored
                )
            )
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing is known to be stored, so no source may go
            return [Unknown(f"storing the successor failed: {error!r}", error)] * len(items)

    def _successor(self, item: Move | Release, held: HeldMessage) -> Outgoing | PlannedMessage:
        """Return what a Move stores, or the marked copy that a release stores."""
        if isinstance(item, Move):
            to = item.to
            return Successor(to.to, to.message, to.delay, to.ttl, held.properties)
        return self._copy(held, refusable=True)

    def _copy(self, held: HeldMessage, *, refusable: bool) -> PlannedMessage:
        """Return the marked copy of what is given back: for its own queue, where it counts against the bound if there is one.

        What must not be refused goes to the queue's private one.
        """
        layout = self._topology.layout(held.queue)
        due = layout.due if layout is not None else None
        queue = held.queue if refusable or due is None else due
        given = released(
            held.properties, held.expires, held.takeovers, _native_priority(held, layout)
        )
        fit(given, self._topology.rpc.server.room)
        return PlannedMessage(
            "", queue, given, held.body, queue, "full" if due not in (None, queue) else ""
        )

    def defers(self, properties: Properties, take_in: Callable[[], None]) -> bool:
        """Whether a delivery is a successor whose source is still there; `take_in` is called when it is gone, or stays for good."""
        if not self._on_their_way:
            return False
        headers = properties.headers or {}
        hop, lineage = headers.get(HOP), headers.get(LINEAGE)
        if not isinstance(hop, str) or not isinstance(lineage, (str, type(None))):
            return False  # a plain client's, and of any type
        waiting = self._on_their_way.get((id_of(properties), hop, lineage))
        if waiting is None:
            return False
        waiting.append(take_in)
        return True

    def _arrived(self, name: _Name | None) -> None:
        if name is not None:
            for take_in in self._on_their_way.pop(name, ()):
                take_in()


def _is_full(item: Move | Release, outcome: Outcome) -> bool:
    return (
        isinstance(item, Release) and isinstance(outcome, Failed) and outcome.kind is ErrorKind.FULL
    )


def _native_priority(held: HeldMessage, layout: Layout | None) -> int | None:
    """Return AMQP's own priority for a message that is given back to this queue (None: not one of ours).

    A quorum queue of 4.0 and later delivers what has one above 4 before what has none, and ours
    have none there: their levels are queues of their own.
    """
    if layout is None:
        return held.properties.priority
    return None if layout.quorum else held.level
