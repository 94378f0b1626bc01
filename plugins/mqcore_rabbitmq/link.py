"""One connection to the broker, with futures in place of pika's callbacks.

    Link ── one pika connection: writes joined per loop turn, a watchdog, a close that ends
      └─ Channel ── pipelined requests, each with a future, which all end when the channel closes

Measured on pika 1.4.4: its heartbeat notices a dead peer after 2 to 3 intervals. Its `close` never
ends while the broker blocks publishers. The callback of a request never comes when the channel
closes first, nor that of a connect which is reset at once. This module handles each.

pika also takes most of the time of a message. So messages and confirms do not pass through it:
`Channel.publish` writes their frames, and `ContentReader` reads them.

It uses private parts of pika (`_AsyncioIOServicesAdapter`, `_adapter_emit_data`,
`_on_data_available`, `_frame_buffer`, `_process_frame`, `_terminate_stream`, `_send_method`), so
the next minor release of pika is excluded.
"""

import asyncio
import itertools
import socket
import ssl
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any

from pika import ConnectionParameters, spec
from pika.adapters.asyncio_connection import (
    AsyncioConnection,
    _AsyncioIOReference,
    _AsyncioIOServicesAdapter,
)
from pika.adapters.utils.nbio_interface import AbstractIOReference
from pika.channel import Channel as PikaChannel
from pika.exceptions import ConnectionClosedByClient, StreamLostError
from pika.frame import Method

from mqcore.spi import ConnectionLost
from mqcore_rabbitmq.errors import cause_of
from mqcore_rabbitmq.frames import ContentReader, Properties, content_frames, frame_at, read_frame
from mqcore_rabbitmq.layout import Server

__all__ = ["DIRECT_REPLY", "Channel", "Link", "end"]

_TICK = 1.0
_CLOSE_TIMEOUT = 0.8
"""Seconds that an orderly close may take before the connection is cut."""
_OPEN_TIMEOUT = 10.0
"""Seconds within which a channel must open."""
_LARGEST_FRAME, _FRAME_OVERHEAD = 131_072, 20
"""Bytes of a frame where the broker sets no limit, and those in it that are not properties."""
DIRECT_REPLY = "amq.rabbitmq.reply-to."
"""The prefix of the names of a direct reply: RabbitMQ gives a consumer of these no queue."""
_LARGEST_READ = 131_072
_serials = itertools.count(1)


