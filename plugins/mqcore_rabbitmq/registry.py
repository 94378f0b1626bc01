"""What AMQP cannot tell: which queues and bindings there are, and the settings that the broker does not compare.

    declare, delete, bind, unbind ──► one JSON record each ──► `mq.registry`, a stream on the broker ──► folded into a picture

The picture is read when it is needed and no sooner: for a queue that this instance has not declared, for a list of all, for
bindings. A stream keeps its records when they are read; a queue beside it, `mq.registry.changes`, holds one empty message for each
record, so that one question (how many?) tells whether there is news. What has been read is kept for the process, by broker and
vhost: the next instance goes on where the last one stopped. Where the server has no streams the picture is what this instance did.
"""

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pika import BasicProperties, spec
from pika.exceptions import ChannelClosedByBroker

from mqcore.spi import Binding, Stored, new_id
from mqcore_rabbitmq.confirms import Confirms, Sending
from mqcore_rabbitmq.layout import Layout
from mqcore_rabbitmq.link import Channel, Link

__all__ = ["Picture", "Registry"]

STREAM, CHANGES = "mq.registry", "mq.registry.changes"
_BYTES = 64 * 1024 * 1024
_SEGMENT = 4 * 1024 * 1024
_PREFETCH = 1000
_ANSWER = 10.0


@dataclass
class Picture:
    """Queues, bindings and purges as the records tell them, up to `offset`."""

    queues: dict[str, Layout] = field(default_factory=dict)
    routers: dict[str, dict[Binding, None]] = field(default_factory=dict)
    purged: dict[str, float] = field(default_factory=dict)
    offset: int = -1
    changes: int = -1

    def fold(self, record: dict[str, Any]) -> None:
        """Add one record; what cannot be read says nothing."""
        with suppress(KeyError, TypeError, ValueError):
            if "q" in record:
                layout = Layout.read(record)
                self.queues[layout.name] = layout
            elif "gone" in record:
                self.forget(str(record["gone"]))
            elif "bind" in record:
                binding = _binding(record["bind"])
                self.routers.setdefault(binding.router, {})[binding] = None
            elif "unbind" in record:
                self.unbind(_binding(record["unbind"]))
            elif "purged" in record:
                self.purged[str(record["purged"])] = float(record["at"])

    def forget(self, queue: str) -> None:
        """Take a queue out, with the bindings that lead to it."""
        self.queues.pop(queue, None)
        for known in list(self.routers.values()):
            for binding in [it for it in known if it.queue == queue]:
                self.unbind(binding)

    def unbind(self, binding: Binding) -> None:
        """Take one binding out."""
        known = self.routers.get(binding.router, {})
        known.pop(binding, None)
        if not known:
            self.routers.pop(binding.router, None)

    def copy(self) -> "Picture":
        """Return a picture that shares nothing."""
        routers = {router: dict(known) for router, known in self.routers.items()}
        return Picture(dict(self.queues), routers, dict(self.purged), self.offset, self.changes)

    def bindings(self, router: str | None) -> list[Binding]:
        """Return the bindings of one router, or all."""
        if router is not None:
            return list(self.routers.get(router, ()))
        return [binding for known in self.routers.values() for binding in known]


_pictures: dict[tuple[str, ...], Picture] = {}
"""What this process has read, by broker and vhost: records never change, so that nobody needs to read one twice.

Nobody changes a picture that is in here, for other threads read it; each Registry works on a copy of its own.
"""


