"""Browsing a queue over AMQP, which has no request for it: messages are consumed and given back.

They keep their places, but the broker marks them as delivered before, and a consumer takes them for
messages of a consumer that died. So BROWSE is declared approximate. Messages that wait in the delay
ladder are not shown.
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

__all__ = ["QueueReader", "Snapshot", "Snapshots", "exclusive_access", "open_reader"]

_LOCK_TIMEOUT, _POLL_INTERVAL = 10.0, 0.02
"""Seconds to wait for other readers of the same queue, and between two attempts."""
_LARGEST_PREFETCH = 65_535
_SILENCE = 0.3
"""Seconds without a message after which the reader asks the broker how many are left."""
_STUCK = 10.0
"""Seconds without a message, although some are left, after which a read fails."""
_RETURN_TIMEOUT, _CONSUMER_SEEN = 5.0, 5
"""Seconds to wait until the queues have their messages back, and how many times in a row a queue
must have a consumer for that to be somebody else's.

A quorum queue writes both to its log first. On a slow disk it still counts a consumer of ours that
has gone, and counts returned messages only later.
"""
_SNAPSHOT_SECONDS, _SNAPSHOTS = 30.0, 4
"""Seconds for which a snapshot is kept, and how many are kept of one queue."""


@asynccontextmanager
async def exclusive_access(link: Link, queue: str) -> AsyncIterator[None]:
    """Lock a queue against other readers, which would not see the messages that this one holds.

    The lock is an exclusive queue, which ends with its connection. Readers on one connection take
    turns. Raises `TimeoutError` after 10 s.
    """
    lock = f"mq.look.{queue}"
    turn = link.turns.setdefault(queue, asyncio.Lock())

    async with asyncio.timeout(_LOCK_TIMEOUT) as patience, turn:
        channel = await _lock(link, lock)
        while channel is None:
            await asyncio.sleep(_POLL_INTERVAL)
            channel = await _lock(link, lock)
        patience.reschedule(None)

        try:
            yield
        finally:
            channel.send(spec.Queue.Delete(queue=lock, nowait=True))
            await channel.close()


async def _lock(link: Link, lock: str) -> Channel | None:
    """Return the channel that took the lock, or None when another connection has it."""
    channel = await link.channel()
    try:
        await channel.request(spec.Queue.Declare(queue=lock, exclusive=True, auto_delete=True))
    except BaseException as error:
        if closed_by(error, RESOURCE_LOCKED):
            return None
        # Cancelled: the declare may still succeed, and the lock would be ours.
        channel.send(spec.Queue.Delete(queue=lock, nowait=True))
        channel.abandon()
        raise
    return channel


@asynccontextmanager
async def open_reader(link: Link, queue: str) -> AsyncIterator["QueueReader"]:
    """Lock a queue and read it; at the end all messages go back but those that `keep` names."""
    reader: QueueReader | None = None
    try:
        async with exclusive_access(link, queue):
            reader = QueueReader(await link.channel())
            yield reader
            if not reader.is_kept:
                await reader.return_all(link)
    except BaseException:  # also when cancelled: the caller never learns what is kept
        if reader is not None:
            reader.channel.abandon()
        raise


class QueueReader:
    """The first messages of a queue, held on a channel. `is_kept`: some stay held afterwards."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.messages: dict[str, HeldMessage] = {}
        self.is_kept = False
        self._seen: Counter[str] = Counter()

    async def read(self, queue: str, count: int, most: int = 0) -> bool:
        """Hold the next `count` messages of one queue of the broker; False when it has no more.

        With `most` it reads on to the end, up to that many. A quorum queue must be read like this:
        messages that two consumers give back change places.

        A busy broker pauses, so silence does not prove the end: the end is where the broker counts
        no ready message. Raises `TimeoutError` when it counts some and sends none.
        """
        messages: list[HeldMessage] = []
        arrived = asyncio.Event()

        def on_message(method: Any, properties: Properties, body: bytes) -> None:
            messages.append(HeldMessage(queue, method, properties, body))
            arrived.set()

        most = max(count, most)
        prefetch = most if most <= _LARGEST_PREFETCH else 0
        await self.channel.request(spec.Basic.Qos(prefetch_count=prefetch))
        tag, started = self.channel.consume(queue, on_message)
        await started

        while len(messages) < most:
            arrived.clear()
            if len(messages) < count:
                await _wait(arrived)
            if not arrived.is_set() and not await self._has_more(queue, arrived):
                break

        await self.channel.cancel(tag)
        for message in messages:
            self.messages[self._key(message)] = message
        return len(messages) >= most

    async def ready(self, queue: str) -> int:
        """Return how many messages of a queue of the broker no consumer holds."""
        return int((await _counts(self.channel, queue)).message_count)

    def has(self, keys: Sequence[str]) -> bool:
        """Whether all of these were read; False for no keys."""
        return bool(keys) and all(key in self.messages for key in keys)

    async def _has_more(self, queue: str, arrived: asyncio.Event) -> bool:
        """Whether a queue has sent, or is going to send, anything more.

        Raises `TimeoutError` when it does not send what it has.
        """
        deadline = asyncio.get_running_loop().time() + _STUCK

        while True:
            # The channel may answer the first question before it passes on what the queue had sent
            # by then, and the second one after that (measured on 3.10 and 4.0).
            await self.ready(queue)
            left = await self.ready(queue)
            if arrived.is_set() or not left:
                return arrived.is_set()
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(
                    f"RabbitMQ has {left:,} messages ready in queue {queue!r} and sent none for "
                    f"{_STUCK:g} s, so the queue was not read to its end: try again"
                )
            await _wait(arrived)

    async def keep(self, keys: Iterable[str]) -> list[HeldMessage]:
        """Give back all but these now; these are held until they are settled."""
        kept = {key: self.messages[key] for key in dict.fromkeys(keys) if key in self.messages}
        for key, message in self.messages.items():
            if key not in kept:
                self.channel.send(spec.Basic.Nack(delivery_tag=message.tag, requeue=True))
        await self.channel.request(spec.Basic.Qos(prefetch_count=0))

        self.is_kept = bool(kept)
        return list(kept.values())

    async def return_all(self, link: Link) -> None:
        """Give all back to its place; return when the queues have it, or after 5 s.

        Closing the channel does that. `basic.nack` does not keep places in a quorum queue of 3.10:
        more than 32 at once come back in the order of a hash, and without a delivery limit (queues
        that mqcore did not declare) they come behind all others.
        """
        await self.channel.close()

        with suppress(Exception):  # the queue may be deleted meanwhile
            async with asyncio.timeout(_RETURN_TIMEOUT):
                channel = await link.channel()
                try:
                    held = Counter(message.queue for message in self.messages.values())
                    for queue, count in held.items():
                        await _wait_for_return(channel, queue, count)
                finally:
                    channel.abandon()

    def _key(self, message: HeldMessage) -> str:
        """Return a key for the next page: id (or digest), hop, lineage, and a number if equal."""
        headers = message.properties.headers or {}
        key = id_of(message.properties) or "~" + blake2b(message.body, digest_size=8).hexdigest()
        key = f"{key}/{headers.get(HOP, '')!s}/{headers.get(LINEAGE, '')!s}"
        self._seen[key] += 1
        return key if self._seen[key] == 1 else f"{key}/{self._seen[key]}"


