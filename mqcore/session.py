"""`Session`: the parts of one `Broker`, put together. Private to mqcore.

`Broker` is what an application sees. The worker needs more of it: the publisher, the replies, the
isolation lock, receivers. It gets them from `Broker`'s session, with `session_of` in
`mqcore.broker`.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from mqcore.admin.dead_letters import DeadLetters
from mqcore.admin.queues import QueueAdmin
from mqcore.admin.unused_settings import UnusedSections
from mqcore.clock import Clock, SystemClock
from mqcore.config.fallback import Fallback
from mqcore.config.plugins import Plugins, default_plugins
from mqcore.config.settings import Settings, open_backend
from mqcore.config.url import BrokerUrl
from mqcore.connection.connection import Connection
from mqcore.connection.topology import Topology
from mqcore.consuming.consumer import Consumer
from mqcore.consuming.grace import CLOSED, DISCONNECTED, Grace
from mqcore.consuming.identity import worker_name
from mqcore.consuming.inbox import BackendInbox
from mqcore.consuming.isolation import IsolationLock
from mqcore.consuming.leases import LeaseKeeper
from mqcore.consuming.receiver import CLOSE_GRACE, Receiver
from mqcore.consuming.replies import Replies
from mqcore.consuming.requests import Requests
from mqcore.consuming.spooled import SpoolConsumers
from mqcore.defaults import LEASE
from mqcore.errors import ConfigurationError, QueueNotFound
from mqcore.events import Events
from mqcore.messages.message import Limits
from mqcore.middleware import Logging, Middleware
from mqcore.middleware.hooks import check_middleware, transforms_of
from mqcore.publishing.composer import Composer
from mqcore.publishing.fallback import FallbackPublisher
from mqcore.publishing.outbox import check_outbox, make_outbox, opened
from mqcore.publishing.publisher import Publisher
from mqcore.publishing.standby import Standby
from mqcore.queue import RESERVED_PREFIXES, Queue, queue_name
from mqcore.router import Router
from mqcore.rules.capabilities import Capability, Durability
from mqcore.rules.checks import check_kind, check_kinds, check_options, described, takes_nothing
from mqcore.rules.health import Health, OutboxHealth, SpoolHealth
from mqcore.rules.inbound import Inbound
from mqcore.rules.redact import describe_error
from mqcore.rules.retry import AfterCrash, RetryPolicy, Rules
from mqcore.spi import Backend, Inbox, QueueSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from mqcore.messages.codec import Codecs

__all__ = [
    "ConnectOptions",
    "Health",
    "OutboxHealth",
    "Session",
    "SpoolHealth",
    "check_connect_options",
]

T = TypeVar("T")
_CONNECTING = "connecting to the broker"
_REPLY_PREFETCH = 100
"""How many replies to its requests a broker fetches at once."""


class ConnectOptions(TypedDict, total=False):
    """The options of `Broker.connect` and `App.connect`. All may be left out.

    `settings`: used in place of those from the environment and files. `durability`: what confirmed
    messages must survive: `memory`, `process`, `machine` or `replicated`; by default nothing is
    demanded. `clock`: a virtual clock, for tests. `middleware`: the outermost first; `Logging` is
    always there. `limits`: sizes above which a message is refused. `plugins`: where backends and
    codecs come from. `queues`, `routers`: declared when the broker connects. `make_backend`: makes
    the backend in place of URL and plugins, for tests. `outbox`: the URL of the database in whose
    transactions the application publishes with `session=`, when that is not the broker itself.
    `fallback`: where messages are stored while the broker is away, the URL of a spool such as
    `sqlite:///spool.db`, or a `Fallback`.
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
    outbox: str | None
    fallback: Fallback | str | None


