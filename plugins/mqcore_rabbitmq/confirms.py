"""Publishing with confirms: each message has a slot until the broker answers for it.

    publish(batch) ── slots ──► channel ──► basic.ack, basic.nack, basic.return ──► outcomes

A `basic.return` carries no number, and comes before the ack of its message. It is matched by id,
exchange and key to the first slot that fits, and the ack ends that slot.

A missing exchange closes the channel, and the broker does not say for which message. If the
exchange was just deleted, some messages may be stored and not confirmed yet. So each batch begins
with a passive declare of its exchanges, without waiting for the answers: the broker did not read
what follows a request that it did not answer.
"""

import asyncio
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from pika import spec
from pika.exceptions import AMQPError

from mqcore.spi import STORED, ConnectionLost, ErrorKind, Failed, Outcome, Unknown, new_id
from mqcore_rabbitmq.errors import NOT_FOUND, closed_by
from mqcore_rabbitmq.frames import Properties
from mqcore_rabbitmq.link import Channel, Link, end

__all__ = ["EXCHANGES", "QUEUES", "RECORDS", "ConfirmChannel", "ConfirmChannels", "PlannedMessage"]

QUEUES, EXCHANGES, RECORDS = "queues", "exchanges", "records"
_PROBE = 0.5
"""Seconds that a connect waits for the answer to its first message; milliseconds are usual."""
_WRITE_EVERY = 64
"""Messages of a batch that are written together: the broker works while the rest is encoded."""
_UNFIT = (AMQPError, ValueError, TypeError, OverflowError, struct.error)
"""The exceptions of pika for a message that it cannot encode."""


@dataclass(slots=True)
class PlannedMessage:
    """One message to publish.

    `queue` is the name of its destination in errors. `refusal` says what a nack means: `full` for a
    bounded queue, `route` if one of several queues refused, else empty. `needs` names what must
    exist first, by kind and name. `stored` is called with the confirm, unless the publish has
    ended by then.
    """

    exchange: str
    key: str
    properties: Properties
    body: bytes
    queue: str
    refusal: str = ""
    needs: tuple[tuple[str, str], ...] = ()
    stored: Callable[[], None] | None = None


class _Call:
    """One call of `publish`: its outcomes, and how many are missing."""

    __slots__ = ("batch", "checks", "done", "open", "outcomes")

    def __init__(self, batch: Sequence[PlannedMessage], done: asyncio.Future[None]) -> None:
        self.batch = batch
        self.outcomes: list[Outcome | None] = [None] * len(batch)
        self.open = len(batch)
        self.done = done
        self.checks: list[asyncio.Future[Any]] = []
        """The answers to the declares of its exchanges."""

    @property
    def may_be_read(self) -> bool:
        """Whether the broker may have read messages of this call: it answered all declares."""
        return all(check.done() and check.exception() is None for check in self.checks)

    def end(self, index: int, outcome: Outcome) -> None:
        self.outcomes[index] = outcome
        self.open -= 1
        if self.done.done():
            return
        if outcome is STORED and (stored := self.batch[index].stored) is not None:
            stored()
        if not self.open:
            self.done.set_result(None)


