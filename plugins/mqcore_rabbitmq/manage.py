"""Counting, looking, purging, deleting: what an operator does with queues."""

import asyncio
from collections.abc import Sequence

from pika import spec
from pika.exceptions import ChannelClosedByBroker

from mqcore.spi import Delivery, Entry, QueueCounts
from mqcore_rabbitmq.errors import PRECONDITION_FAILED, closed_by
from mqcore_rabbitmq.layout import Layout
from mqcore_rabbitmq.link import Link
from mqcore_rabbitmq.looking import Pages, Reading, alone
from mqcore_rabbitmq.sender import Sender
from mqcore_rabbitmq.subscription import read
from mqcore_rabbitmq.topology import Admin, missing
from mqcore_rabbitmq.window import Window

__all__ = ["Manager"]

_LOOKS, _BETWEEN = 4, 0.05
"""How often, and after how many seconds, consumers are counted again."""
_HIDDEN = {"quarantine", "temporary"}


class Manager:
    """An operator's requests on one open instance."""

    def __init__(self, sender: Sender, admin: Admin, consuming: Link) -> None:
        self._sender = sender
        self._admin = admin
        self._consuming = consuming
        self._pages = Pages()

    async def count(self, names: Sequence[str] | None, windows: Sequence[Window], now: float) -> list[QueueCounts]:
        """Count the named queues that exist, or all but quarantines and temporary ones.

        AMQP tells what is ready; what we have fetched and not handed out is ready as well. What is leased is what this instance
        has handed out, what is delayed is what it has delayed: of others AMQP tells nothing.
        """
        if names is None:
            await self._sender.refresh([])
            layouts = self._sender.registry.picture.queues.values()
            names = [layout.name for layout in layouts if layout.spec.role not in _HIDDEN]
        families = {name: await self._family(name) for name in names}
        asked = list(dict.fromkeys(queue for family in families.values() for queue in family))
        answers = dict(zip(asked, await self._admin.counts(asked), strict=True))
        found: list[QueueCounts] = []
        for name, family in families.items():
            if answers[name] is None:
                continue
            layout = self._sender.layout(name)
            ours = [it for window in windows if window.alive for it in window.held.values() if it.queue in family]
            leased = sum(held.out for held in ours)
            ready = sum(answer.message_count for queue in family if (answer := answers[queue]) is not None)
            found.append(
                QueueCounts(
                    name=name,
                    role=layout.spec.role if layout else "work",
                    ready=ready + len(ours) - leased,
                    leased=leased,
                    delayed=self._sender.delayed.count(name, now) + self._sender.delayed.count(f"{name}.again", now),
                    dead_letter=layout.spec.dead_letter if layout else None,
                )
            )
        return found

    async def browse(self, queue: str, limit: int, after: str | None, now: float) -> list[Entry]:
        """Show a page of what is ready. Raises `QueueNotFound`."""
        shown = self._pages.shown(queue, after)
        async with alone(self._consuming, queue):
            reading = await self._read(queue, len(shown) + limit)
            try:
                await reading.channel.give_all_back()
            finally:
                await reading.channel.close()
        ttl, before = self._ttl(queue), set(shown)
        fresh = [(key, held) for key, held in reading.found.items() if key not in before]
        fresh = sorted(fresh, key=lambda item: -item[1].level)[:limit]
        entries = [Entry(key, read(held, ttl, now)[0]) for key, held in fresh]
        self._pages.add(queue, shown, [entry.key for entry in entries])
        return entries

    async def take(
        self, queue: str, keys: Sequence[str], generation: bytes, now: float
    ) -> tuple[Window, list[Delivery]]:
        """Hold the named entries that are ready. Raises `QueueNotFound`."""
        async with alone(self._consuming, queue):
            reading = await self._read(queue, None)
            try:
                kept = await reading.keep(keys)
            except BaseException:
                reading.channel.abandon()
                raise
        window = Window(reading.channel, generation)
        deliveries: list[Delivery] = []
        for held in sorted(kept, key=lambda held: held.tag):
            window.add(held)
        for held in kept:
            message, expires = read(held, self._ttl(queue), now)
            held.out = True
            left = None if expires is None else expires - now
            deliveries.append(Delivery(message, window.receipt(held), left, held.redelivered))
        window.out = len(kept)
        if not kept:
            await reading.channel.close()
        return window, deliveries

    async def purge(self, queue: str) -> int:
        """Remove what is ready, in the quarantine too; the number removed. Raises `QueueNotFound`."""
        family = await self._family(queue)
        there = await self._there(queue, family)
        async with self._admin.channel() as channel:
            asked = [channel.ask(spec.Queue.Purge(queue=name)) for name in there]
            return sum([int((await answer).message_count) for answer in asked])

    async def delete(
        self, queue: str, windows: Sequence[Window], *, used: bool, if_empty: bool, if_unused: bool
    ) -> bool:
        """Remove a queue and its quarantine. Raises `QueueNotFound`. `used`: this instance has a consumer.

        Quorum queues know no conditions, so they are asked first. What others hold unsettled is not told: a queue that somebody
        consumes is not taken for empty.
        """
        family = await self._family(queue)
        answers = await self._settled_counts(queue, family)
        held = any(held.queue in family for window in windows if window.alive for held in window.held.values())
        ready = sum(answer.message_count for answer in answers)
        used = used or any(answer.consumer_count for answer in answers)
        if (if_unused and used) or (if_empty and (ready or held or used)):
            return False
        layout = self._sender.layout(queue)
        classic = layout is None or not layout.quorum
        try:
            async with self._admin.channel() as channel:
                for name in family:
                    method = spec.Queue.Delete(
                        queue=name, if_empty=if_empty and classic, if_unused=if_unused and classic, nowait=True
                    )
                    channel.tell(method)
                await channel.ask(spec.Basic.Qos(prefetch_count=0))
        except ChannelClosedByBroker as error:
            if closed_by(error, PRECONDITION_FAILED):
                return False
            raise
        known = self._sender.registry.picture.queues
        self._sender.forget(family)
        await self._sender.registry.append([{"gone": name} for name in (queue, f"{queue}.again") if name in known])
        return True

    async def _settled_counts(self, queue: str, family: Sequence[str]) -> list[spec.Queue.DeclareOk]:
        """Count; a quorum queue may take a moment until it knows that a consumer has gone. Raises `QueueNotFound`."""
        for _ in range(_LOOKS):
            answers = await self._admin.counts(family)
            if answers[0] is None:
                raise missing(queue)
            found = [answer for answer in answers if answer is not None]
            if not any(answer.consumer_count for answer in found):
                break
            await asyncio.sleep(_BETWEEN)
        return found

    async def _family(self, queue: str) -> list[str]:
        """Return the queues of the broker that make a queue and its quarantine."""
        layout = await self._sender.look_up(queue)
        if layout is None:
            return [queue]
        again = self._sender.layout(f"{queue}.again")
        return [*layout.queues, *(again.queues if again is not None and again.spec.role == "quarantine" else ())]

    async def _there(self, queue: str, family: Sequence[str]) -> list[str]:
        """Return those that exist. Raises `QueueNotFound` when the queue itself does not."""
        answers = await self._admin.counts(family)
        if answers[0] is None:
            raise missing(queue)
        return [name for name, answer in zip(family, answers, strict=True) if answer is not None]

    async def _read(self, queue: str, count: int | None) -> Reading:
        """Hold the head of a queue, its highest band first; None: all of it.

        A quorum queue gives out first what was given back to it, and puts that behind what was given back before: only who holds
        all of it leaves the order as it was.
        """
        layout: Layout | None = await self._sender.look_up(queue)
        queues = [queue] if layout is None else list(layout.queues)
        answers = await self._admin.counts(queues)
        if answers[0] is None:
            raise missing(queue)
        ready = {name: answer.message_count for name, answer in zip(queues, answers, strict=True) if answer is not None}
        reading = await Reading.open(self._consuming)
        whole = count is None or (layout is not None and layout.quorum)
        try:
            for name in sorted(ready, key=lambda name: -self._level(layout, name)):
                wanted = ready[name] if whole or count is None else min(ready[name], count - len(reading.found))
                if wanted > 0:
                    await reading.read(name, wanted)
        except BaseException:
            reading.channel.abandon()  # or what was taken out stays with us
            raise
        return reading

    @staticmethod
    def _level(layout: Layout | None, queue: str) -> int:
        if layout is None:
            return 0
        return next((level for level in reversed(range(11)) if layout.band(level) == queue), -1)

    def _ttl(self, queue: str) -> float | None:
        layout = self._sender.layout(queue)
        return layout.spec.ttl if layout is not None else None
