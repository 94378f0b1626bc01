"""Looking into a queue over AMQP, which has no way to look: messages are consumed on a channel of its own and given back.

They keep their places, but the broker marks them as delivered before, so that a consumer takes them
for taken over: BROWSE is declared approximate for it, and what waits in the delay ladder is not
seen at all.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import blake2b
from typing import Any

from pika import spec

from mqcore_rabbitmq.errors import RESOURCE_LOCKED, closed_by
from mqcore_rabbitmq.frames import Properties
from mqcore_rabbitmq.link import Channel, Link
from mqcore_rabbitmq.message_format import HOP, LINEAGE, id_of
from mqcore_rabbitmq.unsettled import HeldMessage

__all__ = ["Pages", "QueueReader", "exclusive_access", "open_reader"]

_PATIENCE, _AGAIN = 10.0, 0.02
"""Seconds to wait for others who look into the same queue, and between two tries."""
_LARGEST_PREFETCH = 65_535
_SILENCE = 0.3
"""Seconds without a message after which the broker is asked how many are left."""
_STUCK = 10.0
"""Seconds without a message, although some are left, after which a look is given up."""
_BACK, _CONSUMED = 5.0, 5
"""Seconds to wait until the queues have back what was looked at, and how many times in a row they must be seen
with a consumer for that to be somebody else's. A quorum queue writes both to its log first, and a
slow disk takes its time: it still counts a consumer of ours that has gone, and counts what is back
only later.
"""
_KEPT, _READERS = 30.0, 4
"""Seconds for which the pages of a queue are remembered, and how many look at one queue side by side.
"""


@asynccontextmanager
async def exclusive_access(link: Link, queue: str) -> AsyncIterator[None]:
    """Be the only one on this broker who looks into a queue: another would see nothing of what is held meanwhile.

    The lock is a queue that only its connection may declare; it goes with the connection, whatever
    happens. Those of one connection take turns. Raises `TimeoutError`.
    """
    lock = f"mq.look.{queue}"
    async with asyncio.timeout(_PATIENCE) as patience, link.turns.setdefault(queue, asyncio.Lock()):
        channel = await _locked(link, lock)
        while channel is None:
            await asyncio.sleep(_AGAIN)
            channel = await _locked(link, lock)
        patience.reschedule(None)
        try:
            yield
        finally:
            channel.send(spec.Queue.Delete(queue=lock, nowait=True))
            await channel.close()


async def _locked(link: Link, lock: str) -> Channel | None:
    """Return the channel that has the lock, None when another connection has it."""
    channel = await link.channel()
    try:
        await channel.request(spec.Queue.Declare(queue=lock, exclusive=True, auto_delete=True))
    except BaseException as error:
        if closed_by(error, RESOURCE_LOCKED):
            return None
        channel.send(
            spec.Queue.Delete(queue=lock, nowait=True)
        )  # nobody waits for the answer any more, and it may be ours
        channel.abandon()
        raise
    return channel


@asynccontextmanager
async def open_reader(link: Link, queue: str) -> AsyncIterator["QueueReader"]:
    """Be alone with a queue and look into it; all that was taken out goes back in the end, but what is to be kept."""
    reader: QueueReader | None = None
    try:
        async with exclusive_access(link, queue):
            reader = QueueReader(await link.channel())
            yield reader
            if not reader.kept:
                await reader.return_all(link)
    except (
        BaseException
    ):  # also of whoever is cancelled on the way out: nobody would know what is kept
        if reader is not None:
            reader.channel.abandon()
        raise


class QueueReader:
    """The head of a queue, held on a channel. `kept`: some of it stays held after the look."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.found: dict[str, HeldMessage] = {}
        self.kept = False
        self._seen: Counter[str] = Counter()

    async def read(self, queue: str, count: int, most: int = 0) -> bool:
        """Hold the next `count` messages of a queue of the broker that nobody else has; False when there are no more.

        Silence proves nothing: a busy broker pauses. The end is reached when the broker has no
        message left that is ready. Raises `TimeoutError` when it has some and sends none.

        With `most` it goes on to the end, up to so many. A quorum queue must be read so: what is
        given back by two consumers changes places.
        """
        came: list[HeldMessage] = []
        arrived = asyncio.Event()

        def on_message(_: object, method: Any, properties: Properties, body: bytes) -> None:
            came.append(HeldMessage(queue, method, properties, body))
            arrived.set()

        most = max(count, most)
        prefetch = most if most <= _LARGEST_PREFETCH else 0
        await self.channel.request(spec.Basic.Qos(prefetch_count=prefetch))
        tag, started = self.channel.consume(queue, on_message)
        await started
        while len(came) < most:
            arrived.clear()
            if len(came) >= count:
                if not await self._has_more(queue, arrived):
                    break
                continue
            try:
                async with asyncio.timeout(_SILENCE):
                    await arrived.wait()
            except TimeoutError:
                if not await self._has_more(queue, arrived):
                    break
        await self.channel.cancel(tag)
        for held in came:
            self.found[self._name(held)] = held
        return len(came) >= most

    async def ready(self, queue: str) -> int:
        """Return how many messages a queue of the broker has that nobody holds."""
        answer = await self.channel.request(spec.Queue.Declare(queue=queue, passive=True))
        return int(answer.message_count)

    def has(self, names: Sequence[str]) -> bool:
        """Whether all of these were found; False when none is looked for."""
        return bool(names) and all(name in self.found for name in names)

    async def _has_more(self, queue: str, arrived: asyncio.Event) -> bool:
        """Whether a queue has sent, or is going to send, anything more.

        Raises `TimeoutError` when it does not send what it has.
        """
        deadline = asyncio.get_running_loop().time() + _STUCK

        while True:
            # The channel may answer the first question before it passes on what the queue had sent
            # by then, and the second one after that: measured on 3.10 and 4.0, and so it is written
            # there.
            await self.ready(queue)
            left = await self.ready(queue)
            if arrived.is_set() or not left:
                return arrived.is_set()
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(
                    f"RabbitMQ has {left:,} messages ready in queue {queue!r} and sent none for "
                    f"{_STUCK:g} s, so the queue was not read to its end: try again"
                )
            with suppress(TimeoutError):
                async with asyncio.timeout(_SILENCE):
                    await arrived.wait()

    async def keep(self, names: Iterable[str]) -> list[HeldMessage]:
        """Give back all but these, now; they are held until they are settled."""
        kept = {name: self.found[name] for name in dict.fromkeys(names) if name in self.found}
        for name, held in self.found.items():
            if name not in kept:
                self.channel.send(spec.Basic.Nack(delivery_tag=held.tag, requeue=True))
        await self.channel.request(spec.Basic.Qos(prefetch_count=0))
        self.kept = bool(kept)
        return list(kept.values())

    async def return_all(self, link: Link) -> None:
        """Give all back to its place; return when the queues have it, or after a moment.

        By closing the channel, for `basic.nack` keeps no places in a quorum queue of 3.10: more
        than 32 at once come back in the order of a hash, and where there is no delivery limit
        (queues that mqcore did not declare) all of them come behind the others.
        """
        await self.channel.close()

        with suppress(Exception):  # the queue may have gone meanwhile
            async with asyncio.timeout(_BACK):
                asks = await link.channel()
                try:
                    for queue, count in Counter(held.queue for held in self.found.values()).items():
                        await _has_back(asks, queue, count)
                finally:
                    asks.abandon()

    def _name(self, held: HeldMessage) -> str:
        """Name a message for the next page: its own id and hop, or what it is made of, and which of equal ones it is."""
        headers = held.properties.headers or {}
        name = id_of(held.properties) or "~" + blake2b(held.body, digest_size=8).hexdigest()
        name = f"{name}/{headers.get(HOP, '')!s}/{headers.get(LINEAGE, '')!s}"
        self._seen[name] += 1
        return name if self._seen[name] == 1 else f"{name}/{self._seen[name]}"