class _Services(_AsyncioIOServicesAdapter):
    """pika's adapter to asyncio, with asyncio's own transports.

    They write at once to an idle socket, and read it once for each event. pika's wait two turns of
    the loop for each write, read until nothing is left, and raise into the loop for a socket that
    is reset while it connects.
    """

    def create_streaming_connection(
        self,
        protocol_factory: Callable[[], Any],
        sock: socket.socket,
        on_done: Callable[..., None],
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> AbstractIOReference:
        is_started = False

        async def connect() -> tuple[asyncio.Transport, Any]:
            nonlocal is_started
            is_started, loop = True, asyncio.get_running_loop()
            try:
                sock.getpeername()
            except OSError as error:
                sock.close()
                raise ConnectionResetError("the connection was reset while it opened") from error

            try:
                transport, stream = await loop.create_connection(
                    _Stream, sock=sock, ssl=ssl_context, server_hostname=server_hostname
                )
            except ConnectionResetError as error:  # asyncio's own has no text
                text = "the connection ended during the TLS handshake: is this the TLS port?"
                raise ConnectionResetError(text) from error
            stream.pika = protocol_factory()
            stream.pika.connection_made(transport)
            loop.call_soon(transport.resume_reading)  # when pika has the result of this
            return transport, stream.pika

        def release(_: object) -> None:
            if not is_started:  # cancelled before its first turn
                sock.close()

        connecting = asyncio.ensure_future(connect())
        connecting.add_done_callback(release)
        return _AsyncioIOReference(connecting, on_done)


class _Stream(asyncio.BufferedProtocol):
    """Passes what comes to pika's protocol, and reads nothing before there is one.

    It reads into one buffer. asyncio would allocate 256 KiB for each read and shrink it then, which
    takes three calls of the system.
    """

    def __init__(self) -> None:
        self.pika: Any = None
        self._transport: asyncio.Transport
        self._buffer = memoryview(bytearray(_LARGEST_READ))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if isinstance(transport, asyncio.Transport):
            self._transport = transport
            transport.pause_reading()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's own guess
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.pika.data_received(bytes(self._buffer[:nbytes]))

    def eof_received(self) -> bool:
        # By itself the transport would first write what waits, to a peer that may never read it.
        asyncio.get_running_loop().call_soon(self._transport.abort)
        return self.pika is not None and bool(self.pika.eof_received())

    def connection_lost(self, exc: Exception | None) -> None:
        if self.pika is not None:
            self.pika.connection_lost(exc)


class _Connection(AsyncioConnection):
    """pika's connection, which joins the writes of a loop turn, and which no message can break."""

    bytes_received: int
    _frame_buffer: bytes
    _terminate_stream: Callable[[Exception], None]
    _process_frame: Callable[[Any], None]
    _transport: asyncio.WriteTransport | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._unsent: list[bytes] = []
        self._will_flush = False
        self.channels: dict[int, Channel] = {}
        """Our channels, by their number."""
        self._loop = asyncio.get_running_loop()
        super().__init__(*args, **kwargs)

    def _on_data_available(self, data: bytes) -> None:
        """Read frames. An error in pika's decoder, for one message, would close the connection."""
        if not self.channels:  # the handshake
            super()._on_data_available(data)  # type: ignore[misc]  # the stubs leave out what is private
            return

        self.bytes_received += len(data)
        buffer, at = self._frame_buffer + data, 0

        while span := frame_at(buffer, at):
            kind, number, start, end = span
            channel = self.channels.get(number)
            if channel is None or not channel.content.read(kind, buffer, start, end):
                frame = read_frame(buffer, at)[1]
                if channel is None or not channel.answer(frame.method):
                    self._process_frame(frame)
            at = end + 1

        self._frame_buffer = buffer[at:]

    def _adapter_emit_data(self, data: bytes) -> None:
        if not self._will_flush:
            self._will_flush = True
            self._loop.call_soon(self.flush)
        self._unsent.append(data)

    def add(self, frames: Sequence[bytes]) -> None:
        """Add frames, or parts of frames, to those that the next `flush` writes."""
        self._unsent += frames

    def _adapter_disconnect_stream(self) -> None:
        self.flush()
        super()._adapter_disconnect_stream()  # type: ignore[misc]  # the stubs leave out what is private

    def flush(self) -> None:
        """Write the frames of this loop turn now."""
        self._will_flush = False
        unsent, self._unsent = self._unsent, []
        if unsent and self._transport is not None:
            self._transport.write(b"".join(unsent))


class Channel:
    """One open channel. `serial` is its number in receipts, unique in this process."""

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.serial = next(_serials)
        self.closed: BaseException | None = None
        self.on_closed: list[Callable[[BaseException], None]] = []
        self._waiting: dict[str, deque[asyncio.Future[Any]]] = defaultdict(deque)
        """Open requests by the name of the answer. Answers of different kinds may change places,
        because a queue answers by itself."""
        self.content = ContentReader()
        raw.connection.channels[raw.channel_number] = self
        raw.add_on_close_callback(self._on_close)

    def request(self, method: Any) -> asyncio.Future[Any]:
        """Send a request and return a future of the answer.

        Requests may be pipelined: those of one kind are answered in order.
        """
        future = asyncio.get_running_loop().create_future()
        if (reason := self.closed_reason) is not None:
            _fail(future, reason)
            return future
        self.raw._send_method(method)  # noqa: SLF001 - pika's own calls cannot be pipelined
        self._waiting[f"{method.NAME}Ok"].append(future)  # after what may raise
        return future

    def send(self, method: Any) -> None:
        """Send a method without an answer, unless the channel is closed or closing."""
        if self.closed_reason is None:
            self.raw._send_method(method)  # noqa: SLF001 - as in `request`

    def publish(self, exchange: str, key: str, properties: Properties, body: bytes) -> None:
        """Publish a message with the next `flush`.

        It is mandatory, so that the broker returns it if no queue takes it. Not so a direct reply:
        RabbitMQ delivers and returns that (seen on 4.0).
        """
        connection, number = self.raw.connection, self.raw.channel_number
        size = connection._body_max_length  # noqa: SLF001 - what the broker allows
        content = content_frames(number, properties, body, size)
        connection.add([_publish_frame(number, exchange, key), *content])

    def confirm(
        self,
        confirmed: Callable[[int, bool, bool], None],
        returned: Callable[[Any, Properties, bytes], None],
    ) -> asyncio.Future[Any]:
        """Switch on confirms.

        `confirmed` is called with the number of each confirm, whether it is for all numbers up to
        that one, and whether the broker has stored the message; `returned` with each message that
        comes back.
        """
        self.content.on_confirm, self.content.on_return = confirmed, returned
        return self.request(spec.Confirm.Select())

    def flush(self) -> None:
        """Write now what was published and sent in this loop turn."""
        self.raw.connection.flush()

    def consume(self, queue: str, callback: Callable[..., None]) -> tuple[str, asyncio.Future[Any]]:
        """Start a consumer; return its tag and the answer. Do not cancel it before the answer."""
        tag = f"mq.{next(_serials)}"
        self.content.consumers[tag.encode()] = callback
        return tag, self.request(spec.Basic.Consume(queue=queue, consumer_tag=tag))

    def cancel(self, tag: str) -> asyncio.Future[Any]:
        """End a consumer. Messages on their way to it still arrive before the answer."""
        answer = self.request(spec.Basic.Cancel(consumer_tag=tag))
        answer.add_done_callback(lambda _: self.content.consumers.pop(tag.encode(), None))
        return answer

    async def return_all(self) -> None:
        """Return all unsettled messages to their queues, and wait until the broker has done it."""
        self.send(spec.Basic.Nack(delivery_tag=0, multiple=True, requeue=True))
        await self.request(spec.Basic.Qos(prefetch_count=0))

    async def close(self) -> None:
        """Close and wait up to 0.8 s for the answer; unsettled messages return to their queues."""
        if self.closed is not None:
            return
        closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.on_closed.append(lambda _: end(closed))
        self.abandon()
        await asyncio.wait([closed], timeout=_CLOSE_TIMEOUT)

    def abandon(self) -> None:
        """Close without waiting for the answer, also while the channel opens.

        The close ends all consumers. To cancel one before the broker has confirmed its start
        crashes the channel there, which closes the connection (seen on 4.0).
        """
        self.content.consumers.clear()
        if not (self.raw.is_closed or self.raw.is_closing):
            self.raw.close()

    @property
    def closed_reason(self) -> BaseException | None:
        """Return why nothing may be sent any more, or None.

        After our own `channel.close` the broker does not know the channel. It would close the
        connection for a further frame, 504 "expected 'channel.open'" (seen on 3.10 and 4.0).
        """
        if self.closed is None and (self.raw.is_closing or self.raw.is_closed):
            return ConnectionLost("this channel is being closed")
        return self.closed

    def answer(self, method: Any) -> bool:
        """End the request that this answers; False if it is another method, for pika."""
        waiting = self._waiting.get(method.NAME)
        if not waiting:
            return False
        end(waiting.popleft(), method)
        return True

    def _on_close(self, _: PikaChannel, reason: BaseException) -> None:
        self.closed = reason
        self.raw.connection.channels.pop(self.raw.channel_number, None)
        for future in [future for waiting in self._waiting.values() for future in waiting]:
            _fail(future, reason)
        self._waiting.clear()
        for notify in tuple(self.on_closed):
            notify(reason)
        self.on_closed.clear()


@lru_cache(maxsize=1024)
def _publish_frame(channel: int, exchange: str, key: str) -> bytes:
    mandatory = not key.startswith(DIRECT_REPLY)
    method = spec.Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory)
    frame: bytes = Method(channel, method).marshal()
    return frame


