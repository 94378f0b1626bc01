"""The same broker for programs without asyncio: every method blocks, and is one line.

    with Broker.connect("redis://localhost/0") as broker:
        broker.publish(orders, Order(id=1), priority=8)
        with broker.consume(orders) as deliveries:
            for delivery in deliveries:
                delivery.ack()

One message: the call is handed to an event loop in a daemon thread of the broker's own,
`mqcore.Broker` does there what it always does, and the caller waits for the ending. Nothing is
decided here, so both APIs act alike (G17); a test compares their signatures.

All of it may be used from several threads at once. Ctrl-C cancels the call that waits. Where an
event loop is running a call would stand still with all that lives in that loop, so it is refused:
use `mqcore.Broker` and `await` there, or another thread. Middleware runs in the broker's thread.
Close a broker, best by `with`: one that is forgotten keeps no program from ending, but what its
consumers hold then comes back as after a crash (G4). After `os.fork` connect a new one: threads
stay behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar, Unpack, overload

from mqcore.broker import Broker as AsyncBroker
from mqcore.broker import session_of
from mqcore.consuming.context import DeliveryInfo
from mqcore.defaults import LEASE, PREFETCH
from mqcore.errors import ConnectionLost
from mqcore.publishing.enlisting import enlist_in_thread
from mqcore.publishing.outcomes import only
from mqcore.publishing.producer import enlistment_of
from mqcore.sync.loop_thread import LoopThread

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Sequence
    from datetime import timedelta
    from types import TracebackType

    from pydantic import TypeAdapter

    from mqcore.admin.dead_letters import DeadLetter, DeadLetterFilter, Redriven
    from mqcore.admin.dead_letters import DeadLetters as AsyncDeadLetters
    from mqcore.clock import Clock
    from mqcore.connection.altering import AlterOptions
    from mqcore.consuming.consumer import Consumer as AsyncConsumer
    from mqcore.consuming.consumer import Received as AsyncReceived
    from mqcore.errors import MqcoreError
    from mqcore.publishing.options import PublishOptions, Receipt, Target
    from mqcore.publishing.producer import Producer as AsyncProducer
    from mqcore.queue import Queue
    from mqcore.router import Router
    from mqcore.rules.capabilities import Capabilities
    from mqcore.rules.retry import AfterCrash, RetryPolicy
    from mqcore.rules.routing import Binding
    from mqcore.session import ConnectOptions, Health
    from mqcore.spi import Entry, QueueCounts

__all__ = ["Broker", "Consumer", "DeadLetters", "Producer", "Received"]

T = TypeVar("T")
R = TypeVar("R")


class Broker:
    """A connected broker for programs that block, with the methods of `mqcore.Broker`."""

    def __init__(self, url: str | None = None, **options: Unpack[ConnectOptions]) -> None:
        """Read the settings and find the plugin; no I/O yet.

        Raises `ConfigurationError` and `BackendNotFound`.
        """
        self._broker = AsyncBroker(url, **options)
        self._loop = LoopThread(self._broker.close)

    @classmethod
    def connect(cls, url: str | None = None, **options: Unpack[ConnectOptions]) -> Broker:
        """Return a broker for `with`.

        Without a URL: environment, `mqcore.toml`, `[tool.mqcore]`, then `memory://`.
        """
        return cls(url, **options)

    def __enter__(self) -> Self:
        """Open."""
        self.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def open(self) -> None:
        """As `mqcore.Broker.open`."""
        self._loop.run(self._broker.open())

    def close(self) -> None:
        """As `mqcore.Broker.close`; waits until the broker's thread has ended, too.

        Idempotent and bounded.
        """
        self._loop.close()

    @property
    def capabilities(self) -> Capabilities:
        """As `mqcore.Broker.capabilities`."""
        return self._broker.capabilities

    @property
    def clock(self) -> Clock:
        """As `mqcore.Broker.clock`."""
        return self._broker.clock

    @property
    def is_local(self) -> bool:
        """As `mqcore.Broker.is_local`."""
        return self._broker.is_local

    def diagnose(self) -> list[str]:
        """As `mqcore.Broker.diagnose`."""
        return self._loop.run(self._broker.diagnose())

    def unwrap(self, kind: type[R]) -> R:
        """As `mqcore.Broker.unwrap`.

        What it returns belongs to the broker's own thread and loop.
        """
        return self._broker.unwrap(kind)

    def publish(self, to: Target[T], payload: T, **options: Unpack[PublishOptions]) -> Receipt:
        """As `mqcore.Broker.publish` (G1).

        The transaction of `session=` is used in the caller's thread.
        """
        if "session" in options:
            return only(self._enlist(to, [payload], options, is_one=True))
        return self._loop.run(self._broker.publish(to, payload, **options))

    def _enlist(
        self, to: Target[T], payloads: Iterable[T], options: PublishOptions, *, is_one: bool
    ) -> list[Receipt | MqcoreError]:
        publisher = session_of(self._broker).publisher
        make = partial(publisher.enlistment, to, payloads, is_one=is_one)
        return enlist_in_thread(make, options, self._loop.run)

    def publish_many(
        self, to: Target[T], payloads: Iterable[T], **options: Unpack[PublishOptions]
    ) -> list[Receipt | MqcoreError]:
        """As `mqcore.Broker.publish_many`.

        The payloads are gathered here, in the caller's thread.
        """
        if "session" in options:
            return self._enlist(to, _gathered(payloads), options, is_one=False)
        return self._loop.run(self._broker.publish_many(to, _gathered(payloads), **options))

    def producer(self, to: Target[T], **defaults: Unpack[PublishOptions]) -> Producer[T]:
        """As `mqcore.Broker.producer`."""
        return Producer(self._loop, self._broker.producer(to, **defaults))

    @overload
    def request(
        self,
        to: Target[T],
        payload: T,
        *,
        result: type[R] | TypeAdapter[R],
        **options: Unpack[PublishOptions],
    ) -> R: ...
    @overload
    def request(self, to: Target[T], payload: T, **options: Unpack[PublishOptions]) -> Any: ...
    def request(
        self, to: Target[T], payload: T, *, result: Any = None, **options: Unpack[PublishOptions]
    ) -> Any:
        """As `mqcore.Broker.request`."""
        return self._loop.run(self._broker.request(to, payload, result=result, **options))

    @overload
    def consume(
        self,
        queue: Queue[T],
        *,
        prefetch: int = PREFETCH,
        retry: RetryPolicy | None = None,
        lease: float = LEASE,
        after_crash: AfterCrash = "isolate",
    ) -> Consumer[T]: ...
    @overload
    def consume(
        self,
        queue: str,
        *,
        prefetch: int = PREFETCH,
        retry: RetryPolicy | None = None,
        lease: float = LEASE,
        after_crash: AfterCrash = "isolate",
    ) -> Consumer[bytes]: ...
    def consume(
        self,
        queue: Any,
        *,
        prefetch: int = PREFETCH,
        retry: RetryPolicy | None = None,
        lease: float = LEASE,
        after_crash: AfterCrash = "isolate",
    ) -> Consumer[Any]:
        """As `mqcore.Broker.consume`: a consumer for `with` and `for`."""
        consumer = self._broker.consume(
            queue, prefetch=prefetch, retry=retry, lease=lease, after_crash=after_crash
        )
        return Consumer(self._loop, consumer)

    def declare(self, *things: Queue[Any] | Router[Any]) -> None:
        """As `mqcore.Broker.declare`."""
        self._loop.run(self._broker.declare(*things))

    def unbind(self, *bindings: Binding) -> None:
        """As `mqcore.Broker.unbind`."""
        self._loop.run(self._broker.unbind(*bindings))

    def bindings(self, router: Router[Any] | str | None = None) -> Sequence[Binding]:
        """As `mqcore.Broker.bindings`."""
        return self._loop.run(self._broker.bindings(router))

    def delete(self, queue: Queue[Any] | str, *, if_empty: bool = False) -> bool:
        """As `mqcore.Broker.delete`."""
        return self._loop.run(self._broker.delete(queue, if_empty=if_empty))

    def alter(self, queue: Queue[Any] | str, **settings: Unpack[AlterOptions]) -> None:
        """As `mqcore.Broker.alter`."""
        self._loop.run(self._broker.alter(queue, **settings))

    def purge(self, queue: Queue[Any] | str) -> int:
        """As `mqcore.Broker.purge`."""
        return self._loop.run(self._broker.purge(queue))

    def peek(
        self, queue: Queue[Any] | str, limit: int = 10, after: str | None = None
    ) -> Sequence[Entry]:
        """As `mqcore.Broker.peek`."""
        return self._loop.run(self._broker.peek(queue, limit, after))

    def counts(self, *queues: Queue[Any] | str) -> Sequence[QueueCounts]:
        """As `mqcore.Broker.counts`."""
        return self._loop.run(self._broker.counts(*queues))

    def dead_letters(self, queue: Queue[Any] | str) -> DeadLetters:
        """As `mqcore.Broker.dead_letters`."""
        return DeadLetters(self._loop, self._broker.dead_letters(queue))

    def health(self) -> Health:
        """As `mqcore.Broker.health`."""
        return self._broker.health()


class Producer(Generic[T]):
    """Publishing to one queue or router with defaults of its own; see `mqcore.Producer`."""

    def __init__(self, loop: LoopThread, producer: AsyncProducer[T]) -> None:
        """Made by `Broker.producer`."""
        self._loop = loop
        self._producer = producer

    def publish(self, payload: T, **options: Unpack[PublishOptions]) -> Receipt:
        """As `mqcore.Producer.publish`."""
        if "session" in options:
            return only(self._enlist([payload], options, is_one=True))
        return self._loop.run(self._producer.publish(payload, **options))

    def publish_many(
        self, payloads: Iterable[T], **options: Unpack[PublishOptions]
    ) -> list[Receipt | MqcoreError]:
        """As `mqcore.Producer.publish_many`.

        The payloads are gathered here, in the caller's thread.
        """
        if "session" in options:
            return self._enlist(_gathered(payloads), options, is_one=False)
        return self._loop.run(self._producer.publish_many(_gathered(payloads), **options))

    def _enlist(
        self, payloads: Iterable[T], options: PublishOptions, *, is_one: bool
    ) -> list[Receipt | MqcoreError]:
        make = partial(enlistment_of, self._producer, payloads, is_one=is_one)
        return enlist_in_thread(make, options, self._loop.run)


def _gathered(payloads: Iterable[T]) -> Iterable[T]:
    """Run an iterator to its end here; everything else is checked in the broker's thread."""
    return list(payloads) if isinstance(payloads, Iterator) else payloads


