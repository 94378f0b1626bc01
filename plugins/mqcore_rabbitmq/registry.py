"""What AMQP cannot list: queues, bindings, and settings that the broker does not compare.

    declare, delete, bind, unbind ─► JSON records ─► `mq.registry` ─► folded into a picture

`mq.registry` is a durable classic queue that keeps its messages. To read it, an instance consumes
all messages and gives them back to their places, while it holds a lock.

Each writer also publishes to the fanout exchange `mq.registry.news`. Each instance has an exclusive
queue there. Purging that queue answers in one round trip whether anything was written since the
last purge, and only then the registry is read.
"""

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pika import spec
from pika.exceptions import ChannelClosedByBroker
from pydantic import TypeAdapter

from mqcore.spi import STORED, Binding, ConfigurationError, TopologyMismatch, new_id
from mqcore_rabbitmq.browse import exclusive_access, open_reader
from mqcore_rabbitmq.confirms import RECORDS, ConfirmChannels, PlannedMessage
from mqcore_rabbitmq.errors import ACCESS_REFUSED, PRECONDITION_FAILED, RESOURCE_LOCKED, closed_by
from mqcore_rabbitmq.frames import Properties
from mqcore_rabbitmq.layout import Layout
from mqcore_rabbitmq.rpc import Rpc

__all__ = ["Picture", "Registry", "record_of"]

REGISTRY, NEWS = "mq.registry", "mq.registry.news"
_MANY = 100
"""Messages in the registry above which a reader replaces all of them with one."""
_WRITE_TIMEOUT, _READ_ATTEMPTS = 2.0, 3


@dataclass
class Picture:
    """The queues and bindings that the records describe."""

    queues: dict[str, Layout] = field(default_factory=dict)
    bound: dict[Binding, None] = field(default_factory=dict)
    passing: dict[Binding, str] = field(default_factory=dict)
    """Bindings to temporary queues, and the instance that each queue belongs to."""
    unreadable: int = 0
    """Records that mqcore did not write: any client with access may publish to the registry."""

    def read(self, body: bytes) -> None:
        """Add the records of one message. Never raises."""
        try:
            records = json.loads(body)
        except (ValueError, RecursionError):
            self.unreadable += 1
        else:
            self.fold(records)

    def fold(self, records: object) -> None:
        """Add the records of one write; an unreadable one is counted and skipped. Never raises."""
        if not isinstance(records, list):
            self.unreadable += 1
            return

        for record in records:
            try:
                self._fold_one(**record)
            except (TypeError, ValueError, ConfigurationError):
                self.unreadable += 1

    def _fold_one(
        self,
        *,
        gone: Any = None,
        bind: Any = None,
        unbind: Any = None,
        owner: Any = None,
        **queue: Any,
    ) -> None:
        if gone is not None:
            name = _NAME.validate_python(gone)
            self.queues.pop(name, None)
            self.bound = {binding: None for binding in self.bound if binding.queue != name}
        elif owner is not None:
            self._fold_passing(_NAME.validate_python(owner), bind, unbind)
        elif bind is not None:
            self.bound[_binding(bind)] = None
        elif unbind is not None:
            self.bound.pop(_binding(unbind), None)
        else:
            layout = Layout.read(queue)
            self.queues[layout.name] = layout

    def _fold_passing(self, owner: str, bind: Any, unbind: Any) -> None:
        """Add or remove a binding to a temporary queue.

        A name may come back with another owner, so who found a queue gone removes the binding of
        the owner that was gone, and no later one.
        """
        if bind is not None:
            self.passing[_binding(bind)] = owner
        elif self.passing.get(binding := _binding(unbind)) == owner:
            del self.passing[binding]

    def records(self) -> list[dict[str, Any]]:
        """Return the records that describe this picture."""
        return [
            *(layout.record() for layout in self.queues.values()),
            *({"bind": record_of(binding)} for binding in self.bound),
            *(
                {"bind": record_of(binding), "owner": owner}
                for binding, owner in self.passing.items()
            ),
        ]

    def bindings(self, router: str | None) -> list[Binding]:
        """Return the bindings of one router, or all."""
        every = (*self.bound, *self.passing)
        return [binding for binding in every if router in (None, binding.router)]