class ConfirmChannel:
    """A channel in confirm mode."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._slots: dict[int, tuple[_Call, int]] = {}
        """Open messages by the broker's number: the call, and the place in its batch."""
        self._returned: set[int] = set()
        self._next = 1
        self._loop = asyncio.get_running_loop()
        self._selected = channel.confirm(self._on_confirm, self._on_return)
        channel.on_closed.append(self._on_closed)

    async def open(self) -> "ConfirmChannel":
        """Wait until the broker has switched confirms on."""
        try:
            await self._selected
        except BaseException:
            self.channel.abandon()
            raise
        return self

    async def publish(self, batch: Sequence[PlannedMessage], timeout: float) -> list[Outcome]:
        """Send a batch and wait for its confirms; what has none in time is `Unknown`.

        Raises when nothing was sent.
        """
        if (reason := self.channel.closed_reason) is not None:
            raise ConnectionLost("the channel to RabbitMQ is closed") from reason

        call = _Call(batch, self._loop.create_future())
        exchanges = [name for name in dict.fromkeys(item.exchange for item in batch) if name]
        call.checks = [
            self.channel.request(spec.Exchange.Declare(exchange=name, passive=True))
            for name in exchanges
        ]

        for index, item in enumerate(batch):
            try:
                self.channel.publish(item.exchange, item.key, item.properties, item.body)
            except _UNFIT as error:  # pika writes nothing of such a message, so it takes no number
                text = (
                    f"RabbitMQ cannot carry this message for {item.queue!r}: {type(error).__name__}"
                )
                call.end(index, Failed(ErrorKind.PERMANENT, text, error))
            except Exception as error:  # noqa: BLE001 - some of the batch may have been written (G1)
                self._give_up(call, index, error)
                break
            else:
                self._slots[self._next] = call, index
                self._next += 1
                if (index + 1) % _WRITE_EVERY == 0:
                    self.channel.flush()
        self.channel.flush()

        unanswered = Unknown("RabbitMQ did not answer in time; the message may be stored")
        if call.open:
            deadline = self._loop.call_later(timeout, end, call.done)
            try:
                await call.done
            except Exception as error:  # noqa: BLE001 - the batch was written, so it is not `Failed` (G1)
                unanswered = Unknown(f"waiting for RabbitMQ failed: {error!r}", error)
            finally:
                deadline.cancel()

        return [outcome or unanswered for outcome in call.outcomes]

    def _give_up(self, call: _Call, index: int, error: Exception) -> None:
        """End the batch as unknown, and close the channel.

        It is unknown whether the broker counts this message, so a later confirm could belong to
        another one.
        """
        for place in range(index, len(call.batch)):
            call.end(place, Unknown(f"writing to RabbitMQ failed: {error!r}", error))
        self.channel.abandon()

    def _on_confirm(self, last: int, multiple: bool, stored: bool) -> None:  # noqa: FBT001 - as the frame has them
        tags = [*takewhile(lambda number: number <= last, self._slots)] if multiple else [last]
        for number in tags:
            if (slot := self._slots.pop(number, None)) is not None:
                call, index = slot
                call.end(index, self._outcome(number, call.batch[index], stored=stored))

    def _outcome(self, number: int, item: PlannedMessage, *, stored: bool) -> Outcome:
        if number in self._returned:
            self._returned.discard(number)
            if item.refusal == "route":
                text = (
                    f"no binding of router {item.queue!r} takes key {item.key!r}. `mqcore "
                    f"routes {item.queue}` shows them"
                )
                return Failed(ErrorKind.NOT_FOUND, text)
            return Failed(
                ErrorKind.NOT_FOUND, f"RabbitMQ has no queue {item.queue!r}: declare it first"
            )

        if stored:
            return STORED
        if item.refusal == "route":
            return Unknown(
                f"a queue of router {item.queue!r} refused the message; others may have stored it"
            )
        if item.refusal == "full":
            return Failed(ErrorKind.FULL, f"queue {item.queue!r} holds max_length ready messages")
        return Failed(ErrorKind.TRANSIENT, f"RabbitMQ refused a message for {item.queue!r}")

    def _on_return(self, method: Any, received: Properties, _: bytes) -> None:
        name = (received.message_id, method.exchange, method.routing_key)
        for number, (call, index) in self._slots.items():
            item = call.batch[index]
            if (
                number not in self._returned
                and (item.properties.message_id, item.exchange, item.key) == name
            ):
                self._returned.add(number)
                return

    def _on_closed(self, reason: BaseException) -> None:
        """End all open messages.

        What the broker had not read when it missed an exchange is not stored (G1).
        """
        cause = reason if isinstance(reason, Exception) else None
        missing = closed_by(reason, NOT_FOUND)
        slots, self._slots = self._slots, {}

        for call, index in slots.values():
            exchange = call.batch[index].exchange
            outcome: Outcome
            if not missing or call.may_be_read:
                outcome = Unknown(
                    f"the connection to RabbitMQ broke before it answered: {reason}", cause
                )
            elif f"'{exchange}'" in str(reason):
                outcome = Failed(
                    ErrorKind.NOT_FOUND, f"RabbitMQ has no exchange {exchange!r}", cause
                )
            else:
                text = "RabbitMQ closed the channel for an earlier message"
                outcome = Failed(ErrorKind.TRANSIENT, text, cause)
            call.end(index, outcome)


class ConfirmChannels:
    """The channels of the publishing connection, one for each kind of message.

    A missing exchange closes its channel and makes all open messages there unknown, so messages to
    queues have a channel of their own. During an alarm nothing is written: the broker would store
    it when the alarm ends, long after the publish has failed.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._open: dict[str, ConfirmChannel] = {}
        self._lock = asyncio.Lock()

    @property
    def blocked(self) -> bool:
        """Whether the broker takes no publishes, because of an alarm."""
        return self._link.blocked is not None

    async def alarm(self) -> str | None:
        """Return the reason of an alarm, or None: the broker reports one only to publishers.

        So this publishes a message that no queue takes.
        """
        nowhere = f"mq.nowhere.{new_id()}"
        await self.send(QUEUES, [PlannedMessage("", nowhere, Properties(), b"", nowhere)], _PROBE)
        return self._link.blocked

    async def send(
        self, kind: str, batch: Sequence[PlannedMessage], timeout: float
    ) -> list[Outcome]:
        """Send messages of one kind; an outcome for each, in order.

        Raises if the connection is lost and nothing was sent.
        """
        if self.blocked:
            text = (
                "RabbitMQ takes no publishes: the broker's memory or disk alarm is on "
                f"({self._link.blocked})"
            )
            return [Failed(ErrorKind.TRANSIENT, text)] * len(batch)

        confirms = self._open.get(kind)
        if confirms is None or confirms.channel.closed_reason is not None:
            until = asyncio.get_running_loop().time() + timeout
            try:
                async with asyncio.timeout_at(until):
                    confirms = await self.channel(kind)
            except TimeoutError as error:
                text = f"RabbitMQ opened no channel within {timeout:g} s; nothing was sent"
                return [Failed(ErrorKind.TRANSIENT, text, error)] * len(batch)
            timeout = until - asyncio.get_running_loop().time()

        return await confirms.publish(batch, timeout)

    async def channel(self, kind: str) -> ConfirmChannel:
        """Return the open channel for a kind of message."""
        async with self._lock:
            known = self._open.get(kind)
            if known is None or known.channel.closed_reason is not None:
                known = self._open[kind] = await ConfirmChannel(await self._link.channel()).open()
            return known