class Received(DeliveryInfo, Generic[T]):
    """A received message: its decoded `value` and the ways to settle it; see `mqcore.Received`."""

    def __init__(self, loop: LoopThread, received: AsyncReceived[T]) -> None:
        """Made by a consumer."""
        super().__init__(received.queue, received.delivery)
        self.value = received.value
        self._loop = loop
        self._received = received

    @property
    def finished(self) -> bool:
        """Whether it has been settled here."""
        return self._received.finished

    def ack(self) -> None:
        """As `mqcore.Received.ack`."""
        self._settle(self._received.ack())

    def release(self) -> None:
        """As `mqcore.Received.release`."""
        self._settle(self._received.release())

    def retry(
        self, delay: float | timedelta | None = None, error: BaseException | None = None
    ) -> None:
        """As `mqcore.Received.retry`."""
        self._settle(self._received.retry(delay, error))

    def postpone(self, delay: float | timedelta) -> None:
        """As `mqcore.Received.postpone`."""
        self._settle(self._received.postpone(delay))

    def reject(self, reason: str = "rejected by the consumer") -> None:
        """As `mqcore.Received.reject`."""
        self._settle(self._received.reject(reason))

    def _settle(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            self._loop.run(work)
        finally:
            self.lease_lost = self._received.lease_lost


class Consumer(Generic[T]):
    """The messages of one queue, as a context manager and an iterator; see `mqcore.Consumer`.

    Several threads may take messages from one consumer: each message goes to one of them.
    """

    def __init__(self, loop: LoopThread, consumer: AsyncConsumer[T]) -> None:
        """Made by `Broker.consume`."""
        self._loop = loop
        self._consumer = consumer

    def __enter__(self) -> Consumer[T]:
        """Subscribe; as `mqcore.Consumer.__aenter__`."""
        self._loop.run(self._consumer.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def __iter__(self) -> Iterator[Received[T]]:
        """Iterate until the consumer is closed."""
        return self

    def __next__(self) -> Received[T]:
        """Wait for the next message."""
        if (received := self.get()) is None:
            raise StopIteration
        return received

    def get(self, timeout: float | timedelta | None = None) -> Received[T] | None:
        """As `mqcore.Consumer.get`."""
        received = self._loop.run(self._consumer.get(timeout))
        return None if received is None else Received(self._loop, received)

    def stop(self) -> None:
        """As `mqcore.Consumer.stop`."""
        self._loop.run(self._consumer.stop())

    def resize(self, prefetch: int) -> None:
        """As `mqcore.Consumer.resize`."""
        self._loop.run(self._consumer.resize(prefetch))

    def close(self) -> None:
        """As `mqcore.Consumer.close`."""
        with suppress(ConnectionLost):  # the broker's thread is gone, and with it all that was held
            self._loop.run(self._consumer.close())


class DeadLetters:
    """The dead letters of a queue or of a shared dead-letter queue; see `mqcore.DeadLetters`."""

    def __init__(self, loop: LoopThread, letters: AsyncDeadLetters) -> None:
        """Made by `Broker.dead_letters`."""
        self._loop = loop
        self._letters = letters

    def list(self, limit: int = 100, **filters: Unpack[DeadLetterFilter]) -> list[DeadLetter]:
        """As `mqcore.DeadLetters.list`."""
        return self._loop.run(self._letters.list(limit, **filters))

    def get(self, id: str) -> DeadLetter | None:
        """As `mqcore.DeadLetters.get`."""
        return self._loop.run(self._letters.get(id))

    def redrive(
        self,
        *,
        to: Queue[Any] | str | None = None,
        limit: int | None = None,
        force: bool = False,
        **filters: Unpack[DeadLetterFilter],
    ) -> Redriven:
        """As `mqcore.DeadLetters.redrive`."""
        return self._loop.run(self._letters.redrive(to=to, limit=limit, force=force, **filters))

    def purge(self, **filters: Unpack[DeadLetterFilter]) -> int:
        """As `mqcore.DeadLetters.purge`."""
        return self._loop.run(self._letters.purge(**filters))