class Link:
    """One connection. `blocked` is the broker's reason for taking no publishes, else None."""

    def __init__(self, silence: float, lost: Callable[[Exception], None]) -> None:
        self.blocked: str | None = None
        self.turns: dict[str, asyncio.Lock] = {}
        """A lock for each queue, so that readers on this connection take turns."""
        self._silence = silence
        self._lost = lost
        self._connection: _Connection | None = None
        self._closing = False
        self._gone: asyncio.Future[None] | None = None

    @property
    def connection(self) -> AsyncioConnection:
        """Return pika's connection. Raises `ConnectionLost` when it is closed."""
        if self._connection is None or not self._connection.is_open:
            raise ConnectionLost("the connection to RabbitMQ is closed; open it first")
        return self._connection

    @property
    def server(self) -> Server:
        """Return what the open connection says of its server. Raises `ConnectionLost`."""
        connection = self.connection
        about, params = connection.server_properties or {}, connection.params
        user = str(getattr(params.credentials, "username", ""))
        room = (params.frame_max or _LARGEST_FRAME) - _FRAME_OVERHEAD
        return Server(str(about.get("product", "?")), str(about.get("version", "0")), user, room)

    async def open(self, hosts: Sequence[ConnectionParameters]) -> None:
        """Connect to the first host that accepts; raises the error of the last one."""
        for host in hosts[:-1]:
            with suppress(Exception):
                return await self._open(host)
        return await self._open(hosts[-1])

    async def _open(self, host: ConnectionParameters) -> None:
        loop = asyncio.get_running_loop()
        opened: asyncio.Future[None] = loop.create_future()
        self._gone = loop.create_future()

        def failed(_: object, error: BaseException | str) -> None:
            reason = error if isinstance(error, BaseException) else StreamLostError(error)
            _fail(opened, cause_of(reason, host.virtual_host))

        connection = _Connection(
            host,
            on_open_callback=lambda _: end(opened),
            on_open_error_callback=failed,
            on_close_callback=self._on_close,
            custom_ioloop=_Services(loop),
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
        connection = self.connection
        opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        raw = connection.channel(on_open_callback=lambda _: end(opened))
        channel = Channel(raw)
        channel.on_closed.append(lambda reason: _fail(opened, reason))
        try:
            async with asyncio.timeout(_OPEN_TIMEOUT):
                await opened
        except BaseException:
            channel.abandon()
            raise
        return channel

    async def close(self) -> None:
        """Close the connection; cut it if the broker does not answer within 0.8 s. Never raises."""
        self._closing = True
        connection, self._connection = self._connection, None
        if connection is None or self._gone is None or connection.is_closed:
            return
        if not connection.is_closing:
            connection.close()
        try:
            await asyncio.wait([self._gone], timeout=_CLOSE_TIMEOUT)
        finally:  # also when cancelled: a process has to end
            if not self._gone.done():
                connection._terminate_stream(StreamLostError("closed by force"))  # noqa: SLF001 - after an abort pika calls no callback
        await asyncio.wait([self._gone], timeout=_CLOSE_TIMEOUT)

    def _watch(self, seen: int, silent: int) -> None:
        """Count the seconds without a byte, and cut a silent connection.

        If the event loop was blocked, that counts as one second.
        """
        connection = self._connection
        if connection is None or not connection.is_open:
            return
        received = connection.bytes_received
        silent = silent + 1 if received == seen else 0
        if silent > self._silence:
            error = StreamLostError(
                f"RabbitMQ sent nothing for {self._silence:g} s: the broker or the network is down"
            )
            connection._terminate_stream(error)  # noqa: SLF001 - as in `close`
            return
        asyncio.get_running_loop().call_later(_TICK, self._watch, received, silent)

    def _on_close(self, _: object, reason: BaseException) -> None:
        if self._gone is not None:
            end(self._gone)
        if not self._closing and not isinstance(reason, ConnectionClosedByClient):
            self._lost(reason if isinstance(reason, Exception) else StreamLostError(f"{reason!r}"))

    def _on_blocked(self, _: object, frame: Any) -> None:
        self.blocked = frame.method.reason or "an alarm"

    def _on_unblocked(self, _: object, __: object) -> None:
        self.blocked = None


def end(future: asyncio.Future[Any], answer: object = None) -> None:
    """Set the result of a future, unless it is done or cancelled."""
    if not future.done():
        future.set_result(answer)


def _fail(future: asyncio.Future[Any], error: BaseException) -> None:
    """Set the error of a future as `end` does; nothing is logged if it is not read."""
    if not future.done():
        future.set_exception(error)
        future.exception()
