"""`Connection`: keeps one backend open, and reconnects it.

When the driver reports that the connection is lost, this closes the backend, opens it again with a
capped and jittered backoff, declares again what was declared, and resumes the calls that wait
(G14).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from mqcore.config.url import refused_clause
from mqcore.connection.sender import Sender
from mqcore.connection.survived import Survived
from mqcore.connection.tasks import begin_later
from mqcore.errors import (
    BrokerError,
    ConfigurationError,
    ConnectionLost,
    MqcoreError,
    QueueNotFound,
    TopologyMismatch,
    UnsupportedFeature,
)
from mqcore.rules.backoff import RetryWait
from mqcore.rules.redact import describe_error, mask_url
from mqcore.spi import (
    Backend,
    Capabilities,
    ErrorKind,
    Outcome,
    Outgoing,
    QueueSpec,
    Subscription,
    SupportsAlter,
    SupportsBind,
    SupportsUnwrap,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mqcore.clock import Clock
    from mqcore.events import Events
    from mqcore.rules.routing import Binding
    from mqcore.spi import Alterations

__all__ = ["Connection", "translate"]

P = TypeVar("P")
R = TypeVar("R")
_NOT_OPEN = "not connected yet: use `async with` or `await broker.open()` first"
_FIRST_WAIT, _LAST_WAIT = 0.05, 1.0
"""Seconds between two attempts to reconnect.

Publishing and consuming resume within 2 s after the broker is back (G14).
"""
_DENIED_WAIT = 10.0
"""Seconds between two attempts when the broker denies access: more attempts would not help."""
_PATIENCE = 10.0
"""Seconds that a request other than a publish waits for a lost connection."""
_CUT = 0.05
"""Seconds that a driver's cancelled `close` gets to cut its connections."""


def translate(error: Exception, kind: ErrorKind, doing: str) -> MqcoreError:
    """Return the typed error for a driver's exception; raise it `from` the exception."""
    if isinstance(error, MqcoreError):
        return error
    text = f"{doing}: {describe_error(error)}"
    if kind is ErrorKind.TRANSIENT:
        return ConnectionLost(text)
    if kind is ErrorKind.NOT_FOUND:
        return QueueNotFound(text)
    return BrokerError(text)


def _class_outside(package: str, client: object) -> type:
    """Return a client's class in its own library; the driver may have derived another one."""
    classes = [
        kind for kind in type(client).__mro__ if kind.__module__.partition(".")[0] != package
    ]
    return classes[0]


def _full_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