class Session:
    """The connection of one broker, and everything that uses it."""

    leaving: Grace | None = None
    """The grace of a worker that a signal has ended; `close` ends within it."""
    worker: str
    """The name of a worker on this broker, for heartbeats and commands."""
    controlled: list[str]
    """The names of the workers on this broker that receive commands."""

    def __init__(self, url: str | None, options: ConnectOptions) -> None:
        """Read the settings and find the plugin, without any I/O.

        Raises `ConfigurationError` and `BackendNotFound`.
        """
        _check(url, options)
        settings = options.get("settings") or Settings.load()
        self.settings = settings
        self.clock = options.get("clock") or SystemClock()
        self._plugins = options.get("plugins") or default_plugins()
        self._url = url if url is not None else settings.url.reveal()
        self._own_backend = options.get("make_backend")
        durability = options.get("durability", settings.durability)
        self._durability_source = (
            "connect(durability=...)"
            if "durability" in options
            else settings.source_of("durability")
        )
        self._durability = None if durability is None else Durability.parse(durability)
        self._queues, self._routers = options.get("queues", ()), options.get("routers", ())

        self.events = Events()
        self.middleware: list[Middleware] = [Logging(), *options.get("middleware", ())]
        for each in self.middleware:
            if type(each) is Logging:  # most events are not worth a line, and need not be made
                self.events.listen(each.on_event, each.wants)
            elif type(each).on_event is not Middleware.on_event:
                self.events.listen(each.on_event)
        limits = options.get("limits") or Limits()
        self.codecs = self._allowed_codecs().bounded(limits.payload)

        self.connection = Connection(self._make_backend(), clock=self.clock, events=self.events)
        self.topology = Topology(self.connection, settings, self._durability)
        self.queues = QueueAdmin(self.connection, self.topology)
        composer = Composer(
            self.connection, self.codecs, limits, transforms_of(self.middleware, "outgoing")
        )
        parts = self.connection, self.topology, composer, settings.publish_timeout
        publisher = self.publisher = Publisher(*parts)
        self.standby = self._make_standby(options)
        """The fallback, None without one."""
        if self.standby is not None:
            spool, after = self.standby.spool, self.standby.fallback.after
            self.publisher = FallbackPublisher(*parts, spool, after)
        # A request and a reply are of use while both ends wait: they are not spooled.
        self.outbox = make_outbox(options, settings, self._plugins, self.publisher, self.standby)
        self.inbound = Inbound(self.codecs, transforms_of(self.middleware, "incoming")[::-1])
        self.replies = Replies(self.connection, publisher, self.codecs)
        self.requests = Requests(self.connection, publisher, self.inbound, self.temporary_receiver)

        self.is_unconfigured = (
            url is None and self._own_backend is None and "url" not in settings.model_fields_set
        )
        """Whether neither code nor settings name a broker, so that it is the default."""
        self.worker, self.controlled = worker_name(), []
        self.isolation = IsolationLock()
        """Shared by all workers on this broker: a suspect runs alone among them (G4)."""
        self._keeper: LeaseKeeper | None = None
        self._spool_consumers: SpoolConsumers | None = None
        self._consumers: list[Consumer[Any]] = []
        self._receivers: list[Receiver] = []

    def _allowed_codecs(self) -> Codecs:
        try:
            return self._plugins.codecs(self.settings.codecs)
        except ConfigurationError as error:
            source = self.settings.source_of("codecs")
            raise ConfigurationError(f"{source}: codecs: {error}") from None

    def _make_backend(self) -> Backend:
        if self._own_backend is not None:
            backend: object = self._own_backend()
            if not isinstance(backend, Backend):
                raise ConfigurationError(
                    f"{_CONNECTING}: make_backend= must return a Backend, not {described(backend)}"
                )
            return backend
        return open_backend(self._url, self.settings, self._plugins, self.clock, self._durability)

    def _make_standby(self, options: ConnectOptions) -> Standby | None:
        """Return the fallback that code or settings name; the code's goes first."""
        settings = self.settings
        fallback = options.get("fallback", settings.fallback)
        if isinstance(fallback, str):
            fallback = Fallback(url=BrokerUrl(fallback))
        if fallback is None:
            if settings.enabled:
                return None
            raise ConfigurationError(
                f"{settings.source_of('enabled')}: enabled=false leaves the application running on "
                "its fallback, and it has none. Set fallback (MQCORE_FALLBACK), for instance "
                "sqlite:///spool.db"
            )
        make = partial(open_backend, fallback.url, settings, self._plugins, self.clock)
        return Standby(self.connection, make, fallback, is_enabled=settings.enabled)

    def check_loop(self, doing: str) -> None:
        """Raise `ConfigurationError` unless called from the event loop that opened this broker."""
        self.connection.check_loop(doing)

    async def open(self) -> None:
        """Connect and declare; see `Broker.open`."""
        async with opened(self.outbox):
            await self._connect()

    async def _connect(self) -> None:
        if self.standby is not None:
            await self.standby.open(self._declare_own)
            return
        await self.connection.open()
        try:
            await self._declare_own()
        except BaseException:
            await self.connection.close()
            raise

    async def _declare_own(self) -> None:
        """Check and declare what the options name, as soon as there is a connection."""
        if self._durability is not None:
            self.connection.capabilities.require_durability(
                self._durability, self._durability_source
            )
        await self.topology.ensure_all(self._queues, self._routers)

    @property
    def on_the_way_out(self) -> Grace | None:
        """The grace of a worker that a signal has ended, as long as its end is under way."""
        return None if self.leaving is None or self.leaving.is_past else self.leaving

    async def close(self) -> None:
        """Release what consumers hold, and disconnect; see `Broker.close`."""
        self.check_loop("closing the broker")
        leaving = self.on_the_way_out
        grace = leaving or Grace(self.clock, CLOSE_GRACE)
        for receiver in self._receivers:
            receiver.grace = grace

        await asyncio.gather(*(consumer.close() for consumer in self._consumers))
        await self.requests.close(leaving)
        await asyncio.gather(*(receiver.close() for receiver in self._receivers))
        if self._keeper is not None:
            await self._keeper.close()
        if self._spool_consumers is not None:
            await self._spool_consumers.close(leaving)
        if self.standby is not None:
            await self.standby.close(None if leaving is None else leaving.left(CLOSED))
        limit = None if leaving is None else leaving.left(DISCONNECTED)
        outbox = () if self.outbox is None else (self.outbox.close(limit),)
        await asyncio.gather(self.connection.close(limit), *outbox)

    async def declare(self, things: Sequence[Queue[Any] | Router[Any]]) -> None:
        """Declare queues and routers; see `Broker.declare`."""
        self.check_loop("declaring")
        for thing in things:
            if not isinstance(thing, (Queue, Router)):
                raise ConfigurationError(
                    f"declare takes Queue(...) and Router(...), not {thing!r:.60}"
                )
        declaring = partial(
            self.topology.ensure_all,
            [thing for thing in things if isinstance(thing, Queue)],
            [thing for thing in things if isinstance(thing, Router)],
        )
        if self.standby is not None and not self.connection.connected:
            self.standby.when_connected(declaring)
        else:
            await declaring()

    def consume(
        self,
        queue: Queue[T],
        retry: RetryPolicy | None,
        *,
        prefetch: int,
        lease: float,
        after_crash: AfterCrash,
    ) -> Consumer[T]:
        """Return a consumer of the pull API; it subscribes when it is entered."""
        isolation = IsolationLock(blocks_others=False)

        async def make_receiver() -> Receiver:
            receiver = await self.receiver(
                queue,
                retry,
                prefetch=prefetch,
                lease=lease,
                isolation=isolation,
                after_crash=after_crash,
            )
            await receiver.start()
            return receiver

        consumer = Consumer(queue, self.inbound, make_receiver)
        self._consumers = [*(each for each in self._consumers if not each.closed), consumer]
        return consumer

    async def receiver(
        self,
        queue: Queue[Any],
        retry: RetryPolicy | None,
        *,
        prefetch: int,
        lease: float,
        isolation: IsolationLock,
        after_crash: AfterCrash = "isolate",
        replies: Replies | None = None,
        notes_each: bool = False,
    ) -> Receiver:
        """Declare a queue and return a receiver that is not started yet.

        Consumers and workers are built on it. With `replies` it answers requests. `notes_each`: the
        consumer notes each start of a handler, if the backend takes such notes.
        """
        self.check_loop(f"consuming {queue!r}")
        try:
            self.codecs.named(queue.payload.codec)
        except ConfigurationError as error:
            raise ConfigurationError(f"queue {queue.name!r}: {error}") from None
        declared = await self.topology.ensure(queue)
        rules = await self.topology.rules(declared, retry, after_crash)
        rules = replace(rules, notes_each=notes_each and rules.notes_starts)
        return self._make_receiver(
            rules, prefetch, lease, isolation, replies=replies, queue=declared
        )

    async def spool_receiver(
        self, queue: Queue[Any], retry: RetryPolicy | None, *, prefetch: int, lease: float
    ) -> Receiver | None:
        """Return a receiver of what waits for a queue in the spool, or None if it is not consumed.

        It receives while the broker is away.
        """
        standby = self.standby
        if standby is None or not standby.fallback.consume or not standby.spool.is_usable:
            return None
        if self._spool_consumers is None:
            consumers = SpoolConsumers(standby, standby.make_store, self.connection)
            self._spool_consumers = consumers
        policy = self.topology.retry(queue, retry)
        return await self._spool_consumers.receiver(
            self.topology.configured(queue), policy, prefetch=prefetch, lease=lease
        )

    def _make_receiver(
        self,
        rules: Rules,
        prefetch: int,
        lease: float,
        isolation: IsolationLock,
        *,
        replies: Replies | None,
        queue: Queue[Any] | None,
    ) -> Receiver:
        async def redeclare() -> None:
            if queue is not None:
                await self.topology.restore(queue)
            else:
                await self.connection.declare([QueueSpec(name=rules.queue, role="temporary")])

        receiver = Receiver(
            self.connection,
            rules,
            prefetch=prefetch,
            lease=lease,
            isolation=isolation,
            keeper=self._lease_keeper(),
            redeclare=redeclare,
            replies=replies,
        )
        self._receivers = [*(each for each in self._receivers if not each.closed), receiver]
        return receiver

    async def temporary_receiver(self, name: str) -> Receiver:
        """Consume a temporary queue of this process, which is declared already."""
        policy = RetryPolicy(max_attempts=1)
        rules = Rules(queue=name, source=name, retry=policy, is_observed=False)
        receiver = self._make_receiver(
            rules,
            _REPLY_PREFETCH,
            LEASE,
            IsolationLock(blocks_others=False),
            replies=None,
            queue=None,
        )
        await receiver.start()
        return receiver

    def inbox(self, given: Inbox | str | None) -> Inbox:
        """Return the inbox of an app, not yet open.

        It is its own, that of a URL, that of the settings, or the broker's.

        Raises `ConfigurationError` for a URL that cannot be used.
        """
        if isinstance(given, Inbox):
            return given
        url = self.settings.inbox if given is None else given
        if url is None:
            return BackendInbox(self.connection, is_own=False)
        backend = open_backend(url, self.settings, self._plugins, self.clock)
        connection = Connection(backend, clock=self.clock, events=Events())
        return BackendInbox(connection, is_own=True)

    def _lease_keeper(self) -> LeaseKeeper | None:
        if self._keeper is None and self.connection.capabilities.has(Capability.LEASE):
            self._keeper = LeaseKeeper(self._make_backend, self.connection.backend, self.clock)
            self.connection.on_lost.add(self._keeper.connection_lost)
        return self._keeper

    def dead_letters(self, queue: Queue[Any] | str) -> DeadLetters:
        """Return the dead letters of a queue; see `Broker.dead_letters`."""
        origin = queue_name(queue, "dead_letters")

        async def find() -> str:
            name = await self.topology.dead_letter_name(queue)
            if name is None:
                raise QueueNotFound(
                    f"queue {origin!r} has no dead-letter queue. If its consumers adopt it "
                    "with dead_letter=, name that queue"
                )
            return name

        return DeadLetters(self.connection, origin, find)

    async def unused_settings(
        self, app: str, queues: Iterable[Queue[Any]], routers: Iterable[Router[Any]]
    ) -> list[str]:
        """Return a sentence for each section of the settings that has no effect.

        Compares them with the queues and routers of the app, with those that this broker was given,
        and with those that exist on the broker.
        """
        sections = UnusedSections(self.settings, self.connection, self.topology)
        return await sections.find(app, [*queues, *self._queues], [*routers, *self._routers])

    def health(self) -> Health:
        """Return what is known without asking the broker."""
        consuming: dict[str, bool] = {}
        for receiver in self._receivers:
            queue = receiver.rules.queue
            if not receiver.stopped and not queue.startswith(RESERVED_PREFIXES):
                consuming[queue] = receiver.consuming and consuming.get(queue, True)

        connection = self.connection
        is_open = connection.connected and connection.generation
        return Health(
            connected=connection.connected,
            consuming=consuming,
            server=connection.capabilities.server if is_open else "",
            error=describe_error(connection.error) if connection.error else "",
            counts=dict(self.events.counts),
            spool=None if self.standby is None else SpoolHealth(**self.standby.state()),
            outbox=None if self.outbox is None else OutboxHealth(**self.outbox.state()),
        )


