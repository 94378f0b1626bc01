"""What AMQP cannot tell: which queues and bindings there are, and the settings that the broker does not compare.

    declare, delete, bind, unbind ──► records in JSON ──► `mq.registry`, a queue that nobody empties ──► folded into a picture

The picture is read when it is needed and no sooner: for a queue that this instance has not
declared, for a list of all, for bindings. To read is to take all messages out and to give them
back, to their places, with nobody else at it. A queue beside it, `mq.registry.changes`, holds one
empty message for each write, so that one question (how many?) tells whether there is news. When
there are ten thousand, a reader adds one to `mq.registry.emptied` and then takes them away: the two
numbers together are never seen again. All three are classic durable queues: a stream keeps what is
read, but one that was killed in its first seconds stayed without a leader.
"""

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pika import BasicProperties, spec
from pika.exceptions import ChannelClosedByBroker

from mqcore.spi import STORED, Binding, ConfigurationError, TopologyMismatch
from mqcore_rabbitmq.browse import exclusive_access, open_reader
from mqcore_rabbitmq.confirms import RECORDS, ConfirmChannels, PlannedMessage
from mqcore_rabbitmq.errors import ACCESS_REFUSED, PRECONDITION_FAILED, RESOURCE_LOCKED, closed_by
from mqcore_rabbitmq.layout import Layout
from mqcore_rabbitmq.link import Channel
from mqcore_rabbitmq.rpc import Rpc

__all__ = ["Picture", "Registry", "record_of"]

REGISTER, CHANGES, EMPTIED = "mq.registry", "mq.registry.changes", "mq.registry.emptied"
_MANY, _TOO_MANY = 100, 10_000
"""Messages in the registry from which on a reader puts one in their place, and changes from which on he begins to count anew.
"""
_WRITE, _TRIES = 2.0, 3
_NEVER = (0, -1)


class _Counts(NamedTuple):
    """How many records there are, and their version: how often the changes were emptied, and how many there are since."""

    records: int
    version: tuple[int, int]


@dataclass
class Picture:
    """Queues and bindings as the records tell them, and after which changes."""

    queues: dict[str, Layout] = field(default_factory=dict)
    bound: dict[Binding, None] = field(default_factory=dict)
    version: tuple[int, int] = _NEVER
    unreadable: int = 0
    """How many records are not as mqcore writes them: anybody who may publish may put such there.
    """

    def read(self, body: bytes) -> None:
        """Add what one message holds. Never raises."""
        try:
            records = json.loads(body)
        except (ValueError, RecursionError):
            self.unreadable += 1
            return
        self.fold(records)

    def fold(self, records: object) -> None:
        """Add what one write holds.

        A record that cannot be read is counted and says nothing. Never raises.
        """
        if not isinstance(records, list):
            self.unreadable += 1
            return

        for record in records:
            try:
                self._fold_one(**record)
            except (
                AttributeError,
                KeyError,
                TypeError,
                ValueError,
                OverflowError,
                ConfigurationError,
            ):
                self.unreadable += 1

    def _fold_one(
        self, *, gone: str = "", bind: Any = None, unbind: Any = None, **queue: Any
    ) -> None:
        if gone:
            self.queues.pop(_text(gone), None)
            self.bound = {binding: None for binding in self.bound if binding.queue != gone}
        elif bind:
            self.bound[_binding(bind)] = None
        elif unbind:
            self.bound.pop(_binding(unbind), None)
        else:
            layout = Layout.read(queue)
            self.queues[layout.name] = layout

    def records(self) -> list[dict[str, Any]]:
        """Return what tells all of it."""
        queues = [layout.record() for layout in self.queues.values()]
        return [*queues, *({"bind": record_of(binding)} for binding in self.bound)]

    def bindings(self, router: str | None) -> list[Binding]:
        """Return the bindings of one router, or all."""
        return [binding for binding in self.bound if router in (None, binding.router)]


