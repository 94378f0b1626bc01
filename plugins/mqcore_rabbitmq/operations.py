"""Counting, browsing, purging and deleting: what an operator does with queues."""

import asyncio
from collections.abc import Sequence
from functools import partial

from pika import spec
from pika.exceptions import ChannelClosedByBroker

from mqcore.spi import HIDDEN_ROLES, Delivery, Entry, QueueCounts, quarantine_of
from mqcore_rabbitmq.browse import QueueReader, Snapshot, Snapshots, open_reader
from mqcore_rabbitmq.errors import PRECONDITION_FAILED, closed_by
from mqcore_rabbitmq.layout import LOST
from mqcore_rabbitmq.settling import Settler
from mqcore_rabbitmq.topology import Topology
from mqcore_rabbitmq.unsettled import HeldMessage, Unsettled

__all__ = ["Operations"]

_COUNTS, _COUNT_INTERVAL = 4, 0.05
"""How often consumers are counted again, and the seconds between."""
_CHUNK = 200
"""Messages of the first read in a search for keys; each further read doubles it."""
_MOST = 50_000
"""The most messages of a queue that one read holds."""
_LAST_WRITE = 0.1
"""Seconds within which the last acknowledgements of a channel are written."""


class Operations:
    """Serves an operator's requests on one open instance."""

    def __init__(self, topology: Topology, settler: Settler) -> None:
        self._topology = topology
        self._rpc = topology.rpc
        self._settler = settler
        self._snapshots = Snapshots()

    async def count(self, names: Sequence[str] | None) -> list[QueueCounts]:
        """Count the named queues that exist, or all but quarantines and temporary ones.

        AMQP reports what is ready. What this instance has fetched and not handed out is ready as
        well. AMQP does not report how many messages are unsettled or delayed.
        """
        if names is None:
            await self._topology.refresh()
            layouts = self._topology.registry.picture.queues.values()
            names = [layout.name for layout in layouts if layout.spec.role not in HIDDEN_ROLES]
            if any(it.message_count for it in (await self._rpc.counts([LOST])).values()):
                names.append(LOST)

        families = {name: await self._family(name) for name in names}
        answers = await self._rpc.counts(queue for family in families.values() for queue in family)

        found: list[QueueCounts] = []
        for name, family in families.items():
            if name not in answers:
                continue
            layout = self._topology.layout(name)
            fetched = sum(not held.is_out for held in self._held(family))
            ready = sum(answers[queue].message_count for queue in family if queue in answers)
            found.append(
                QueueCounts(
                    name=name,
                    role=layout.spec.role if layout else "work",
                    ready=ready + fetched,
                    dead_letter=layout.spec.dead_letter if layout else None,
                    spec=layout.spec if layout else None,
                )
            )
        return found

    async def browse(self, queue: str, limit: int, after: str | None, now: float) -> list[Entry]:
        """Show a page of what is ready. Raises `QueueNotFound`.

        The first page is read alone, the second one reads the whole queue, and further pages come
        from that snapshot: a hundred pages take two reads.
        """
        snapshot = None if after is None else self._snapshots.find(queue, after)

        if after is None:
            entries, layout = await self._read_entries(queue, limit), self._topology.layout(queue)
            is_whole = layout is not None and layout.quorum  # always read to its end
            snapshot = Snapshot(entries if is_whole else entries[:limit], is_whole=is_whole)
            self._snapshots.add(queue, snapshot)
        elif snapshot is None or not snapshot.is_whole:
            shown = () if snapshot is None else snapshot.until(after)
            shown_keys = {key for key, _ in shown}
            rest = [it for it in await self._read_entries(queue, None) if it[0] not in shown_keys]
            snapshot = Snapshot([*shown, *rest], is_whole=True)
            self._snapshots.add(queue, snapshot)

        ttl = self._topology.ttl(queue)
        return [Entry(key, held.message(ttl, now)) for key, held in snapshot.page(after, limit)]

    async def _read_entries(self, queue: str, count: int | None) -> list[tuple[str, HeldMessage]]:
        """Return the head of a queue, or all of it, in the order of delivery."""
        async with open_reader(self._rpc.link, queue) as reader:
            await self._read(reader, queue, count)
        return sorted(reader.messages.items(), key=lambda item: -item[1].level)

    async def take(self, queue: str, keys: Sequence[str], now: float) -> list[Delivery]:
        """Hold the entries with these keys that are ready. Raises `QueueNotFound`."""
        async with open_reader(self._rpc.link, queue) as reader:
            await self._read(reader, queue, None, until=keys)
            kept = await reader.keep(keys)
        if not kept:
            return []
        unsettled = Unsettled(reader.channel, self._settler.generation)
        for held in sorted(kept, key=lambda held: held.tag):
            unsettled.add(held)
        self._settler.unsettled[unsettled.channel.serial] = unsettled
        unsettled.on_room = partial(self._drop_when_empty, unsettled)
        return [unsettled.hand_out(held, self._topology.ttl(queue), now) for held in kept]

    def _drop_when_empty(self, unsettled: Unsettled) -> None:
        """Close the channel of taken messages once all are settled."""
        if not unsettled.held:
            self._settler.unsettled.pop(unsettled.channel.serial, None)
            asyncio.get_running_loop().call_later(_LAST_WRITE, unsettled.channel.abandon)

    async def purge(self, queue: str) -> int:
        """Remove ready messages, in the quarantine too, and return their number.

        Raises `QueueNotFound`.
        """
        there = await self._rpc.count(queue, await self._family(queue))
        answers = await self._rpc.run(*(spec.Queue.Purge(queue=name) for name in there))
        return sum(int(answer.message_count) for answer in answers)

    async def delete(self, queue: str, *, used: bool, if_empty: bool) -> bool:
        """Remove a queue and its quarantine.

        Raises `QueueNotFound`. `used`: this instance has a consumer.

        Quorum queues refuse the condition `if-empty`, so their counts are read first. AMQP does not
        report what other consumers hold unsettled, so a queue that has consumers is not taken for
        empty.
        """
        family = await self._family(queue)
        answers = await self._settled_counts(queue, family)
        ready = sum(answer.message_count for answer in answers)
        used = used or any(answer.consumer_count for answer in answers)
        if if_empty and (ready or self._held(family) or used):
            return False

        layout = self._topology.layout(queue)
        if_empty = if_empty and (layout is None or not layout.quorum)
        names = [*family, quarantine_of(queue)]
        # First, because a consumer elsewhere declares the queue again as soon as it is gone.
        if not if_empty:
            await self._topology.forget(names)
        try:
            await self._rpc.run(
                *(spec.Queue.Delete(queue=name, if_empty=if_empty) for name in family)
            )
        except ChannelClosedByBroker as error:
            if closed_by(error, PRECONDITION_FAILED):
                return False
            raise
        if if_empty:
            await self._topology.forget(names)
        return True

    async def _settled_counts(
        self, queue: str, family: Sequence[str]
    ) -> list[spec.Queue.DeclareOk]:
        """Count; a quorum queue may take a moment until it knows that a consumer has gone.

        Raises `QueueNotFound`.
        """
        for _ in range(_COUNTS):
            found = list((await self._rpc.count(queue, family)).values())
            if not any(answer.consumer_count for answer in found):
                break
            await asyncio.sleep(_COUNT_INTERVAL)
        return found

    async def _family(self, queue: str) -> list[str]:
        """Return the queues of the broker that make a queue and its quarantine."""
        await self._topology.look_up(queue)
        layout = self._topology.layout(queue)
        if layout is None:
            return [queue]
        quarantine = self._topology.layout(quarantine_of(queue))
        if quarantine is None or quarantine.spec.role != "quarantine":
            return [*layout.queues]
        return [*layout.queues, *quarantine.queues]

    def _held(self, family: Sequence[str]) -> list[HeldMessage]:
        """Return the messages of these queues that this instance holds."""
        groups = [unsettled for unsettled in self._settler.unsettled.values() if unsettled.alive]
        return [
            held for unsettled in groups for held in unsettled.held.values() if held.queue in family
        ]

    async def _read(
        self, reader: QueueReader, queue: str, count: int | None, *, until: Sequence[str] = ()
    ) -> None:
        """Hold the first `count` messages of a queue, its highest band first; None: all of them.

        `until`: stop when these keys are found, if that keeps the order. Raises `QueueNotFound`.

        A quorum queue delivers returned messages first, and puts them behind those that were
        returned before. Only a reader that holds all of them keeps the order.
        """
        await self._topology.look_up(queue)
        layout = self._topology.layout(queue)
        queues = (queue,) if layout is None else layout.descending
        ready = {
            name: it.message_count for name, it in (await self._rpc.count(queue, queues)).items()
        }
        whole = (count is None and not until) or (layout is not None and layout.quorum)
        limit = _MOST if whole or count is None else count
        chunk = limit if whole or not until else max(len(until), _CHUNK)

        for name in queues:
            left = ready.get(name, 0)
            while left > 0 and len(reader.messages) < limit and not reader.has(until):
                wanted = min(left, chunk, limit - len(reader.messages))
                if not await reader.read(
                    name, wanted, limit - len(reader.messages) if whole else 0
                ):
                    break
                chunk *= 2
                # Messages that came or returned since the count are read too.
                left = await reader.ready(name) if limit > wanted else 0
