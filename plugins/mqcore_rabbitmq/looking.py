"""Looking into a queue over AMQP, which has no way to look: messages are consumed on a channel of its own and given back.

They keep their places, but the broker marks them as delivered before, so that a consumer takes them for taken over: BROWSE is
declared approximate for it, and what waits in the delay ladder is not seen at all.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import Any

from pika import spec

from mqcore_rabbitmq.errors import RESOURCE_LOCKED, closed_by
from mqcore_rabbitmq.frames import Properties
from mqcore_rabbitmq.link import Channel, Link
from mqcore_rabbitmq.window import Held
from mqcore_rabbitmq.wire import HOP, LINEAGE, id_of

__all__ = ["Pages", "Reading", "alone", "reading"]

_PATIENCE, _AGAIN = 10.0, 0.02
"""Seconds to wait for others who look into the same queue, and between two tries."""
_LARGEST_PREFETCH = 65_535
_SILENCE = 0.3
"""Seconds after which what has not come is not there: somebody else has it."""


@asynccontextmanager
async def alone(link: Link, queue: str) -> AsyncIterator[None]:
    """Be the only one on this broker who looks into a queue: another would see nothing of what is held meanwhile.

    The lock is a queue that only its connection may declare; it goes with the connection, whatever happens. Those of one connection
    take turns. Raises `TimeoutError`.
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
            channel.tell(spec.Queue.Delete(queue=lock, nowait=True))
            await channel.close()


async def _locked(link: Link, lock: str) -> Channel | None:
    """Return the channel that has the lock, None when another connection has it."""
    channel = await link.channel()
    try:
        await channel.ask(spec.Queue.Declare(queue=lock, exclusive=True, auto_delete=True))
    except BaseException as error:
        if closed_by(error, RESOURCE_LOCKED):
            return None
        channel.tell(
            spec.Queue.Delete(queue=lock, nowait=True)
        )  # nobody waits for the answer any more, and it may be ours
        channel.abandon()
        raise
    return channel


@asynccontextmanager
async def reading(link: Link, queue: str) -> AsyncIterator["Reading"]:
    """Be alone with a queue and look into it; all that was taken out goes back in the end, but what is to be kept."""
    look: Reading | None = None
    try:
        async with alone(link, queue):
            look = Reading(await link.channel())
            yield look
            if not look.kept:
                await look.channel.give_all_back()
                await look.channel.close()
    except BaseException:  # also of whoever is cancelled on the way out: nobody would know what is kept
        if look is not None:
            look.channel.abandon()
        raise


class Reading:
    """The head of a queue, held on a channel. `kept`: some of it stays held after the look."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.found: dict[str, Held] = {}
        self.kept = False
        self._seen: Counter[str] = Counter()

    async def read(self, queue: str, count: int) -> None:
        """Hold the first `count` messages of a queue of the broker that nobody else has."""
        came: list[Held] = []
        arrived = asyncio.Event()

        def on_message(_: object, method: Any, properties: Properties, body: bytes) -> None:
            came.append(Held(queue, method, properties, body))
            arrived.set()

        prefetch = count if count <= _LARGEST_PREFETCH else 0
        await self.channel.ask(spec.Basic.Qos(prefetch_count=prefetch))
        tag, started = self.channel.consume(queue, on_message)
        await started
        while len(came) < count:
            arrived.clear()
            try:
                async with asyncio.timeout(_SILENCE):
                    await arrived.wait()
            except TimeoutError:
                break
        await self.channel.cancel(tag)
        for held in came:
            self.found[self._name(held)] = held

    async def keep(self, names: Iterable[str]) -> list[Held]:
        """Give back all but these, now; they are held until they are settled."""
        kept = {name: self.found[name] for name in dict.fromkeys(names) if name in self.found}
        for name, held in self.found.items():
            if name not in kept:
                self.channel.tell(spec.Basic.Nack(delivery_tag=held.tag, requeue=True))
        await self.channel.ask(spec.Basic.Qos(prefetch_count=0))
        self.kept = bool(kept)
        return list(kept.values())

    def _name(self, held: Held) -> str:
        """Name a message for the next page: its own id and hop, or what it is made of, and which of equal ones it is."""
        headers = held.properties.headers or {}
        name = id_of(held.properties) or "~" + blake2b(held.body, digest_size=8).hexdigest()
        name = f"{name}/{headers.get(HOP, '')!s}/{headers.get(LINEAGE, '')!s}"
        self._seen[name] += 1
        return name if self._seen[name] == 1 else f"{name}/{self._seen[name]}"


class Pages:
    """What has been shown of each queue, so that a page follows the last one although its entries have gone meanwhile."""

    def __init__(self) -> None:
        self._shown: dict[str, list[str]] = {}

    def shown(self, queue: str, after: str | None) -> list[str]:
        """Return the keys that were shown up to `after`, in order; none for a new look."""
        known = self._shown.get(queue, [])
        return known[: known.index(after) + 1] if after is not None and after in known else []

    def add(self, queue: str, before: Sequence[str], page: Iterable[str]) -> None:
        """Remember a page."""
        self._shown[queue] = [*before, *page]
