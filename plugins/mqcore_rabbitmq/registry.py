"""What AMQP cannot tell: which queues and bindings there are, and the settings that the broker does not compare.

    declare, delete, bind, unbind ──► records in JSON ──► `mq.registry`, a queue that nobody empties ──► folded into a picture

The picture is read when it is needed and no sooner: for a queue that this instance has not declared, for a list of all, for
bindings. To read is to take all messages out and to give them back, to their places, with nobody else at it. A queue beside it,
`mq.registry.changes`, holds one empty message for each write, so that one question (how many?) tells whether there is news. Both
are classic durable queues: a stream keeps what is read, but one that was killed in its first seconds stayed without a leader.
"""

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pika import BasicProperties, spec
from pika.exceptions import ChannelClosedByBroker

from mqcore.spi import Binding, ErrorKind, Failed, Stored
from mqcore_rabbitmq.confirms import Confirms, Sending
from mqcore_rabbitmq.errors import NOT_FOUND, closed_by
from mqcore_rabbitmq.layout import Layout
from mqcore_rabbitmq.link import Channel, Link
from mqcore_rabbitmq.looking import Reading, alone

__all__ = ["Picture", "Registry", "record_of"]

REGISTER, CHANGES = "mq.registry", "mq.registry.changes"
_MANY = 100
"""Messages in the registry from which on a reader puts one in their place, with what still counts."""
_WRITE, _TRIES = 2.0, 3


@dataclass
class Picture:
    """Queues and bindings as the records tell them, after so many `changes`."""

    queues: dict[str, Layout] = field(default_factory=dict)
    routers: dict[str, dict[Binding, None]] = field(default_factory=dict)
    changes: int = -1

    def fold_all(self, records: object) -> None:
        """Add what one write holds."""
        for record in records if isinstance(records, list) else ():
            if isinstance(record, dict):
                self.fold(record)

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

    def records(self) -> list[dict[str, Any]]:
        """Return what tells all of it."""
        bindings = [{"bind": record_of(binding)} for binding in self.bindings(None)]
        return [*(layout.record() for layout in self.queues.values()), *bindings]

    def bindings(self, router: str | None) -> list[Binding]:
        """Return the bindings of one router, or all."""
        if router is not None:
            return list(self.routers.get(router, ()))
        return [binding for known in self.routers.values() for binding in known]


class Registry:
    """One instance's way to the records."""

    def __init__(self, link: Link, writer: Callable[[], Any], blocked: Callable[[], bool]) -> None:
        """`writer` gives the confirm channel to write with, unless that is `blocked`."""
        self._link = link
        self._writer = writer
        self._blocked = blocked
        self._lock = asyncio.Lock()
        self._there: bool | None = None
        self._picture = Picture()
        self._channel: Channel | None = None
        self._unwritten: list[dict[str, Any]] = []

    @property
    def picture(self) -> Picture:
        """What is known without asking."""
        return self._picture

    async def refresh(self) -> Picture:
        """Bring the picture up to date with every write that had ended before this call."""
        async with self._lock:
            try:
                await self._look()
            except ChannelClosedByBroker as error:
                if not closed_by(error, NOT_FOUND):
                    raise
                self._there = None  # somebody has deleted it since we declared it
                await self._look()
        return self._picture

    async def _look(self) -> None:
        if await self._exists():
            await self._append([])
            if await self._count(CHANGES) != self._picture.changes:
                await self._read()

    async def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Write records and wait until they are stored.

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
        """Write these, after all that could not be written before; what fails now is kept, whatever it fails of."""
        self._unwritten += records
        if not self._unwritten or self._blocked():
            return
        async with alone(self._link, REGISTER):
            written = await self._write(REGISTER, _body(self._unwritten)) and await self._write(CHANGES, b"")
        if written:
            self._unwritten.clear()
            self._picture.changes += 1  # if others wrote too, the count will differ, and all is read

    async def _write(self, queue: str, body: bytes) -> bool:
        """Write and wait for the confirm; False when the broker takes nothing now."""
        if self._blocked():
            return False
        confirms: Confirms = await self._writer()
        (outcome,) = await confirms.publish([Sending("", queue, BasicProperties(delivery_mode=2), body, queue)], _WRITE)
        if isinstance(outcome, Failed) and outcome.kind is ErrorKind.NOT_FOUND:
            self._there = None  # declared anew with the next look
        return isinstance(outcome, Stored)

    async def _exists(self) -> bool:
        """Declare both queues once; False where this user may not."""
        if self._there is None:
            arguments = {"x-queue-type": "classic"}
            try:
                channel = await self._ask()
                both = [
                    spec.Queue.Declare(queue=name, durable=True, arguments=arguments) for name in (REGISTER, CHANGES)
                ]
                await asyncio.gather(*map(channel.ask, both))
            except ChannelClosedByBroker:
                self._there = False
            else:
                self._there = True
        return self._there

    async def _ask(self) -> Channel:
        if self._channel is None or self._channel.closed is not None:
            self._channel = await self._link.channel()
        return self._channel

    async def _count(self, queue: str) -> int:
        channel = await self._ask()
        answer = await channel.ask(spec.Queue.Declare(queue=queue, passive=True))
        return int(answer.message_count)

    async def _read(self) -> None:
        """Read all; what could not be written yet counts as well. What was not all is read again with the next look."""
        async with alone(self._link, REGISTER):
            for _ in range(_TRIES):
                changes = await self._count(CHANGES)
                picture, whole = await self._read_once()
                if whole:
                    picture.changes = changes
                    break
        picture.fold_all(self._unwritten)
        self._picture = picture

    async def _read_once(self) -> tuple[Picture, bool]:
        """Read, and leave it shorter where it has grown long; and whether that was all, for a busy broker may pause."""
        picture, ready = Picture(), await self._count(REGISTER)
        reading = await Reading.open(self._link)
        try:
            if ready:
                await reading.read(REGISTER, ready)
            held = list(reading.found.values())
            whole = len(held) == ready
            for one in held:
                with suppress(ValueError):
                    picture.fold_all(json.loads(one.body))
            if whole and len(held) > _MANY and await self._write(REGISTER, _body(picture.records())):
                reading.channel.tell(spec.Basic.Ack(delivery_tag=held[-1].tag, multiple=True))
                reading.found.clear()
            await reading.keep([])
        finally:
            await reading.channel.close()
        return picture, whole


def _body(records: Sequence[dict[str, Any]]) -> bytes:
    return json.dumps(records, separators=(",", ":")).encode()


def record_of(binding: Binding) -> list[Any]:
    """Return a binding as it stands in a record."""
    headers = [list(pair) for pair in binding.headers]
    return [binding.router, binding.kind, binding.queue, binding.pattern, headers, binding.match]


def _binding(data: Any) -> Binding:
    router, kind, queue, pattern, headers, match = data
    pairs = tuple((str(name), str(value)) for name, value in headers)
    return Binding(router=router, kind=kind, queue=queue, pattern=pattern, headers=pairs, match=match)