class Registry:
    """One instance's access to the records."""

    def __init__(self, rpc: Rpc, confirm_channels: ConfirmChannels) -> None:
        self.picture = Picture()
        """What is known without asking."""
        self._rpc = rpc
        self._confirm_channels = confirm_channels
        self.owner = new_id()
        """The name of this instance in the records of its temporary queues."""
        self._news = f"{NEWS}.{self.owner}"
        self._lock = asyncio.Lock()
        self._is_denied = False
        self._is_stale = True
        self._count = 0
        """Messages in the registry when it was last counted."""
        self._unwritten: list[dict[str, Any]] = []

    async def refresh(self) -> Picture:
        """Bring the picture up to date with every write that had ended before this call."""
        async with self._lock:
            await self._append([])
            await self._check_news()
            if not self._is_denied and (self._is_stale or self._count > _MANY):
                await self._read()
        return self.picture

    async def diagnose(self) -> list[str]:
        """Describe what is wrong with the records."""
        picture = await self.refresh()
        if not picture.unreadable:
            return []
        text = (
            f"{picture.unreadable:,} records in queue {REGISTRY!r} were not written by mqcore and "
            "are skipped: another client publishes there. Remove its permission to write to "
            f"{REGISTRY!r}. mqcore removes the records when it next shortens the queue"
        )
        return [text]

    async def append(self, records: Iterable[dict[str, Any]]) -> None:
        """Write records and wait until they are stored.

        During an alarm, when the broker takes no publishes, the next refresh writes them.
        """
        records = list(records)
        if not records:
            return

        async with self._lock:
            await self._append(records)
            self.picture.fold(records)

    async def _append(self, records: Sequence[dict[str, Any]]) -> None:
        """Write these after the ones that could not be written before; keep all that fail."""
        self._unwritten += records
        if not self._unwritten or self._is_denied or self._confirm_channels.blocked:
            return

        async with exclusive_access(self._rpc.link, REGISTRY):
            await self._check_news()
            is_stale = self._is_stale
            if await self._write(self._unwritten):
                self._unwritten.clear()
            # Under the lock no other instance writes, so this news is our own record.
            await self._check_news()
            self._is_stale = is_stale

    async def _write(self, records: Sequence[dict[str, Any]]) -> bool:
        """Write a message of records and announce it; False when the broker takes nothing now."""
        body = json.dumps(records, separators=(",", ":")).encode()
        record = PlannedMessage("", REGISTRY, Properties(delivery_mode=2), body, REGISTRY)
        news = PlannedMessage(NEWS, "", Properties(), b"", NEWS)
        outcomes = await self._confirm_channels.send(RECORDS, [record, news], _WRITE_TIMEOUT)
        return outcomes == [STORED, STORED]

    async def _check_news(self) -> None:
        """Notice what was written since the last call, and what an operator deleted.

        All parts are declared each time, so what was deleted comes back. A user without permission
        to do that works without a registry.
        """
        if self._is_denied:
            return

        arguments = {"x-queue-type": "classic"}
        own = {**arguments, "x-max-length": 1}
        try:
            registry, *_, purged = await self._rpc.run(
                spec.Queue.Declare(queue=REGISTRY, durable=True, arguments=arguments),
                spec.Exchange.Declare(exchange=NEWS, type="fanout", durable=True),
                spec.Queue.Declare(queue=self._news, exclusive=True, arguments=own),
                spec.Queue.Bind(queue=self._news, exchange=NEWS),
                spec.Queue.Purge(queue=self._news),
            )
        except ChannelClosedByBroker as error:
            if closed_by(error, PRECONDITION_FAILED, RESOURCE_LOCKED):
                raise TopologyMismatch(
                    f"mqcore keeps its records of queues in queue {REGISTRY!r} and announces them "
                    f"at exchange {NEWS!r}, and one of them exists with other settings: "
                    f"{error.reply_text}. Delete it, and declare your queues again"
                ) from error
            self._is_denied = closed_by(error, ACCESS_REFUSED)
            if not self._is_denied:
                raise
            return

        count = int(registry.message_count)
        if purged.message_count or count != self._count:
            self._is_stale = True
        self._count = count

    async def _read(self) -> None:
        """Read all records; if a busy broker sent only some, the next refresh reads again."""
        for _ in range(_READ_ATTEMPTS):
            picture, self._is_stale = await self._read_once()
            if not self._is_stale:
                break

        picture.fold(self._unwritten)
        self.picture = picture

    async def _read_once(self) -> tuple[Picture, bool]:
        """Read all records, and shorten the registry if it is long; whether some are missing."""
        picture = Picture()

        async with open_reader(self._rpc.link, REGISTRY) as reader:
            count = await reader.ready(REGISTRY)
            if count:
                await reader.read(REGISTRY, count)
            messages = list(reader.messages.values())
            for message in messages:
                picture.read(message.body)

            is_short = len(messages) < count
            if len(messages) > _MANY and not is_short and await self._write(picture.records()):
                reader.channel.send(spec.Basic.Ack(delivery_tag=messages[-1].tag, multiple=True))
                reader.messages.clear()  # these do not go back
        return picture, is_short


def record_of(binding: Binding) -> list[Any]:
    """Return a binding as the registry stores it."""
    headers = [list(pair) for pair in binding.headers]
    return [binding.router, binding.kind, binding.queue, binding.pattern, headers, binding.match]


_NAME = TypeAdapter(str)
_BINDING = TypeAdapter(
    tuple[
        str,
        Literal["direct", "topic", "fanout", "headers"],
        str,
        str,
        tuple[tuple[str, str], ...],
        Literal["all", "any"],
    ]
)


def _binding(record: Any) -> Binding:
    router, kind, queue, pattern, headers, match = _BINDING.validate_python(record)
    return Binding(
        router=router, kind=kind, queue=queue, pattern=pattern, headers=headers, match=match
    )