class Registry:
    """One instance's way to the records."""

    def __init__(self, link: Link, broker: tuple[str, ...], writer: Callable[[], Any]) -> None:
        """`broker` names the server and vhost; `writer` gives the confirm channel to append with."""
        self._link = link
        self._broker = broker
        self._writer = writer
        self._lock = asyncio.Lock()
        self._there: bool | None = None
        self._picture = _pictures.get(broker, Picture()).copy()
        self._channel: Channel | None = None

    @property
    def picture(self) -> Picture:
        """What is known without asking."""
        return self._picture

    async def refresh(self) -> Picture:
        """Bring the picture up to date with every append that had ended before this call."""
        async with self._lock:
            if await self._exists():
                changes = await self._count()
                if changes != self._picture.changes:
                    await self._read()
                    self._picture.changes = changes
        return self._picture

    async def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Write records and wait until they are stored; then tell everybody that there is news."""
        records = list(records)
        if not records:
            return
        async with self._lock:
            if await self._exists():
                await self._write(STREAM, [json.dumps(record, separators=(",", ":")).encode() for record in records])
                await self._write(CHANGES, [b""] * len(records))
                self._picture.changes += len(records)  # if others wrote too, the count will differ, and all is read
            for record in records:
                self._picture.fold(record)

    async def _write(self, queue: str, bodies: Sequence[bytes]) -> None:
        confirms: Confirms = await self._writer()
        properties = BasicProperties(delivery_mode=2)
        batch = [Sending("", queue, properties, body, queue) for body in bodies]
        for outcome in await confirms.publish(batch, _ANSWER):
            if not isinstance(outcome, Stored):
                raise TimeoutError(f"the registry {queue!r} did not take a record: {outcome.text}")

    async def _exists(self) -> bool:
        """Declare stream and counter once; False where the server has no streams."""
        if self._there is None:
            arguments = {
                "x-queue-type": "stream",
                "x-max-length-bytes": _BYTES,
                "x-stream-max-segment-size-bytes": _SEGMENT,
            }
            try:
                channel = await self._ask()
                stream = channel.ask(spec.Queue.Declare(queue=STREAM, durable=True, arguments=arguments))
                counter = {"x-queue-type": "classic"}
                changes = channel.ask(spec.Queue.Declare(queue=CHANGES, durable=True, arguments=counter))
                await asyncio.gather(stream, changes)
            except ChannelClosedByBroker:
                self._there = False
            else:
                self._there = True
        return self._there

    async def _ask(self) -> Channel:
        if self._channel is None or self._channel.closed is not None:
            self._channel = await self._link.channel()
        return self._channel

    async def _count(self) -> int:
        channel = await self._ask()
        answer = await channel.ask(spec.Queue.Declare(queue=CHANGES, passive=True))
        return int(answer.message_count)

    async def _read(self) -> None:
        """Read what is new, up to a mark of our own, which tells the end."""
        known = _pictures.get(self._broker)
        if known is not None and known.offset > self._picture.offset:
            self._picture = known.copy()
        mark = new_id()
        await self._write(STREAM, [json.dumps({"mark": mark}).encode()])
        if not await self._read_to(mark):
            self._picture = Picture()  # the log is another one than before: begin anew
            await self._read_to(mark)
        _pictures[self._broker] = self._picture.copy()

    async def _read_to(self, mark: str) -> bool:
        """Fold records until the mark; False when the log has fewer records than were read of it before."""
        picture, loop = self._picture, asyncio.get_running_loop()
        ended: asyncio.Future[bool] = loop.create_future()
        channel = await self._link.channel()

        def on_record(_: object, method: Any, received: BasicProperties, body: bytes) -> None:
            offset = int(str((received.headers or {}).get("x-stream-offset", 0)))
            channel.tell(spec.Basic.Ack(delivery_tag=method.delivery_tag))
            if ended.done() or offset <= picture.offset:
                return
            picture.offset = offset
            try:
                record = json.loads(body)
            except ValueError:
                return
            if isinstance(record, dict):
                picture.fold(record)
                if record.get("mark") == mark:
                    ended.set_result(True)

        channel.on_closed.append(lambda reason: None if ended.done() else ended.set_exception(reason))
        try:
            async with asyncio.timeout(_ANSWER if picture.offset < 0 else 1.0):
                await channel.ask(spec.Basic.Qos(prefetch_count=_PREFETCH))
                first: Any = "first" if picture.offset < 0 else picture.offset + 1
                await channel.consume(STREAM, on_record, {"x-stream-offset": first})
                return await ended
        except TimeoutError:
            if picture.offset < 0:
                raise
            return False
        finally:
            await channel.close()


def _binding(data: Any) -> Binding:
    router, kind, queue, pattern, headers, match = data
    pairs = tuple((str(name), str(value)) for name, value in headers)
    return Binding(router=router, kind=kind, queue=queue, pattern=pattern, headers=pairs, match=match)