async def _has_back(channel: Channel, queue: str, count: int) -> None:
    """Return when so many are ready, or when somebody consumes: then no number says that all is back."""
    consumed = 0

    while True:
        answer = await channel.request(spec.Queue.Declare(queue=queue, passive=True))
        consumed = consumed + 1 if answer.consumer_count else 0
        if answer.message_count >= count or consumed >= _CONSUMED:
            return
        await asyncio.sleep(_AGAIN)


class Pages:
    """What was read of each queue, so that a page follows the last one, although its entries may have gone meanwhile.

    The first page of a queue is read alone. The second one reads all that is there, and further
    pages come out of that: a hundred pages cost two reads.
    """

    def __init__(self) -> None:
        self._read: dict[str, list[_Pages]] = {}

    def begin(self, queue: str, page: Sequence[tuple[str, HeldMessage]]) -> None:
        """Remember a first page, from which others may follow."""
        self._remember(queue, _Pages(page, whole=False))

    def shown(self, queue: str, after: str) -> list[str]:
        """Return the keys that were shown up to `after`, in order; none when it was not shown lately."""
        pages = self._with(queue, after)
        return [] if pages is None else [key for key, _ in pages.entries[: pages.places[after] + 1]]

    def page(self, queue: str, after: str, limit: int) -> list[tuple[str, HeldMessage]] | None:
        """Return the page that follows `after`, or None when the queue has to be read."""
        pages = self._with(queue, after)
        if pages is None or not pages.whole:
            return None

        start = pages.places[after] + 1
        found = pages.entries[start : start + limit]
        if len(found) < limit:  # the last one: its bodies are not kept any longer
            self._forget(queue, pages)
        return found

    def complete(self, queue: str, entries: Sequence[tuple[str, HeldMessage]]) -> None:
        """Remember all entries of a queue, those of the first page first."""
        self._remember(queue, _Pages(entries, whole=True))

    def _with(self, queue: str, after: str) -> "_Pages | None":
        return next((it for it in reversed(self._read.get(queue, ())) if after in it.places), None)

    def _remember(self, queue: str, pages: "_Pages") -> None:
        known = self._read.setdefault(queue, [])
        known.append(pages)
        del known[:-_READERS]
        asyncio.get_running_loop().call_later(_KEPT, self._forget, queue, pages)

    def _forget(self, queue: str, pages: "_Pages") -> None:
        left = [it for it in self._read.get(queue, ()) if it is not pages]
        if left:
            self._read[queue] = left
        else:
            self._read.pop(queue, None)


class _Pages:
    """Entries in the order in which they are shown. `whole`: there are no others."""

    def __init__(self, entries: Sequence[tuple[str, HeldMessage]], *, whole: bool) -> None:
        self.entries = list(entries)
        self.places = {key: place for place, (key, _) in enumerate(self.entries)}
        self.whole = whole
