"""Publishing with proof: every message has a slot until the broker has confirmed, refused or returned it.

    publish(batch) ── slot, slot, slot ──► channel ──► basic.ack / basic.nack / basic.return ──► an outcome for each

A `basic.return` carries no number. It comes before the ack of its message, so it is matched by id, exchange and key to the first
slot that fits, and the ack decides. One timer serves all deadlines.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

from pika import BasicProperties, spec
from pika.exceptions import AMQPError

from mqcore.spi import STORED, ConnectionLost, ErrorKind, Failed, Outcome, Unknown
from mqcore_rabbitmq.errors import NOT_FOUND, closed_by
from mqcore_rabbitmq.link import Channel

__all__ = ["Confirms", "Each", "Sending"]


Each = Callable[[int, Outcome], None]
"""Told of each outcome as soon as it is known: position in the batch, and what it is."""


class Sending(NamedTuple):
    """One message on its way.

    `queue` is what errors call its destination. `refusal` is what a nack means: `full` in a bounded queue, for a `route` that one
    of several queues refused, else nothing in particular.
    """

    exchange: str
    key: str
    properties: BasicProperties
    body: bytes
    queue: str
    refusal: str = ""


class _Call:
    """One call of `publish`: its outcomes, and how many are still open."""

    __slots__ = ("done", "each", "open", "outcomes", "until")

    def __init__(self, size: int, until: float, done: asyncio.Future[None], each: Each | None) -> None:
        self.each = each
        self.outcomes: list[Outcome | None] = [None] * size
        self.open = size
        self.until = until
        self.done = done

    def end(self, index: int, outcome: Outcome) -> None:
        if self.outcomes[index] is None:
            self.outcomes[index] = outcome
            self.open -= 1
            if self.each is not None and not self.done.done():
                self.each(index, outcome)
            if not self.open and not self.done.done():
                self.done.set_result(None)


class _Slot:
    __slots__ = ("call", "index", "item", "returned")

    def __init__(self, call: _Call, index: int, item: Sending) -> None:
        self.call, self.index, self.item, self.returned = call, index, item, False


class Confirms:
    """A channel in confirm mode."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._slots: dict[int, _Slot] = {}
        self._next = 1
        self._calls: deque[_Call] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        channel.raw.add_callback(self._acked, [spec.Basic.Ack], one_shot=False)
        channel.raw.add_callback(self._nacked, [spec.Basic.Nack], one_shot=False)
        channel.raw.add_on_return_callback(self._returned)
        channel.on_closed.append(self._closed)

    @classmethod
    async def on(cls, channel: Channel) -> "Confirms":
        """Switch a channel to confirm mode."""
        try:
            await channel.ask(spec.Confirm.Select())
        except BaseException:
            channel.abandon()
            raise
        return cls(channel)

    async def publish(self, batch: Sequence[Sending], timeout: float, each: Each | None = None) -> list[Outcome]:
        """Send a batch and wait for its confirms; `Unknown` for what has none by then. `each` hears of every one at once."""
        call = self._send(batch, self._loop.time() + timeout, each)
        if call.open:
            await call.done
        return [outcome or Unknown("not answered in time by RabbitMQ; it may be stored") for outcome in call.outcomes]

    def _send(self, batch: Sequence[Sending], until: float, each: Each | None) -> _Call:
        call = _Call(len(batch), until, self._loop.create_future(), each)
        channel = self.channel
        if channel.closed is not None:
            raise ConnectionLost("the channel to RabbitMQ is closed") from channel.closed
        for index, item in enumerate(batch):
            try:
                channel.publish(item.exchange, item.key, item.properties, item.body)
            except (AMQPError, ValueError) as error:  # nothing of it was written, so the broker does not count it
                text = f"RabbitMQ cannot carry this message for {item.queue!r}: {type(error).__name__}"
                call.end(index, Failed(ErrorKind.PERMANENT, text, error))
            else:
                self._slots[self._next] = _Slot(call, index, item)
                self._next += 1
        if call.open:
            self._calls.append(call)
            self._set_timer()
        return call

    def _set_timer(self) -> None:
        if not self._calls:
            return
        first = min(call.until for call in self._calls) if self._timer is None else self._calls[-1].until
        if self._timer is not None and first < self._timer.when():
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = self._loop.call_at(first, self._on_time)

    def _on_time(self) -> None:
        self._timer = None
        now = self._loop.time()
        for call in self._calls:
            if call.until <= now and not call.done.done():
                call.done.set_result(None)
        self._calls = deque(call for call in self._calls if not call.done.done())
        self._set_timer()

    def _acked(self, frame: Any) -> None:
        self._confirmed(frame.method, stored=True)

    def _nacked(self, frame: Any) -> None:
        self._confirmed(frame.method, stored=False)

    def _confirmed(self, method: Any, *, stored: bool) -> None:
        tag = method.delivery_tag
        tags = [*takewhile(lambda number: number <= tag, self._slots)] if method.multiple else [tag]
        for number in tags:
            slot = self._slots.pop(number, None)
            if slot is not None:
                slot.call.end(slot.index, _outcome(slot, stored=stored))
        while self._calls and self._calls[0].done.done():
            self._calls.popleft()

    def _returned(self, _: object, method: Any, received: BasicProperties, __: bytes) -> None:
        name = (received.message_id, method.exchange, method.routing_key)
        for slot in self._slots.values():
            item = slot.item
            if not slot.returned and (item.properties.message_id, item.exchange, item.key) == name:
                slot.returned = True
                return

    def _closed(self, reason: BaseException) -> None:
        """Nothing will be answered any more. A missing exchange is the fault of one message, and what came after was not read."""
        if self._timer is not None:
            self._timer.cancel()
        cause = reason if isinstance(reason, Exception) else None
        unread = False
        for slot in self._slots.values():
            missing = closed_by(reason, NOT_FOUND) and f"'{slot.item.exchange}'" in str(reason)
            unread = unread or missing
            outcome: Outcome = Unknown(f"the connection to RabbitMQ broke before it answered: {reason}", cause)
            if missing:
                outcome = Failed(ErrorKind.NOT_FOUND, f"RabbitMQ has no exchange {slot.item.exchange!r}", cause)
            elif unread:
                outcome = Failed(
                    ErrorKind.TRANSIENT, "the channel was closed for another message before this one", cause
                )
            slot.call.end(slot.index, outcome)
        self._slots.clear()
        self._calls.clear()


def _outcome(slot: _Slot, *, stored: bool) -> Outcome:
    queue = slot.item.queue
    if slot.returned:
        return Failed(ErrorKind.NOT_FOUND, f"RabbitMQ has no queue {queue!r}: declare it first")
    if stored:
        return STORED
    if slot.item.refusal == "route":
        return Unknown(f"a queue of router {queue!r} refused the message; others may have stored it")
    if slot.item.refusal == "full":
        return Failed(ErrorKind.FULL, f"queue {queue!r} holds max_length ready messages")
    return Failed(ErrorKind.TRANSIENT, f"RabbitMQ refused a message for {queue!r}")
