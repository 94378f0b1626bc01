"""One connection to the broker, as futures: what pika's callbacks say, and what they leave unsaid.

    Link ── one pika connection: writes joined per loop turn, a watchdog of its own, a close that ends
      └─ Channel ── requests in a row, each with a future, all of them ended when the channel closes

Measured on pika 1.4.4: its heartbeat notices a dead peer after 2 to 3 intervals, its `close` never ends while the broker blocks
publishers, and an RPC's callback never comes when the channel closes first. Each has its answer here. Three private parts of pika
are used (`_adapter_emit_data`, `_terminate_stream`, `Channel._send_method`), which is why its next minor release is excluded.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from pika import BasicProperties, ConnectionParameters, spec
from pika.adapters.asyncio_connection import AsyncioConnection
from pika.channel import Channel as PikaChannel
from pika.exceptions import ConnectionClosedByClient, StreamLostError

from mqcore.spi import ConnectionLost
from mqcore_rabbitmq.errors import cause_of

__all__ = ["Channel", "Link"]

_TICK = 1.0
_CLOSE = 0.8
"""Seconds that an orderly close may take before the connection is cut."""
_ANSWER = 10.0
"""Seconds within which a request has its answer, or the connection is given up."""
_serials = itertools.count(1)
_REPLIES = [
    spec.Queue.DeclareOk,
    spec.Queue.BindOk,
    spec.Queue.UnbindOk,
    spec.Queue.PurgeOk,
    spec.Queue.DeleteOk,
    spec.Exchange.DeclareOk,
    spec.Exchange.BindOk,
    spec.Exchange.UnbindOk,
    spec.Exchange.DeleteOk,
    spec.Basic.QosOk,
    spec.Basic.CancelOk,
    spec.Confirm.SelectOk,
]


class _Connection(AsyncioConnection):
    """pika's connection with the frames of one loop turn written together."""

    bytes_received: int
    _terminate_stream: Callable[[Exception], None]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._unsent: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        super().__init__(*args, **kwargs)

    def _adapter_emit_data(self, data: bytes) -> None:
        self._unsent.append(data)
        if len(self._unsent) == 1:
            self._loop.call_soon(self._flush)

    def _adapter_disconnect_stream(self) -> None:
        self._flush()
        super()._adapter_disconnect_stream()  # type: ignore[misc]  # the stubs leave out what is private

    def _flush(self) -> None:
        unsent, self._unsent = self._unsent, []
        transport = getattr(self, "_transport", None)
        if unsent and transport is not None:
            transport.write(b"".join(unsent))


class Channel:
    """One open channel. `serial` is its name in receipts: no other channel of this process ever has it."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.serial = next(_serials)
        self.closed: BaseException | None = None
        self.on_closed: list[Callable[[BaseException], None]] = []
        self._waiting: deque[asyncio.Future[Any]] = deque()
        raw.add_callback(self._answered, _REPLIES, one_shot=False)
        raw.add_on_close_callback(self._on_close)

    def ask(self, method: Any) -> asyncio.Future[Any]:
        """Send a request; the future has the broker's answer. Many may be under way: a channel answers in their order."""
        future = asyncio.get_running_loop().create_future()
        if self.closed is not None:
            future.set_exception(self.closed)
            return future
        self._waiting.append(future)
        self.raw._send_method(method)  # noqa: SLF001 - pika's own calls wait for each other; ours may go in a row
        return future

    def tell(self, method: Any) -> None:
        """Send what has no answer (an acknowledgement, or a request with nowait); nothing when the channel has closed."""
        if self.closed is None:
            self.raw._send_method(method)  # noqa: SLF001 - as in `ask`

    def publish(self, exchange: str, key: str, properties: BasicProperties, body: bytes) -> None:
        """Send a message, mandatory."""
        method = spec.Basic.Publish(exchange=exchange, routing_key=key, mandatory=True)
        self.raw._send_method(method, (properties, body))  # noqa: SLF001 - as in `ask`; without three checks for each message

    async def consume(
        self,
        queue: str,
        callback: Callable[..., None],
        arguments: dict[str, Any] | None = None,
        *,
        exclusive: bool = False,
    ) -> str:
        """Start a consumer; its tag. Raises what closed the channel when the queue is missing."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.closed is not None:
            raise self.closed

        def started(_: object) -> None:
            if not future.done():
                future.set_result(None)

        def failed(reason: BaseException) -> None:
            if not future.done():
                future.set_exception(reason)

        self.on_closed.append(failed)
        try:
            tag: str = self.raw.basic_consume(
                queue, callback, exclusive=exclusive, arguments=arguments, callback=started
            )
            await future
        finally:
            if failed in self.on_closed:
                self.on_closed.remove(failed)
        return tag

    def cancel(self, tag: str) -> asyncio.Future[Any]:
        """End a consumer; what was on its way to it still comes before the answer, where pika's own call would refuse it."""
        answer = self.ask(spec.Basic.Cancel(consumer_tag=tag))
        answer.add_done_callback(lambda _: self.raw._consumers.pop(tag, None))  # noqa: SLF001 - what pika does then
        return answer

    async def give_all_back(self) -> None:
        """Give all that is unsettled back to the queues, and wait until the broker has taken it."""
        self.tell(spec.Basic.Nack(delivery_tag=0, multiple=True, requeue=True))
        await self.ask(spec.Basic.Qos(prefetch_count=0))

    async def close(self) -> None:
        """Close and wait for the broker's answer, at most a moment; what is unsettled goes back to its queues."""
        if self.closed is not None:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_closed.append(lambda _: None if future.done() else future.set_result(None))
        if self.raw.is_open:
            self.raw.close()
        await asyncio.wait([future], timeout=_CLOSE)

    def abandon(self) -> None:
        """Close without waiting for the answer, also while it opens."""
        if not (self.raw.is_closed or self.raw.is_closing):
            self.raw.close()

    def _answered(self, frame: Any) -> None:
        if self._waiting and not (future := self._waiting.popleft()).done():
            future.set_result(frame.method)

    def _on_close(self, _: PikaChannel, reason: BaseException) -> None:
        self.closed = reason
        for future in self._waiting:
            if not future.done():
                future.set_exception(reason)
                future.exception()  # an abandoned request is no news
        self._waiting.clear()
        for tell in tuple(self.on_closed):
            tell(reason)
        self.on_closed.clear()