def check_connect_options(options: ConnectOptions) -> None:
    """Raise `ConfigurationError` for an option that does not exist, or a wrong value."""
    check_options(options, ConnectOptions, _CONNECTING)
    for name, (kind, give) in _KINDS.items():
        value = options.get(name)
        if value is not None:
            check_kind(name, value, kind, _CONNECTING, give)

    make_backend = options.get("make_backend")
    if make_backend is not None and not takes_nothing(make_backend):
        raise ConfigurationError(
            f"{_CONNECTING}: make_backend= takes a function without arguments that returns a "
            "Backend, not "
            f"{described(make_backend)}"
        )
    check_outbox(options.get("outbox"), _CONNECTING)
    check_kinds("queues", options.get("queues", ()), Queue, _CONNECTING)
    check_kinds("routers", options.get("routers", ()), Router, _CONNECTING)
    check_middleware(options.get("middleware", ()), _CONNECTING)
    fallback = options.get("fallback")
    if fallback is not None and not isinstance(fallback, (str, Fallback)):
        raise ConfigurationError(
            f"{_CONNECTING}: fallback= takes the URL of a spool or a Fallback(url=...), not "
            f"{described(fallback)}"
        )


_KINDS: dict[str, tuple[type, str]] = {
    "settings": (Settings, "Settings(...) or Settings.load()"),
    "clock": (Clock, "a clock, for instance mqcore.testing.VirtualClock()"),
    "limits": (Limits, "Limits(...)"),
    "plugins": (Plugins, "Plugins(...)"),
}
"""The options whose values are of one class, and what to write for each."""


def _check(url: str | None, options: ConnectOptions) -> None:
    check_connect_options(options)
    if url is not None and options.get("make_backend") is not None:
        raise ConfigurationError(
            f"{_CONNECTING}: make_backend= makes the backend, so a URL has no effect. Leave one of "
            "them out"
        )