class Connection:
    """Keeps one `Backend` open for one event loop."""

    def __init__(self, backend: Backend, *, clock: Clock, events: Events) -> None:
        """Nothing is connected yet; `open` connects."""
        self.backend = backend
        self.clock = clock
        self.events = events
        self.generation = 0
        self.error: Exception | None = None
        self._capabilities: Capabilities | None = None
        self.connected_event = asyncio.Event()
        self.is_closed = False
        self._reconnecting: asyncio.Task[None] | None = None
        self._wait = RetryWait(_FIRST_WAIT, _LAST_WAIT, clock)
        self._specs: dict[str, QueueSpec] = {}
        self._bindings: dict[Binding, None] = {}
        self._lost_early: Exception | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.survived = Survived()
        self._sender = Sender(self)
        self.on_lost: set[Callable[[], None]] = set()
        """Called on the event loop when the connection breaks."""

    @property
    def connected(self) -> bool:
        """Whether there is a connection now."""
        return self.connected_event.is_set() and not self.is_closed

    @property
    def capabilities(self) -> Capabilities:
        """What the server can do. Raises `ConnectionLost` before the first connect."""
        if self._capabilities is None:
            raise ConnectionLost(_NOT_OPEN)
        return self._capabilities

    async def open(self) -> None:
        """Connect once.

        Raises the typed error of a failure: a wrong password is reported now, not retried (G14).
        """
        if self.is_closed:
            raise ConnectionLost("this broker is closed; connect a new one")
        self.check_loop("opening the broker")
        self._loop = asyncio.get_running_loop()

        try:
            await self._open()
        except Exception as error:
            await self.backend.close()
            kind = self.backend.classify(error)
            where = f"cannot connect to {mask_url(self.backend.url)}{refused_clause(error)}"
            typed = translate(error, kind, where)
            if typed is error:
                # An error must not be its own cause: following the causes would never end.
                raise
            raise typed from error

        self.events.emit(
            "connection.opened",
            server=self.capabilities.server,
            durability=self.capabilities.durability.word,
        )

    def open_later(
        self, capabilities: Capabilities, error: Exception, *, reconnects: bool = True
    ) -> None:
        """Go on without the broker, and connect as after a loss.

        `capabilities` hold until then. Without `reconnects` it never connects.
        """
        self._loop = asyncio.get_running_loop()
        self._capabilities = self._capabilities or capabilities
        self.error = error
        self.events.emit("connection.lost", error=describe_error(error))
        if reconnects:
            self._reconnecting = begin_later(self._reconnect())

    def check_loop(self, doing: str, name: str = "") -> None:
        """Raise `ConfigurationError` unless called from the event loop that opened the connection.

        A driver's sockets and futures belong to one loop. Used from another loop they stall, or a
        message is stored and its confirmation is lost (G1). A closed connection may be used from
        anywhere: every call raises that it is closed.
        """
        if self._loop is None or self.is_closed:
            return
        try:
            running = asyncio.get_running_loop()
        except RuntimeError:
            return  # no loop runs in this thread, so nothing can be awaited in it

        if running is not self._loop:
            what = f"{doing} {name!r}" if name else doing
            raise ConfigurationError(
                f"{what}: this broker was opened in another event loop, and only that loop can "
                "use it. Await the call there: from another thread with "
                "asyncio.run_coroutine_threadsafe(call, loop). Or connect a Broker in each event "
                "loop, or use mqcore.sync.Broker, which serves any thread"
            )

    async def _open(self) -> None:
        self.generation += 1
        generation = self.generation
        self._lost_early = None
        self._capabilities = await self.backend.open(lambda error: self.report(error, generation))
        await self._declare_again()
        if self._lost_early is not None:
            raise self._lost_early
        if self.is_closed:
            # By a `close` that found nothing to close. The caller closes what was opened now.
            raise ConnectionLost("this broker was closed while it was opened")

        self.error = None
        self._wait.working()
        self.connected_event.set()

    async def _declare_again(self) -> None:
        """Declare again what was declared before the connection was lost (G14).

        A queue may have been altered meanwhile. It exists, which is all that consuming and
        publishing need, so other settings must not prevent the reconnect.
        """
        specs = list(self._specs.values())
        try:
            if specs:
                await self.backend.declare(specs)
        except TopologyMismatch:
            for spec in specs:
                try:
                    await self.backend.declare([spec])
                except TopologyMismatch as error:
                    self.events.emit("queue.altered", spec.name, error=describe_error(error))

        if self._bindings and isinstance(self.backend, SupportsBind):
            await self.backend.bind(list(self._bindings))

    async def close(self, limit: float | None = None) -> None:
        """Close for good. Waiting publishes are answered, and nothing is left running.

        It takes at most 1 s and the driver's 2 s, or `limit` seconds when the process has to end
        (G13). May be called again.
        """
        self.check_loop("closing the broker")
        if self.is_closed:
            return
        self.is_closed = True
        self.connected_event.set()
        if self._reconnecting is not None:
            self._reconnecting.cancel()
            await asyncio.gather(self._reconnecting, return_exceptions=True)
        until = None if limit is None else asyncio.get_running_loop().time() + limit
        await self._sender.close(limit)
        await self._close_backend(until)

    async def _close_backend(self, until: float | None) -> None:
        """Close the driver, and cancel that at `until` (the event loop's time)."""
        if until is None:
            await self.backend.close()
            return
        closing = asyncio.ensure_future(self.backend.close())
        await asyncio.wait([closing], timeout=max(until - asyncio.get_running_loop().time(), 0.0))
        if not closing.done():
            closing.cancel()
            await asyncio.wait([closing], timeout=_CUT)

    def report(self, error: Exception, generation: int) -> None:
        """Note that the connection of this generation is broken, and start to reconnect.

        Further reports for the same generation are ignored.
        """
        if self.is_closed or generation != self.generation:
            return
        if not self.connected_event.is_set():
            # For `_open`, which may be about to set this generation connected.
            self._lost_early = error
            return
        self.connected_event.clear()
        self.error = error
        self.events.emit("connection.lost", error=describe_error(error))
        # First, so that no listener's exception can prevent it; it begins after them.
        self._reconnecting = begin_later(self._reconnect())
        for listener in tuple(self.on_lost):
            listener()

    async def _reconnect(self) -> None:
        began, wait = self.clock.monotonic(), self._wait.next()

        while True:
            await self.clock.sleep(wait)
            await self.backend.close()

            try:
                await self._open()
            except Exception as error:  # noqa: BLE001 - any failure of a driver is reported and retried
                self.error = error
                denied = self.backend.classify(error) is ErrorKind.DENIED
                wait = self._wait.next(at_least=_DENIED_WAIT if denied else 0.0)
                self.events.emit("connection.retry", error=describe_error(error), wait=wait)
            else:
                self.events.emit("connection.restored", seconds=self.clock.monotonic() - began)
                return

    async def publish(self, batch: Sequence[Outgoing], timeout: float) -> list[Outcome]:
        """Store messages within `timeout` seconds, and return an outcome for each; see `Sender`.

        Raises `ConnectionLost` when the connection was never opened.
        """
        if self._capabilities is None and not self.is_closed:
            raise ConnectionLost(_NOT_OPEN)
        self.check_loop("publishing")
        return await self._sender.publish(batch, timeout)

    async def ready(self, doing: str, patience: float | None = None) -> int:
        """Wait until connected, and return the generation of the connection.

        Raises `ConnectionLost` after `patience` seconds (None: no limit), and when it is closed.
        """
        self.check_loop(doing)
        if not self.connected_event.is_set():
            _ = self.capabilities  # raises when it was never opened
            try:
                async with self.clock.timeout(patience):
                    await self.connected_event.wait()
            except TimeoutError:
                why = f" ({describe_error(self.error)})" if self.error else ""
                raise ConnectionLost(
                    f"{doing}: not connected to the broker for {patience:g} s{why}"
                ) from self.error

        if self.is_closed:
            raise ConnectionLost(f"{doing}: this broker is closed")
        return self.generation

    async def call(
        self, doing: str, action: Callable[[], Awaitable[R]], patience: float | None = _PATIENCE
    ) -> R:
        """Run one request on the backend. A failure is raised as a typed error.

        The driver's exception is its cause. Without a connection, it waits up to `patience` seconds
        (None: no limit) and then raises `ConnectionLost`.
        """
        generation = await self.ready(doing, patience)
        try:
            return await action()
        except MqcoreError:
            raise
        except Exception as error:
            kind = self.backend.classify(error)
            if kind is ErrorKind.TRANSIENT:
                self.report(error, generation)
            raise translate(error, kind, doing) from error

    def supporting(self, protocol: type[P], feature: str) -> P:
        """Return the backend as one of the `Supports…` protocols.

        Raises `UnsupportedFeature`, which names `wanted`, when the backend does not implement it.
        """
        if isinstance(self.backend, protocol):
            return self.backend
        raise UnsupportedFeature(
            f"{feature}: the backend {self.capabilities.backend!r} cannot do this"
        )

    async def declare(self, specs: Sequence[QueueSpec]) -> None:
        """Declare queues, now and after every reconnect. Raises `TopologyMismatch`."""
        await self.call(
            f"declaring {', '.join(spec.name for spec in specs)}",
            lambda: self.backend.declare(specs),
        )
        self._specs.update((spec.name, spec) for spec in specs)

    async def alter(self, queue: str, settings: Alterations) -> None:
        """Alter the settings of an existing queue, also for the declaration after a reconnect.

        Raises `UnsupportedFeature` and `TopologyMismatch`.
        """
        backend = self.supporting(SupportsAlter, f"altering queue {queue!r}")
        await self.call(f"altering queue {queue!r}", lambda: backend.alter(queue, settings))
        if queue in self._specs:
            self._specs[queue] = replace(self._specs[queue], **settings)

    def forget(self, queues: Sequence[str]) -> None:
        """Do not declare these queues after a reconnect: they were deleted on purpose."""
        for name in queues:
            self._specs.pop(name, None)
        self._bindings = {
            binding: None for binding in self._bindings if binding.queue not in queues
        }

    async def bind(self, bindings: Sequence[Binding]) -> None:
        """Add bindings, now and after every reconnect.

        Raises `UnsupportedFeature` and `TopologyMismatch`.
        """
        backend = self.supporting(SupportsBind, "routers")
        await self.call("binding queues to routers", lambda: backend.bind(bindings))
        self._bindings.update(dict.fromkeys(bindings))

    def bindings_of(self, router: str) -> list[Binding]:
        """Return the bindings of a router that this process added and has not removed."""
        return [binding for binding in self._bindings if binding.router == router]

    async def unbind(self, bindings: Sequence[Binding]) -> None:
        """Remove bindings for good. Raises `UnsupportedFeature`."""
        backend = self.supporting(SupportsBind, "routers")
        await self.call("unbinding queues from routers", lambda: backend.unbind(bindings))
        for binding in bindings:
            self._bindings.pop(binding, None)

    async def subscribe(self, queue: str, prefetch: int, lease: float) -> Subscription:
        """Subscribe to a queue. Raises `QueueNotFound` and other typed errors."""
        return await self.call(
            f"consuming queue {queue!r}",
            lambda: self.backend.subscribe(queue, prefetch=prefetch, lease=lease),
            None,
        )

    def unwrap(self, kind: type[R]) -> R:
        """Return the driver's client of this class; see `Broker.unwrap`."""
        name = self.capabilities.backend  # raises when it was never opened
        if not isinstance(kind, type):
            raise ConfigurationError(
                f"unwrap takes the class of a client, not a {type(kind).__name__}"
            )
        if not self.connected:
            raise ConnectionLost(
                f"unwrapping the client of the backend {name!r}: not connected to the broker"
            )

        clients: Sequence[object] = ()
        if isinstance(self.backend, SupportsUnwrap):
            try:
                clients = self.backend.unwrap()
            except Exception as error:
                raise translate(
                    error, self.backend.classify(error), "unwrapping the client"
                ) from error

        for client in clients:
            # Everything is an `object`: it would name no client, and hide a mistake.
            if kind is not object and isinstance(client, kind):
                return client

        own_package = type(self.backend).__module__.partition(".")[0]
        names = [_full_name(_class_outside(own_package, client)) for client in clients]
        has = ", ".join(names) or "none"
        raise ConfigurationError(
            f"the backend {name!r} has no client of the class {_full_name(kind)}. It has: {has}"
        )
