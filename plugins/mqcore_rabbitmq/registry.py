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

__all__ = ["Picture", "Registry", "record_of"]

STREAM, CHANGES = "mq.registry", "mq.registry.changes"
_BYTES = 4 * 1024 * 1024
"""Of the log; its oldest part goes first. Whoever reads all of one that is half full writes down again what still counts."""
_SEGMENT = 512 * 1024
_OVERHEAD = 64
_PREFETCH = 1000
_SILENCE = 0.3
_NEWS, _WHOLE = 2.0, 30.0
"""Seconds for an answer or for reading what is new, and for reading the whole log."""


@dataclass
class Picture:
    """Queues and bindings as the records tell them, up to the one at `offset`, which is `last`: by it a log is known again."""

    queues: dict[str, Layout] = field(default_factory=dict)
    routers: dict[str, dict[Binding, None]] = field(default_factory=dict)
    offset: int = -1
    last: bytes = b""
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
        """Return a picture that shares nothing, to be looked over before it is believed."""
        routers = {router: dict(known) for router, known in self.routers.items()}
        return Picture(dict(self.queues), routers, self.offset, self.last)

    def records(self) -> list[dict[str, Any]]:
        """Return what tells all of it."""
        bindings = [{"bind": record_of(binding)} for binding in self.bindings(None)]
        return [*(layout.record() for layout in self.queues.values()), *bindings]

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

    def __init__(
        self, link: Link, broker: tuple[str, ...], writer: Callable[[], Any], blocked: Callable[[], bool]
    ) -> None:
        """`broker` names the server and vhost; `writer` gives the confirm channel to append with, unless that is `blocked`."""
        self._link = link
        self._broker = broker
        self._writer = writer
        self._blocked = blocked
        self._lock = asyncio.Lock()
        self._there: bool | None = None
        self._picture = _pictures.get(broker, Picture()).copy()
        self._channel: Channel | None = None
        self._unwritten: list[dict[str, Any]] = []

    @property
    def picture(self) -> Picture:
        """What is known without asking."""
        return self._picture

    async def refresh(self) -> Picture:
        """Bring the picture up to date with every append that had ended before this call."""
        async with self._lock:
            if await self._exists():
                unwritten, self._unwritten = self._unwritten, []
                await self._append(unwritten)
                changes = await self._count()
                if changes != self._picture.changes:
                    await self._read()
                    self._picture.changes = changes
        return self._picture

    async def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Write records and wait until they are stored; then tell everybody that there is news.

        Under an alarm, when the broker takes no publishes, they are kept for the next look.
        """
        records = list(records)
        if not records:
            return
        async with self._lock:
            if await self._exists():
                await self._append(records)
            for record in records:
                self._picture.fold(record)

    async def _append(self, records: Sequence[dict[str, Any]]) -> None:
        bodies = [json.dumps(record, separators=(",", ":")).encode() for record in records]
        if await self._write(STREAM, bodies) and await self._write(CHANGES, [b""] * len(records)):
            self._picture.changes += len(records)  # if others wrote too, the count will differ, and all is read
        else:
            self._unwritten += records

    async def _write(self, queue: str, bodies: Sequence[bytes]) -> bool:
        """Write and wait for the confirms; False when the broker takes nothing now."""
        if self._blocked():
            return False
        confirms: Confirms = await self._writer()
        properties = BasicProperties(delivery_mode=2)
        batch = [Sending("", queue, properties, body, queue) for body in bodies]
        return all(isinstance(outcome, Stored) for outcome in await confirms.publish(batch, _NEWS))

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
            except ChannelClosedByBroker as error:
                self._there = "inequivalent" in str(error)  # one with other limits serves as well
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
        """Read what is new, up to a mark of our own, which tells the end; where none can be written, until nothing comes."""
        known = _pictures.get(self._broker)
        if known is not None and known.offset > self._picture.offset:
            self._picture = known.copy()
        mark = new_id()
        if not await self._write(STREAM, [json.dumps({"mark": mark}).encode()]):
            if not self._blocked():
                self._there = False  # the stream has lost its leader: for now only what this instance does is known
                return
            mark = ""
        if not await self._read_to(mark):
            self._picture = Picture()  # the log is another one than before, or was cut off: begin anew
            await self._read_to(mark)
        _pictures[self._broker] = self._picture.copy()

    async def _read_to(self, mark: str) -> bool:
        """Fold records until the mark; False when the log is not the one that was read before."""
        picture, channel = self._picture, await self._link.channel()
        whole = picture.offset < 0
        reader = _Reader(picture, mark, channel)
        try:
            async with asyncio.timeout(_WHOLE if whole else _NEWS):
                await channel.ask(spec.Basic.Qos(prefetch_count=_PREFETCH))
                first: Any = "first" if whole else picture.offset
                await channel.consume(STREAM, reader.on_record, {"x-stream-offset": first})
                same = await (reader.ended if mark else reader.silence())
        except TimeoutError:
            if whole:
                raise
            return False  # a shorter log than the one before: the broker lost its data
        finally:
            reader.ended.cancel()
            await channel.close()
        if whole and reader.size > _BYTES // 2:
            await self._write(STREAM, [json.dumps(record).encode() for record in picture.records()])
        return same


class _Reader:
    """Folds what comes into a picture, until a mark."""

    def __init__(self, picture: Picture, mark: str, channel: Channel) -> None:
        self.ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.size = 0
        self._picture, self._mark, self._channel = picture, mark, channel
        self._known = picture.offset < 0
        channel.on_closed.append(lambda reason: None if self.ended.done() else self.ended.set_exception(reason))

    def on_record(self, _: object, method: Any, received: BasicProperties, body: bytes) -> None:
        """Take one record; the first is the last of the time before, or it is another log."""
        offset = int(str((received.headers or {}).get("x-stream-offset", 0)))
        self._channel.tell(spec.Basic.Ack(delivery_tag=method.delivery_tag))
        if self.ended.done():
            return
        picture = self._picture
        if not self._known:
            self._known = offset == picture.offset and body == picture.last
            if not self._known:
                self.ended.set_result(False)
        elif offset > picture.offset:
            picture.offset, picture.last = offset, bytes(body)
            self.size += len(body) + _OVERHEAD
            with suppress(ValueError):
                self._fold(json.loads(body))

    async def silence(self) -> bool:
        """Wait until nothing more comes; False when it is another log."""
        seen = -1
        while seen != self.size and not self.ended.done():
            seen = self.size
            await asyncio.sleep(_SILENCE)
        return not self.ended.done() or self.ended.result()

    def _fold(self, record: object) -> None:
        if isinstance(record, dict):
            self._picture.fold(record)
            if record.get("mark") == self._mark:
                self.ended.set_result(True)


def record_of(binding: Binding) -> list[Any]:
    """Return a binding as it stands in a record."""
    headers = [list(pair) for pair in binding.headers]
    return [binding.router, binding.kind, binding.queue, binding.pattern, headers, binding.match]


def _binding(data: Any) -> Binding:
    router, kind, queue, pattern, headers, match = data
    pairs = tuple((str(name), str(value)) for name, value in headers)
    return Binding(router=router, kind=kind, queue=queue, pattern=pattern, headers=pairs, match=match)