async def _wait(arrived: asyncio.Event) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(_SILENCE):
            await arrived.wait()


async def _counts(channel: Channel, queue: str) -> Any:
    return await channel.request(spec.Queue.Declare(queue=queue, passive=True))


async def _wait_for_return(channel: Channel, queue: str, count: int) -> None:
    """Return when so many are ready, or when somebody consumes: then no count proves the return."""
    consumer_seen = 0

    while True:
        answer = await _counts(channel, queue)
        consumer_seen = consumer_seen + 1 if answer.consumer_count else 0
        if answer.message_count >= count or consumer_seen >= _CONSUMER_SEEN:
            return
        await asyncio.sleep(_POLL_INTERVAL)


class Snapshot:
    """The entries of one read, in the order of the pages. `is_whole`: the queue had no others."""

    def __init__(self, entries: Sequence[tuple[str, HeldMessage]], *, is_whole: bool) -> None:
        self.is_whole = is_whole
        self._entries = entries
        self._ends = {key: place for place, (key, _) in enumerate(entries, 1)}

    def __contains__(self, key: str) -> bool:
        return key in self._ends

    def until(self, key: str) -> Sequence[tuple[str, HeldMessage]]:
        """Return the entries up to this key."""
        return self._entries[: self._ends.get(key, 0)]

    def page(self, after: str | None, limit: int) -> Sequence[tuple[str, HeldMessage]]:
        """Return the entries that follow this key, from the first if it is unknown."""
        start = 0 if after is None else self._ends.get(after, 0)
        return self._entries[start : start + limit]


class Snapshots:
    """The last reads of each queue. A page follows the last one even if its entries are gone."""

    def __init__(self) -> None:
        self._by_queue: dict[str, list[Snapshot]] = {}

    def add(self, queue: str, snapshot: Snapshot) -> None:
        """Keep a snapshot for 30 s, the last four of each queue."""
        snapshots = self._by_queue.setdefault(queue, [])
        snapshots.append(snapshot)
        del snapshots[:-_SNAPSHOTS]
        asyncio.get_running_loop().call_later(_SNAPSHOT_SECONDS, self._remove, queue, snapshot)

    def find(self, queue: str, key: str) -> Snapshot | None:
        """Return the latest snapshot that has this key."""
        return next((it for it in reversed(self._by_queue.get(queue, ())) if key in it), None)

    def _remove(self, queue: str, snapshot: Snapshot) -> None:
        snapshots = self._by_queue.get(queue, [])
        if snapshot in snapshots:
            snapshots.remove(snapshot)
        if not snapshots:
            self._by_queue.pop(queue, None)