class Link:
    """One connection. `blocked` is the broker's reason while it takes no publishes, else None."""

    def __init__(self, silence: float, lost: Callable[[Exception], None]) -> None:
        self.blocked: str | None = None
        self.turns: dict[str, asyncio.Lock] = {}
        """For each queue that was looked into: whose turn it is."""
        self._silence = silence
        self._lost = lost
        self._connection: _Connection | None = None
        self._closing = False
        self._gone: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def properties(self) -> dict[str, Any]:
        """What the server says of itself."""
        connection = self._connection
        return dict(connection.server_properties or {}) if connection is not None else {}

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._connection is not None and self._connection.is_open and not self._closing

    async def open(self, hosts: Sequence[ConnectionParameters]) -> None:
        """Connect to the first host that lets us in; raises what the last one said."""
        for number, host in enumerate(hosts):
            try:
                await self._open(host)
            except Exception:
                if number + 1 == len(hosts):
                    raise
            else:
                return

    async def _open(self, host: ConnectionParameters) -> None:
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()
        self._gone = loop.create_future()

        def failed(_: object, error: BaseException | str) -> None:
            if not opened.done():
                reason = error if isinstance(error, BaseException) else StreamLostError(error)
                opened.set_exception(cause_of(reason, host.virtual_host))

        connection = _Connection(
            host,
            on_open_callback=lambda _: None if opened.done() else opened.set_result(None),
            on_open_error_callback=failed,
            on_close_callback=self._on_close,
            custom_ioloop=loop,
        )
        try:
            await opened
        except BaseException:
            if opened.cancelled() and not connection.is_closed:
                connection.close()
            raise
        self._connection = connection
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._watch(connection.bytes_received, 0)

    async def channel(self) -> Channel:
        """Open a channel. Raises `ConnectionLost` when the connection is closed."""
        connection = self._connection
        if connection is None or not self.is_open:
            raise ConnectionLost("the connection to RabbitMQ is closed; open it first")
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        raw = connection.channel(on_open_callback=lambda _: None if opened.done() else opened.set_result(None))
        channel = Channel(raw)
        channel.on_closed.append(lambda reason: None if opened.done() else opened.set_exception(reason))
        try:
            async with asyncio.timeout(_ANSWER):
                await opened
        except BaseException:
            channel.abandon()
            raise
        return channel

    async def close(self) -> None:
        """End it in good order, or by force when the broker does not answer: it blocks, or it is gone. Never raises."""
        self._closing = True
        if self._timer is not None:
            self._timer.cancel()
        connection, self._connection = self._connection, None
        if connection is None or self._gone is None or connection.is_closed:
            return
        if not connection.is_closing:
            connection.close()
        await asyncio.wait([self._gone], timeout=_CLOSE)
        if not self._gone.done():
            connection._terminate_stream(StreamLostError("closed by force"))  # noqa: SLF001 - abort alone calls nobody back
            await asyncio.wait([self._gone], timeout=_CLOSE)

    def _watch(self, seen: int, silent: int) -> None:
        """Count the seconds without a byte. A loop that was blocked itself counts one, however long it took."""
        connection = self._connection
        if connection is None or not connection.is_open:
            return
        received = connection.bytes_received
        silent = silent + 1 if received == seen else 0
        if silent > self._silence:
            error = StreamLostError(
                f"nothing came from RabbitMQ for {self._silence:g} s: it is gone, or the network is"
            )
            connection._terminate_stream(error)  # noqa: SLF001 - as in `close`
            return
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_TICK, self._watch, received, silent)

    def _on_close(self, _: object, reason: BaseException) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)
        if not self._closing and not isinstance(reason, ConnectionClosedByClient):
            self._lost(reason if isinstance(reason, Exception) else StreamLostError(f"{reason!r}"))

    def _on_blocked(self, _: object, frame: Any) -> None:
        self.blocked = frame.method.reason or "an alarm"

    def _on_unblocked(self, _: object, __: object) -> None:
        self.blocked = None
