"""`Broker`: the one object by which an application talks to a broker, whichever it is.

    async with Broker.connect("redis://localhost/0") as broker:
        await broker.publish(orders, Order(id=1), priority=8, delay=30)

It finds the plugin, opens one connection, and puts the parts together: `Publisher`, `Topology`,
`Requests`, consumers. Each of them is a module of its own; this one holds no policy.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypedDict, TypeVar, Unpack, overload

from mqcore.admin.dead_letters import DeadLetters
from mqcore.admin.unused_settings import UnusedSections
from mqcore.clock import Clock, SystemClock
from mqcore.config.plugins import Plugins, default_plugins
from mqcore.config.settings import Settings, open_backend
from mqcore.connection.connection import Connection
from mqcore.connection.topology import Topology
from mqcore.consuming.consumer import Consumer
from mqcore.consuming.grace import DISCONNECTED, Grace
from mqcore.consuming.isolation import IsolationLock
from mqcore.consuming.leases import LeaseKeeper
from mqcore.consuming.receiver import CLOSE_GRACE, Receiver
from mqcore.consuming.requests import Replies, Requests
from mqcore.defaults import LEASE, PREFETCH
from mqcore.errors import ConfigurationError, QueueNotFound
from mqcore.events import Events
from mqcore.messages.message import Limits
from mqcore.middleware import Logging, Middleware
from mqcore.publishing.publisher import Producer, Publisher
from mqcore.queue import RESERVED_PREFIXES, Queue, name_of
from mqcore.router import Router
from mqcore.rules.capabilities import Capabilities, Capability, Durability
from mqcore.rules.checks import check_count, check_kinds, check_options, check_seconds
from mqcore.rules.inbound import Inbound
from mqcore.rules.redact import describe_error
from mqcore.rules.retry import AfterCrash, RetryPolicy, Rules, check_after_crash
from mqcore.spi import (
    Backend,
    Entry,
    QueueCounts,
    QueueSpec,
    SupportsBind,
    SupportsBrowse,
    SupportsCount,
    SupportsDelete,
    SupportsDiagnose,
    SupportsPurge,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

    from pydantic import TypeAdapter

    from mqcore.connection.altering import AlterOptions
    from mqcore.errors import MqcoreError
    from mqcore.messages.codec import Codecs
    from mqcore.publishing.publisher import PublishOptions, Receipt, Target
    from mqcore.rules.routing import Binding

__all__ = ["Broker", "ConnectOptions", "Health"]

T = TypeVar("T")
R = TypeVar("R")


class ConnectOptions(TypedDict, total=False):
    """How to connect, beside the URL.

    `settings`: in place of those read from environment and files. `durability`: what confirmed
    messages must survive, one of the four words; nothing is demanded by default. `clock`: for
    tests. `middleware`: outermost first; a `Logging` comes by itself. `limits`: what is refused as
    too large. `plugins`: where backends and codecs come from. `queues` and `routers`: declared at
    the connect. `make_backend`: makes the backend in place of URL and plugins, for tests.
    """

    settings: Settings
    durability: Durability | str | None
    clock: Clock
    middleware: Sequence[Middleware]
    limits: Limits
    plugins: Plugins
    queues: Sequence[Queue[Any]]
    routers: Sequence[Router[Any]]
    make_backend: Callable[[], Backend]


@dataclass(frozen=True, slots=True)
class Health:
    """Whether the broker can be talked to, whether each consumer really consumes (G14), and what has happened so far."""

    connected: bool
    consuming: Mapping[str, bool]
    server: str
    error: str
    counts: Mapping[str, int]

    @property
    def ok(self) -> bool:
        """Connected, and every consumer consuming."""
        return self.connected and all(self.consuming.values())


class Broker:
    """A broker, connected; made by `Broker.connect` or `App.connect`.

    It belongs to the event loop that opens it. From another loop every call raises
    `ConfigurationError` at once, on every backend; `health` and `capabilities` may be read from
    anywhere. `mqcore.sync.Broker` serves any thread.
    """

    def __init__(self, url: str | None = None, **options: Unpack[ConnectOptions]) -> None:
        """Read the settings and find the plugin; no I/O yet.

        Raises `ConfigurationError` and `BackendNotFound`.
        """
        check_options(options, ConnectOptions, "connecting to the broker")
        settings = options.get("settings") or Settings.load()
        self._clock = options.get("clock") or SystemClock()
        self._plugins = options.get("plugins") or default_plugins()
        self._url = url if url is not None else settings.url.reveal()
        self._own_backend = options.get("make_backend")
        if url is not None and self._own_backend is not None:
            msg = (
                "connecting to the broker: a URL says nothing beside make_backend=, which makes "
                "the backend. "
                "Leave one of them out"
            )
            raise ConfigurationError(msg)
        self._settings = settings
        wanted = options.get("durability", settings.durability)
        self._durability = None if wanted is None else Durability.parse(wanted)
        self._queues, self._routers = options.get("queues", ()), options.get("routers", ())
        check_kinds("queues", options.get("queues", ()), Queue, "connecting to the broker")
        check_kinds("routers", options.get("routers", ()), Router, "connecting to the broker")
        check_kinds(
            "middleware", options.get("middleware", ()), Middleware, "connecting to the broker"
        )
        self.events = Events()
        self.isolation = IsolationLock()
        """Shared by all workers on this broker: a suspect runs alone among them (G4)."""
        self.middleware: list[Middleware] = [Logging(), *options.get("middleware", ())]
        for listener in _hooks(self.middleware, "on_event"):
            self.events.listen(listener)
        limits = options.get("limits") or Limits()
        self.codecs: Codecs = self._plugins.codecs(settings.codecs).bounded(limits.payload)
        self._connection = Connection(self._make_backend(), clock=self._clock, events=self.events)
        self._topology = Topology(self._connection, settings, self._durability)
        self.publisher = Publisher(
            self._connection,
            self._topology,
            codecs=self.codecs,
            limits=limits,
            timeout=settings.publish_timeout,
            outgoing=_hooks(self.middleware, "outgoing"),
        )
        self.inbound = Inbound(self.codecs, _hooks(self.middleware, "incoming")[::-1])
        self.replies = Replies(self._connection, self.publisher, self.codecs)
        self._requests = Requests(
            self._connection, self.publisher, self.inbound, self._reply_receiver
        )
        self.leaving: Grace | None = None
        """The grace of a worker that a signal has ended: a `close` that follows ends in time for it.
        """
        self._keeper: LeaseKeeper | None = None
        self._consumers: list[Consumer[Any]] = []
        self._receivers: list[Receiver] = []

    @classmethod
    def connect(cls, url: str | None = None, **options: Unpack[ConnectOptions]) -> Broker:
        """Return a broker for `async with`.

        Without a URL: environment, `mqcore.toml`, `[tool.mqcore]`, then `memory://`.
        """
        return cls(url, **options)

    def _make_backend(self) -> Backend:
        if self._own_backend is not None:
            return self._own_backend()
        return open_backend(self._url, self._settings, self._plugins, self._clock, self._durability)

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
        """Connect and declare.

        Raises `ConnectionLost` or another `BrokerError` at once when it cannot be done,
        `DurabilityUnavailable` when the server gives less than asked for, and `TopologyMismatch`
        when a queue or router exists with other settings.
        """
        await self._connection.open()
        try:
            if self._durability is not None:
                self.capabilities.require_durability(self._durability)
            await self._topology.ensure_all(self._queues, self._routers)
        except BaseException:
            await self._connection.close()
            raise

    async def close(self) -> None:
        """Release what consumers hold, and disconnect. Idempotent and bounded.

        Answers to settlements under way are waited for, at most 5 s. After a signal has ended a
        worker, all of it ends within the worker's grace and 1 s (G13).
        """
        self.check_loop("closing the broker")
        leaving = None if self.leaving is None or self.leaving.is_past else self.leaving
        grace = leaving or Grace(self._clock, CLOSE_GRACE)
        for receiver in self._receivers:
            receiver.grace = grace

        await asyncio.gather(*(consumer.close() for consumer in self._consumers))
        await self._requests.close(leaving)
        await asyncio.gather(*(receiver.close() for receiver in self._receivers))
        if self._keeper is not None:
            await self._keeper.close()
        await self._connection.close(None if leaving is None else leaving.left(DISCONNECTED))

    def check_loop(self, doing: str) -> None:
        """Raise `ConfigurationError` when called from another event loop than the one that opened this broker."""
        self._connection.check_loop(doing)

    @property
    def capabilities(self) -> Capabilities:
        """What the live server can do (G16)."""
        return self._connection.capabilities

    @property
    def is_local(self) -> bool:
        """Whether the broker lives in this process, where no other process reaches it."""
        return self._connection.backend.local

    @property
    def clock(self) -> Clock:
        """The clock that every timer here goes by."""
        return self._clock

    async def unused_settings(
        self, app: str, queues: Iterable[Queue[Any]], routers: Iterable[Router[Any]]
    ) -> list[str]:
        """Return a sentence for each queue or router in the settings that nothing has.

        Compares the settings with these queues and routers of the app, with those that this broker
        was given, and with those that exist on the broker.
        """
        self.check_loop("comparing the settings with the broker")
        sections = UnusedSections(self._settings, self._connection, self._topology)
        return await sections.find(app, [*queues, *self._queues], [*routers, *self._routers])

    async def diagnose(self) -> list[str]:
        """Return what is wrong with what the driver itself keeps at the broker, a sentence for each problem; changes nothing."""
        self.check_loop("diagnosing the broker")
        backend = self._connection.backend
        if not isinstance(backend, SupportsDiagnose):
            return []
        return list(await self._connection.call("diagnosing the broker", backend.diagnose))

    def unwrap(self, kind: type[R]) -> R:
        """Return the broker's own client of this class, for what mqcore has no word for.

        `redis.asyncio.Redis` (or `RedisCluster`) on Redis, `pika.connection.Connection` on
        RabbitMQ, nothing on `memory://`. It is the driver's client and ends when the connection
        does: ask again after a reconnect. Raises `ConfigurationError` when the backend has no
        client of this class, `ConnectionLost` while it is not connected.
        """
        self.check_loop("unwrapping the driver")
        return self._connection.unwrap(kind)

    async def publish(
        self, to: Target[T], payload: T, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """Publish one payload and return when the broker has confirmed it (G1).

        `to` is a `Queue` or `Router`, declared when it is not yet, or the name of an existing
        queue. For the options see `PublishOptions`. Raises `ValidationError` for a wrong payload or
        option, `PublishFailed` or one of its kinds when the message is certainly not stored,
        `PublishUnknown` when nobody knows. Never outlives its timeout (10 s unless set).
        """
        return await self.publisher.publish(to, payload, **options)

    async def publish_many(
        self, to: Target[T], payloads: Iterable[T], **options: Unpack[PublishOptions]
    ) -> list[Receipt | MqcoreError]:
        """Publish many payloads in one batch and return each one's ending, in order: its receipt, or its error as a value.

        Raises `ValidationError` before anything is sent when a payload is wrong.
        """
        return await self.publisher.publish_many(to, payloads, **options)

    def producer(self, to: Target[T], **defaults: Unpack[PublishOptions]) -> Producer[T]:
        """Return a producer for one queue or router, with defaults of its own."""
        return Producer(self.publisher, to, defaults)

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
        """Publish and return what the handler returns, as `result` (a type or `TypeAdapter`), else as plain JSON data.

        `timeout` (30 seconds when not given) is the whole request's, and also the ttl of its
        message. Raises `RemoteError` when the handler failed for good, `RequestTimeout`, and what
        `publish` raises.
        """
        return await self._requests.request(to, payload, result, options)

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

        A bare name adopts an existing queue and gives bytes. `prefetch` is the exact ceiling on
        unsettled messages (G12); `retry` is the policy of `delivery.retry()`; `lease` seconds hold
        a claim between renewals (G5). `after_crash` says what it means for a message that its
        consumer died: `"isolate"` or `"count"` (G4).
        """
        wanted = Queue(queue, declare=False) if isinstance(queue, str) else queue
        self.check_loop(f"consuming {wanted!r}")
        check_count("prefetch", prefetch, f"consuming {wanted!r}")
        check_seconds("lease", lease, f"consuming {wanted!r}")
        check_after_crash(after_crash, f"consuming {wanted!r}")
        isolation = IsolationLock()

        async def make_receiver() -> Receiver:
            receiver = await self.receiver(
                wanted,
                retry,
                prefetch=prefetch,
                lease=lease,
                isolation=isolation,
                blocks_others=False,
                after_crash=after_crash,
            )
            await receiver.start()
            return receiver

        consumer: Consumer[Any] = Consumer(wanted, self.inbound, make_receiver)
        self._consumers = [*(one for one in self._consumers if not one.closed), consumer]
        return consumer

    async def receiver(
        self,
        queue: Queue[Any],
        retry: RetryPolicy | None,
        *,
        prefetch: int,
        lease: float,
        isolation: IsolationLock,
        blocks_others: bool = True,
        after_crash: AfterCrash = "isolate",
    ) -> Receiver:
        """Declare a queue and return its receiver, not yet started: what consumers and workers are built on."""
        self.check_loop(f"consuming {queue!r}")
        self.codecs.named(
            queue.payload.codec
        )  # one that is not allowed is told now, not at the first message
        declared = await self._topology.ensure(queue)
        rules = await self._topology.rules(declared, retry, after_crash)
        return self._make_receiver(
            rules, prefetch, lease, isolation, blocks_others=blocks_others, queue=declared
        )

    def _make_receiver(
        self,
        rules: Rules,
        prefetch: int,
        lease: float,
        isolation: IsolationLock,
        *,
        blocks_others: bool,
        queue: Queue[Any] | None,
    ) -> Receiver:
        async def redeclare() -> None:
            if queue is not None:
                await self._topology.restore(queue)
            else:
                await self._connection.declare([QueueSpec(name=rules.queue, role="temporary")])

        receiver = Receiver(
            self._connection,
            rules,
            prefetch=prefetch,
            lease=lease,
            isolation=isolation,
            keeper=self._lease_keeper(),
            redeclare=redeclare,
            blocks_others=blocks_others,
        )
        self._receivers = [*(one for one in self._receivers if not one.closed), receiver]
        return receiver

    async def _reply_receiver(self, name: str) -> Receiver:
        rules = Rules(queue=name, source=name, retry=RetryPolicy(max_attempts=1))
        receiver = self._make_receiver(
            rules, 100, LEASE, IsolationLock(), blocks_others=False, queue=None
        )
        await receiver.start()
        return receiver

    def _lease_keeper(self) -> LeaseKeeper | None:
        if self._keeper is None and self.capabilities.has(Capability.LEASE):
            self._keeper = LeaseKeeper(self._make_backend, self._connection.backend, self._clock)
        return self._keeper

    async def declare(self, *things: Queue[Any] | Router[Any]) -> None:
        """Declare queues (with their dead-letter queues and quarantines) and routers.

        Raises `TopologyMismatch`.
        """
        self.check_loop("declaring")
        for thing in things:
            if not isinstance(thing, (Queue, Router)):
                msg = f"declare takes Queue(...) and Router(...), not {thing!r:.60}"
                raise ConfigurationError(msg)
        queues = [thing for thing in things if isinstance(thing, Queue)]
        await self._topology.ensure_all(
            queues, [thing for thing in things if not isinstance(thing, Queue)]
        )

    async def unbind(self, *bindings: Binding) -> None:
        """Remove bindings from the broker, for every process; see `Router.binding`.

        One that is not there is no error.
        """
        await self._topology.unbind(bindings)

    async def bindings(self, router: str | None = None) -> Sequence[Binding]:
        """Return the bindings that live with the broker, of one router or all."""
        backend = self._connection.supporting(SupportsBind, "reading bindings")
        return await self._connection.call("reading bindings", lambda: backend.bindings(router))

    async def delete(
        self, queue: Queue[Any] | str, *, if_empty: bool = False, if_unused: bool = False
    ) -> bool:
        """Delete a queue with its quarantine and bindings; its dead-letter queue stays, for it may hold what must be looked at.

        False when it holds messages (`if_empty`) or has consumers (`if_unused`). Raises
        `QueueNotFound`.
        """
        name = name_of(queue)
        backend = self._connection.supporting(SupportsDelete, "deleting a queue")
        gone = await self._connection.call(
            f"deleting queue {name!r}",
            lambda: backend.delete(name, if_empty=if_empty, if_unused=if_unused),
        )
        if gone:
            self._topology.forget(name)
        return gone

    async def alter(self, queue: Queue[Any] | str, **settings: Unpack[AlterOptions]) -> None:
        """Give an existing queue other settings, with what it holds; for the settings see `AlterOptions`.

        A `Queue` without settings gives it those of code and configuration, which ends a
        `TopologyMismatch`. Stored messages keep their expiry. Processes that run take the change at
        once, or on RabbitMQ when they next connect. Raises `QueueNotFound`, and `TopologyMismatch`
        for a setting that the broker fixes when a queue is made.
        """
        self.check_loop("altering a queue")
        await self._topology.alter(queue, settings)

    async def purge(self, queue: Queue[Any] | str) -> int:
        """Remove all ready and delayed messages of a queue for good; how many.

        Raises `QueueNotFound`.
        """
        name = name_of(queue)
        backend = self._connection.supporting(SupportsPurge, "purging a queue")
        return await self._connection.call(f"purging queue {name!r}", lambda: backend.purge(name))

    async def peek(
        self, queue: Queue[Any] | str, limit: int = 10, after: str | None = None
    ) -> Sequence[Entry]:
        """Return the next messages of a queue, changing neither order nor count.

        Raises `QueueNotFound`, `UnsupportedFeature`.
        """
        name = name_of(queue)
        backend = self._connection.supporting(SupportsBrowse, "peeking")
        return await self._connection.call(
            f"peeking into {name!r}", lambda: backend.browse(name, limit, after)
        )

    async def counts(self, *queues: Queue[Any] | str) -> Sequence[QueueCounts]:
        """Return how many messages the named queues hold, or all queues.

        Raises `QueueNotFound` for a name that is missing.
        """
        names = [name_of(queue) for queue in queues]
        backend = self._connection.supporting(SupportsCount, "counting messages")
        found = await self._connection.call(
            "counting messages", lambda: backend.count(names or None)
        )
        missing = set(names) - {counts.name for counts in found}
        if missing:
            msg = f"queue {min(missing)!r} does not exist on the broker"
            raise QueueNotFound(msg)
        return found

    def dead_letters(self, queue: Queue[Any] | str) -> DeadLetters:
        """Return the dead letters of a queue; a dead-letter queue's own name means all that is in it.

        What is done with them raises `QueueNotFound` when the queue has no dead-letter queue.
        """

        async def find() -> str:
            name = await self._topology.dead_letter_name(queue)
            if name is None:
                msg = (
                    f"queue {name_of(queue)!r} has no "
                    "dead-letter queue. If its consumers adopt "
                    "it with dead_letter=, name that queue"
                )
                raise QueueNotFound(msg)
            return name

        return DeadLetters(self._connection, name_of(queue), find)

    def health(self) -> Health:
        """Return what is known without asking the broker."""
        connected = self._connection.connected
        consuming: dict[str, bool] = {}
        for receiver in self._receivers:
            if not receiver.stopped and not receiver.rules.queue.startswith(RESERVED_PREFIXES):
                consuming[receiver.rules.queue] = receiver.consuming and consuming.get(
                    receiver.rules.queue, True
                )
        error = self._connection.error
        server = self.capabilities.server if self._connection.generation and connected else ""
        return Health(
            connected,
            consuming,
            server,
            describe_error(error) if error else "",
            dict(self.events.counts),
        )


def _hooks(middleware: Sequence[Middleware], name: str) -> list[Callable[[Any], Any]]:
    """Return this hook of the middlewares that override it, in order."""
    return [
        getattr(each, name)
        for each in middleware
        if getattr(type(each), name) is not getattr(Middleware, name)
    ]
