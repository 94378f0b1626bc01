"""`Broker`: the one object by which an application talks to a message broker.

    async with Broker.connect("redis://localhost/0") as broker:
        await broker.publish(orders, Order(id=1), priority=8, delay=30)

It is the same on every broker. What it is made of is in `mqcore.session`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, Self, TypeVar, Unpack, overload

from mqcore.defaults import LEASE, PREFETCH
from mqcore.errors import ConfigurationError
from mqcore.middleware.companions import Companions
from mqcore.publishing.producer import Producer
from mqcore.queue import Queue, queue_name
from mqcore.rules.checks import check_count, check_kind, check_kinds, check_seconds
from mqcore.rules.retry import AfterCrash, RetryPolicy, check_after_crash
from mqcore.rules.routing import Binding
from mqcore.session import ConnectOptions, Health, Session

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from pydantic import TypeAdapter

    from mqcore.admin.dead_letters import DeadLetters
    from mqcore.clock import Clock
    from mqcore.connection.altering import AlterOptions
    from mqcore.consuming.consumer import Consumer
    from mqcore.errors import MqcoreError
    from mqcore.events import Events
    from mqcore.publishing.options import PublishOptions, Receipt, Target
    from mqcore.router import Router
    from mqcore.rules.capabilities import Capabilities
    from mqcore.spi import Entry, QueueCounts

__all__ = ["Broker", "companions_of", "session_of"]

T = TypeVar("T")
R = TypeVar("R")
_ENTER = (
    "a broker is opened by `async with Broker.connect(…) as broker:`, or by `await broker.open()` "
    "and `await broker.close()`"
)


class Broker:
    """A connection to a message broker; made by `Broker.connect` or `App.connect`.

    It belongs to the event loop that opens it: from another loop every call raises
    `ConfigurationError`, on every backend. `health` and `capabilities` may be read from anywhere.
    `mqcore.sync.Broker` serves any thread.
    """

    def __init__(self, url: str | None = None, **options: Unpack[ConnectOptions]) -> None:
        """Read the settings and find the backend's plugin. There is no I/O yet.

        Raises `ConfigurationError` for a wrong URL, option or setting, and `BackendNotFound` when
        no installed plugin serves the URL.
        """
        self._session = Session(url, options)
        self._companions = Companions()

    @classmethod
    def connect(cls, url: str | None = None, **options: Unpack[ConnectOptions]) -> Broker:
        """Return a broker for `async with`.

        Without a URL it comes from the environment (`MQCORE_URL`), `mqcore.toml` or `[tool.mqcore]`
        in `pyproject.toml`; the default is `memory://`. For the options see `ConnectOptions`.
        Raises `ConfigurationError` and `BackendNotFound`.
        """
        return cls(url, **options)

    if not TYPE_CHECKING:  # a type checker refuses `await` and `with` by itself

        def __await__(self) -> NoReturn:
            """Refuse `await Broker.connect(…)`: nothing would close the broker."""
            raise ConfigurationError(_ENTER)

        def __enter__(self) -> NoReturn:
            """Refuse `with Broker.connect(…)`, which cannot wait for the connection."""
            raise ConfigurationError(f"{_ENTER}. Without asyncio: mqcore.sync.Broker")

        def __exit__(self, *_: object) -> None:
            """Exist, so that `with` asks `__enter__`, which says what to write."""

    async def __aenter__(self) -> Self:
        """Open."""
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()

    async def open(self) -> None:
        """Connect, and declare the queues and routers that the options name.

        Raises `ConnectionLost` or another `BrokerError` when the broker cannot be reached,
        `DurabilityUnavailable` when the server gives less than was asked for, and
        `TopologyMismatch` when a queue or router exists with other settings.
        """
        await self._session.open()
        try:
            await self._companions.open()
        except BaseException:
            await self._session.close()
            raise

    async def close(self) -> None:
        """Release the messages that consumers hold, and disconnect. May be called again.

        Settlements that are under way get up to 5 s to be answered. After a signal has ended a
        worker, closing ends within the worker's grace and 1 s (G13).
        """
        try:
            await self._session.close()
        finally:
            await self._companions.close()

    @property
    def capabilities(self) -> Capabilities:
        """What the connected server can do (G16)."""
        return self._session.connection.capabilities

    @property
    def is_local(self) -> bool:
        """Whether the broker is in this process, out of reach for other processes."""
        return self._session.connection.backend.local

    @property
    def clock(self) -> Clock:
        """The clock of all timers: the system's, or a virtual one in tests."""
        return self._session.clock

    @property
    def events(self) -> Events:
        """What has happened so far, by name; see `mqcore.events.EVENTS`."""
        return self._session.events

    async def diagnose(self) -> list[str]:
        """Return a sentence for each problem with what the driver stores at the broker.

        Changes nothing. The list is empty when all is well, or when the backend cannot tell.
        """
        self._session.check_loop("diagnosing the broker")
        return await self._session.queues.diagnose()

    def unwrap(self, kind: type[R]) -> R:
        """Return the client library's own object of this class, for what mqcore does not offer.

        `redis.asyncio.Redis` (or `RedisCluster`) on Redis, `pika.connection.Connection` on
        RabbitMQ, nothing on `memory://`. The object belongs to the driver and ends with the
        connection: ask again after a reconnect. Raises `ConfigurationError` when the backend has no
        client of this class, and `ConnectionLost` while it is not connected.
        """
        self._session.check_loop("unwrapping the driver")
        return self._session.connection.unwrap(kind)

    async def publish(
        self, to: Target[T], payload: T, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """Publish one payload, and return when the broker has confirmed it (G1).

        `to` is a `Queue` or `Router`, which is declared if necessary, or the name of a queue that
        exists. For the options see `PublishOptions`. Raises `ValidationError` for a wrong payload
        or option, `PublishFailed` or one of its kinds when the message is certainly not stored, and
        `PublishUnknown` when it may or may not be stored. It ends within its timeout (10 s unless
        set).
        """
        return await self._session.publisher.publish(to, payload, **options)

    async def publish_many(
        self, to: Target[T], payloads: Iterable[T], **options: Unpack[PublishOptions]
    ) -> list[Receipt | MqcoreError]:
        """Publish many payloads as one batch, and return how each one ended, in order.

        An ending is a receipt, or the error that `publish` would raise. Raises `ValidationError`
        before anything is sent when one of the payloads is wrong.
        """
        return await self._session.publisher.publish_many(to, payloads, **options)

    def producer(self, to: Target[T], **defaults: Unpack[PublishOptions]) -> Producer[T]:
        """Return a producer for one queue or router, with defaults of its own.

        Raises `ConfigurationError` for a wrong target or an option that does not exist, and
        `ValidationError` for a value that `publish` would refuse.
        """
        return Producer(self._session.publisher, to, defaults)

    @overload
    async def request(
        self,
        to: Target[T],
        payload: T,
        *,
        result: type[R] | TypeAdapter[R],
        **options: Unpack[PublishOptions],
    ) -> R: ...
    @overload
    async def request(
        self, to: Target[T], payload: T, **options: Unpack[PublishOptions]
    ) -> Any: ...
    async def request(
        self, to: Target[T], payload: T, *, result: Any = None, **options: Unpack[PublishOptions]
    ) -> Any:
        """Publish a payload, and return what its handler returns.

        The result is of the type `result` (a type or `TypeAdapter`), or plain JSON data without
        one. `timeout` (30 s unless set) is the limit for the whole request and the ttl of its
        message. Raises `RemoteError` when the handler failed for good, `RequestTimeout`, and what
        `publish` raises.
        """
        return await self._session.requests.request(to, payload, result, options)

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
        """Return a consumer for `async with` and `async for`: the pull API.

        A queue's name stands for a queue that exists, and gives bytes. `prefetch` is the exact
        limit of unsettled messages (G12). `retry` is the policy of `delivery.retry()`. `lease` is
        how many seconds a claim holds between renewals (G5). `after_crash` says what the death of
        its consumer means for a message: `"isolate"` or `"count"` (G4). Raises
        `ConfigurationError` for a wrong value.
        """
        queue_name(queue, "consume")
        queue = Queue(queue, declare=False) if isinstance(queue, str) else queue
        where = f"consuming {queue!r}"
        self._session.check_loop(where)
        check_count("prefetch", prefetch, where)
        check_seconds("lease", lease, where)
        check_after_crash(after_crash, where)
        if retry is not None:
            check_kind("retry", retry, RetryPolicy, where, "a RetryPolicy(...)")
        return self._session.consume(
            queue, retry, prefetch=prefetch, lease=lease, after_crash=after_crash
        )

    async def declare(self, *things: Queue[Any] | Router[Any]) -> None:
        """Declare queues, with their dead-letter queues and quarantines, and routers.

        Raises `TopologyMismatch` when one exists with other settings.
        """
        await self._session.declare(things)

    async def unbind(self, *bindings: Binding) -> None:
        """Remove bindings from the broker, for every process; see `Router.binding`.

        A binding that does not exist is not an error. Raises `UnsupportedFeature`.
        """
        check_kinds("bindings", bindings, Binding, "unbind")
        await self._session.topology.unbind(bindings)

    async def bindings(self, router: Router[Any] | str | None = None) -> Sequence[Binding]:
        """Return the bindings that the broker stores, of one router or of all.

        A router is given as an object or by its name. Raises `UnsupportedFeature`.
        """
        return await self._session.queues.bindings(router)

    async def delete(self, queue: Queue[Any] | str, *, if_empty: bool = False) -> bool:
        """Delete a queue with its quarantine and bindings, and return whether it was deleted.

        Its dead-letter queue is not deleted. With `if_empty`, a queue that holds messages is not
        deleted either. Raises `QueueNotFound` and `UnsupportedFeature`.
        """
        return await self._session.queues.delete(queue, if_empty=if_empty)

    async def alter(self, queue: Queue[Any] | str, **settings: Unpack[AlterOptions]) -> None:
        """Give an existing queue other settings. Its messages stay, with their expiry.

        For the settings see `AlterOptions`. A `Queue` without settings gets those of code and
        configuration, which ends a `TopologyMismatch`. Processes that run take the change at once,
        or on RabbitMQ when they next connect. Raises `QueueNotFound`, and `TopologyMismatch` for a
        setting that the broker fixes when a queue is made.
        """
        self._session.check_loop("altering a queue")
        queue_name(queue, "altering a queue")
        await self._session.topology.alter(queue, settings)

    async def purge(self, queue: Queue[Any] | str) -> int:
        """Remove all ready and delayed messages of a queue for good, and return how many.

        Raises `QueueNotFound` and `UnsupportedFeature`.
        """
        return await self._session.queues.purge(queue)

    async def peek(
        self, queue: Queue[Any] | str, limit: int = 10, after: str | None = None
    ) -> Sequence[Entry]:
        """Return the next messages of a queue, changing neither their order nor the counts.

        `limit` is how many at most, `after` the key of the entry that the last page ended with.
        Raises `QueueNotFound` and `UnsupportedFeature`.
        """
        return await self._session.queues.peek(queue, limit, after)

    async def counts(self, *queues: Queue[Any] | str) -> Sequence[QueueCounts]:
        """Return how many messages the named queues hold, or all queues.

        Raises `QueueNotFound` for a name that does not exist, and `UnsupportedFeature`.
        """
        return await self._session.queues.counts(queues)

    def dead_letters(self, queue: Queue[Any] | str) -> DeadLetters:
        """Return the dead letters of a queue.

        The name of a dead-letter queue stands for everything in it. The methods of what is returned
        raise `QueueNotFound` when the queue has no dead-letter queue.
        """
        return self._session.dead_letters(queue)

    def health(self) -> Health:
        """Return what is known without asking the broker (G14)."""
        return self._session.health()


def session_of(broker: Broker) -> Session:
    """Return the parts of a broker, for the worker and the command line. Private to mqcore."""
    return broker._session  # noqa: SLF001 - the one door to it, so that users see no machinery


def companions_of(broker: Broker) -> Companions:
    """Return what accompanies a broker, for the app and the worker. Private to mqcore."""
    return broker._companions  # noqa: SLF001 - as above