class Registry:
    """One instance's way to the records."""

    def __init__(self, rpc: Rpc, confirm_channels: ConfirmChannels) -> None:
        self.picture = Picture()
        """What is known without asking."""
        self._rpc = rpc
        self._confirm_channels = confirm_channels
        self._lock = asyncio.Lock()
        self._denied = False
        self._unwritten: list[dict[str, Any]] = []
        self._writes = 0
        """Ours since we read last: after many we read it, and so make it shorter."""

    async def refresh(self) -> Picture:
        """Bring the picture up to date with every write that had ended before this call."""
        async with self._lock:
            await self._append([])
            counts = await self._counts()
            if counts is not None and (
                counts.version != self.picture.version or self._writes > _MANY
            ):
                await self._read()
        return self.picture

    async def diagnose(self) -> list[str]:
        """Say what is wrong with the records."""
        picture = await self.refresh()
        if not picture.unreadable:
            return []
        text = (
            f"{picture.unreadable:,} records in queue {REGISTER!r} are not as mqcore writes "
            "them and are skipped: another "
            f"client publishes there. Take its right to write to {REGISTER!r}. mqcore removes "
            "the records when it next "
            "shortens the queue"
        )
        return [text]

    async def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Write records and wait until they are stored.

        Under an alarm, when the broker takes no publishes, they are kept for the next look.
        """
        records = list(records)
        if not records:
            return
        async with self._lock:
            if not self._denied:
                await self._append(records)
            self.picture.fold(records)

    async def _append(self, records: Sequence[dict[str, Any]]) -> None:
        """Write these, after all that could not be written before; what fails now is kept, whatever it fails of."""
        self._unwritten += records
        if not self._unwritten or self._confirm_channels.blocked:
            return
        async with exclusive_access(self._rpc.link, REGISTER):
            written = await self._write(REGISTER, self._unwritten) and await self._write(CHANGES)
        if written:
            self._unwritten.clear()
            emptied, changes = self.picture.version
            self.picture.version = (
                emptied,
                changes + 1,
            )  # if others wrote too, the count will differ, and all is read
            self._writes += 1

    async def _write(self, queue: str, records: Sequence[dict[str, Any]] = ()) -> bool:
        """Write and wait for the confirm; False when the broker takes nothing now."""
        body = json.dumps(records, separators=(",", ":")).encode() if records else b""
        sending = PlannedMessage("", queue, BasicProperties(delivery_mode=2), body, queue)
        return await self._confirm_channels.send(RECORDS, [sending], _WRITE) == [STORED]

    async def _counts(self) -> _Counts | None:
        """Declare the three queues and count what is in them; None where this user may not.

        In this order: who empties the changes says so before, so that no count is ever seen twice
        with different records.
        """
        if self._denied:
            return None
        arguments = {"x-queue-type": "classic"}
        names = REGISTER, CHANGES, EMPTIED
        try:
            answers = await self._rpc.run(
                *(
                    spec.Queue.Declare(queue=name, durable=True, arguments=arguments)
                    for name in names
                )
            )
        except ChannelClosedByBroker as error:
            self._denied = closed_by(error, ACCESS_REFUSED)
            if self._denied:
                return None
            if closed_by(error, PRECONDITION_FAILED, RESOURCE_LOCKED):
                raise TopologyMismatch(
                    f"{REGISTER!r} and what begins with it keep what mqcore knows of its queues "
                    "on RabbitMQ, and one of "
                    f"them is not as mqcore makes it: {error.reply_text}. Delete that queue, "
                    "and declare yours again"
                ) from error
            raise
        records, changes, emptied = (int(answer.message_count) for answer in answers)
        return _Counts(records, (emptied, changes))

    async def _read(self) -> None:
        """Read all; what could not be written yet counts as well.

        What was not all is read again with the next look.
        """
        for _ in range(_TRIES):
            picture = await self._read_once()
            if picture.version != _NEVER:
                break
        picture.fold(self._unwritten)
        self.picture, self._writes = picture, 0

    async def _read_once(self) -> Picture:
        """Read, and leave it shorter where it has grown long; without a version if that was not all: a busy broker may pause."""
        async with open_reader(self._rpc.link, REGISTER) as reader:
            counts, picture = await self._counts() or _Counts(0, _NEVER), Picture()
            if counts.records:
                await reader.read(REGISTER, counts.records)
            held = list(reader.found.values())
            for one in held:
                picture.read(one.body)
            if len(held) == counts.records:
                picture.version = counts.version
                if len(held) > _MANY:
                    await self._shorten(picture, reader.channel, held[-1].tag)
                    reader.found.clear()  # it does not go back
        return picture

    async def _shorten(self, picture: Picture, channel: Channel, last: int) -> None:
        """Put one message with what still counts in the place of all, and none in that of too many changes."""
        if not await self._write(REGISTER, picture.records()):
            return
        channel.send(spec.Basic.Ack(delivery_tag=last, multiple=True))
        emptied, changes = picture.version
        if changes > _TOO_MANY and await self._write(EMPTIED):
            await self._rpc.run(spec.Queue.Purge(queue=CHANGES))
            picture.version = emptied + 1, 0


def record_of(binding: Binding) -> list[Any]:
    """Return a binding as it stands in a record."""
    headers = [list(pair) for pair in binding.headers]
    return [binding.router, binding.kind, binding.queue, binding.pattern, headers, binding.match]


def _binding(data: Any) -> Binding:
    router, kind, queue, pattern, headers, match = data
    pairs = tuple((str(name), str(value)) for name, value in headers)
    return Binding(
        router=_text(router),
        kind=_kind(kind),
        queue=_text(queue),
        pattern=_text(pattern),
        headers=pairs,
        match=match,
    )


def _kind(value: Any) -> Any:
    if value not in ("direct", "topic", "fanout", "headers"):
        raise ValueError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
