"""`Worker`: runs an app's consumers until it is stopped, then drains (G13).

A worker runs once: it is started once and drained once. All workers on one broker share an
isolation lock, so that a suspect runs alone (G4).
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypedDict, Unpack

from mqcore.app import App
from mqcore.broker import Broker, companions_of, session_of
from mqcore.consuming.grace import UNSUBSCRIBED, Grace
from mqcore.control.serving import served_commands
from mqcore.defaults import GRACE
from mqcore.errors import ConfigurationError
from mqcore.log import log
from mqcore.queue import queue_name
from mqcore.rules.checks import (
    check_count,
    check_flag,
    check_options,
    check_path,
    check_seconds,
    described,
)
from mqcore.running.consumers import Consumers, warn_of_long_hold
from mqcore.running.handlers import chosen_handlers
from mqcore.running.health_file import write_health
from mqcore.running.lifespans import check_lifespan_result
from mqcore.running.once import check_inbox, opened_inbox
from mqcore.running.runner import Runner
from mqcore.running.signals import call_at_stop_signals
from mqcore.running.supervisor import resident_memory

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import timedelta
    from types import TracebackType

    from mqcore.consuming.receiver import Receiver
    from mqcore.control.server import ControlServer
    from mqcore.queue import Queue
    from mqcore.running.handlers import HandlerSpec
    from mqcore.session import Health
    from mqcore.spi import Inbox

__all__ = ["Worker", "WorkerOptions"]

_WATCH_EVERY = 2.0


class WorkerOptions(TypedDict, total=False):
    """The options of a worker. All may be left out.

    `queues`: consume only these of the app's queues. `concurrency`: used in place of each
    consumer's own, and so is `lease`: seconds after which the messages of a worker that was killed
    go to another one (G5). `grace`: seconds that running handlers get when the worker stops, 30 by
    default. `health_file`: path of a JSON file with the worker's health, written every 2 s (G14).
    `max_messages`: drain after this many runs of handlers. `max_memory`: drain above this many
    bytes. After either, `Worker.recycle` is true, and a supervisor starts the worker again.
    `control`: receive commands through the broker, as `mqcore tasks control` sends them; not by
    default.
    """

    queues: Sequence[str]
    concurrency: int
    lease: float | timedelta
    grace: float | timedelta
    health_file: str | Path
    max_messages: int
    max_memory: int
    control: bool


class Worker:
    """Runs the consumers of an app on a broker.

    `async with Worker(app, broker):` consumes inside the block and drains at its end. `await
    Worker(app, broker).run()` consumes until SIGTERM or SIGINT. The broker must be open, and stays
    open. For the options see `WorkerOptions`. Raises `ConfigurationError` for a wrong option, and
    for queues that the app does not consume.
    """

    def __init__(self, app: App, broker: Broker, **options: Unpack[WorkerOptions]) -> None:
        """Choose the handlers. Nothing runs yet."""
        if not isinstance(app, App):
            raise ConfigurationError(
                f"Worker(app, broker) takes the app first, not a {type(app).__name__}"
            )
        if not isinstance(broker, Broker):
            raise ConfigurationError(
                f"worker of app {app.name!r}: Worker(app, broker) takes a mqcore.Broker second, "
                f"not {described(broker)}. Connect with `async with app.connect() as broker:`"
            )

        self.app = app
        self.broker = broker
        self._session = session_of(broker)
        self.recycle = False
        """Whether it stopped because of `max_messages`, `max_memory`, or a command."""
        self.is_shut_down = False
        """Whether a command has stopped it for good."""
        where = f"worker of app {app.name!r}"
        check_options(options, WorkerOptions, where)
        for name in ("concurrency", "max_messages", "max_memory"):
            check_count(name, options.get(name, 1), where)
        self._grace = self._checked_grace(options.get("grace", GRACE))
        check_path("health_file", options.get("health_file"), where)
        check_flag("control", options.get("control", False), where)
        has_all = {id(each) for each in app.middleware} <= {
            id(each) for each in self._session.middleware
        }
        if not has_all or len(app.tasks) != len(companions_of(broker).all):
            raise ConfigurationError(
                f"app {app.name!r} has middleware or tasks that this broker does not run: connect "
                "with app.connect(...), or give the same middleware to Broker.connect"
            )
        self._options = options
        self._specs = self._chosen(options.get("queues"))
        self._runners: list[Runner] = []
        self._spool_runners: list[Runner] = []
        """They handle what is in the spool of a fallback while the broker stays away."""
        self._late: asyncio.Task[None] | None = None
        """The rest of a start, which waits for a broker that is away."""
        self._tasks: list[asyncio.Task[None]] = []
        self._state: Any = None
        self._inbox: Inbox | None = None
        changed = self._specs, self._runners, self._spool_runners
        self._consumers = Consumers(where, broker.clock, *changed, self._added, self._launch)
        self._started = False
        self._draining: Grace | None = None
        self._starting: asyncio.Timeout | None = None
        self._signals = 0
        self._failure: BaseException | None = None
        self._stop, self._stack = asyncio.Event(), AsyncExitStack()
        self._watch: asyncio.Task[None] | None = None
        self.control: ControlServer | None = None
        """What receives commands, with the worker's name; None without `control=True`."""

    def _checked_grace(self, grace: float | timedelta) -> float:
        return check_seconds("grace", grace, f"worker of app {self.app.name!r}", zero=True)

    def _chosen(self, queues: Sequence[str] | None) -> list[HandlerSpec]:
        chosen = chosen_handlers(self.app.name, self.app.consumers(), queues)
        concurrency, lease = self._options.get("concurrency"), self._options.get("lease")
        if concurrency is not None:
            chosen = [spec.with_concurrency(concurrency) for spec in chosen]
        if lease is not None:
            limit = check_seconds("lease", lease, f"worker of app {self.app.name!r}")
            chosen = [spec.with_lease(limit) for spec in chosen]
        return chosen

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Drain. Raises the error that ended consuming, unless the block itself failed."""
        await self.drain()
        if self._failure is not None and error is None:
            raise self._failure

    async def start(self) -> None:
        """Enter the app's lifespan, subscribe to every queue and start to consume.

        A worker that is stopped meanwhile is drained, and no handler has started. When the start
        fails, the error is raised and nothing is left running. Raises `ConfigurationError` when the
        worker was started before.
        """
        self._session.check_loop(f"starting a worker of app {self.app.name!r}")
        if self._started:
            raise ConfigurationError(
                f"this worker of app {self.app.name!r} was started before; a worker runs once. "
                "Make a new one"
            )
        self._started = True

        starting = asyncio.timeout(None)  # `stop` interrupts the start through it
        try:
            async with starting:
                self._starting = starting
                try:
                    await self._make_ready()
                finally:
                    self._starting = None
        except BaseException as error:
            await self.drain()
            if isinstance(error, TimeoutError) and starting.expired():
                return
            raise
        if self._stop.is_set():
            await self.drain()
            return

        self._launch([*self._runners, *self._spool_runners])
        if self._session.outbox is not None:
            # Publishes what the application commits to its outbox, as `mqcore relay` does.
            self._tasks.append(asyncio.create_task(self._run(self._session.outbox.relay)))
        self._consumers.is_open = self._late is None
        self._watch = asyncio.create_task(self._watch_health())
        if self._options.get("control"):
            self.control = served_commands(self, self._session, companions_of(self.broker).all)

    async def _make_ready(self) -> None:
        """Open and subscribe, until the worker is stopped."""
        if self._stop.is_set():
            return

        state = None
        if self.app.lifespan is not None:
            lifespan = self.app.lifespan(self.broker)
            check_lifespan_result(lifespan, f"app {self.app.name!r}")
            state = self._state = await self._stack.enter_async_context(lifespan)
        for companion in companions_of(self.broker).all:
            await self._stack.enter_async_context(companion.serving())
        for spec in self._specs:
            if not self._stop.is_set() and (runner := await self._spool_runner(spec)) is not None:
                self._spool_runners.append(runner)
                await runner.start()
        if self._session.standby is not None and not self.broker.health().connected:
            self._late = asyncio.create_task(self._subscribe_later(state))
        else:
            await self._subscribe(state)

    async def _subscribe(self, state: Any) -> None:
        if not self._stop.is_set():
            await self.broker.declare(*self.app.routers)
            await self._report_unused_settings()
        inbox = None if self._stop.is_set() else await self._open_inbox(self._specs)
        for spec in self._specs:
            if not self._stop.is_set():
                self._runners.append(await self._runner(spec, state, inbox))
        for runner in self._runners:
            if not self._stop.is_set():
                await runner.start()

    async def _subscribe_later(self, state: Any) -> None:
        """Subscribe when a broker that is away at the start has come; the fallback serves."""
        try:
            await self._session.connection.ready(f"starting a worker of app {self.app.name!r}")
            await self._subscribe(state)
        except Exception as error:  # noqa: BLE001 - it ends the worker, as at any other start
            self._failure = error
            self._stop.set()
        else:
            self._launch(self._runners)
            self._consumers.is_open = not self._stop.is_set()

    async def _spool_runner(self, spec: HandlerSpec) -> Runner | None:
        """Return a runner of what waits for a queue in the spool, if the fallback says so."""
        # What is handled once waits for the relay: the broker or its inbox may be away too.
        if spec.batch or spec.once is not None:
            return None
        receiver = await self._session.spool_receiver(
            spec.queue, spec.retry, prefetch=spec.prefetch, lease=spec.lease
        )
        return None if receiver is None else self._runner_on(spec, receiver, self._state)

    def _launch(self, runners: Sequence[Runner]) -> None:
        if self._options.get("max_messages") is not None:
            for runner in runners:
                runner.on_ended = self._recycle_when_spent
        self._tasks += [asyncio.create_task(self._run(runner.run)) for runner in runners]

    async def _open_inbox(self, specs: Sequence[HandlerSpec]) -> Inbox | None:
        """Open the inbox of those of the consumers that have `once=`, if there are any."""
        specs = [spec for spec in specs if spec.once is not None]
        if not specs:
            return None
        inbox = self._inbox or self._session.inbox(self.app.inbox)
        check_inbox(inbox, specs)
        if self._inbox is None:
            opened = opened_inbox(inbox, self.broker.clock, self._session.connection.backend)
            self._inbox = await self._stack.enter_async_context(opened)
        return self._inbox

    async def _added(self, spec: HandlerSpec) -> list[Runner]:
        runner = await self._runner(spec, self._state, await self._open_inbox([spec]))
        beside = await self._spool_runner(spec)
        return [runner] if beside is None else [runner, beside]

    @property
    def queues(self) -> dict[str, int]:
        """The concurrency of each consumer that this worker runs now, by the name of its queue."""
        return self._consumers.queues

    @property
    def consumable(self) -> Sequence[str]:
        """The queues of the app, of which it consumes all or some."""
        return [spec.queue.name for spec in self.app.consumers()]

    @property
    def running(self) -> dict[str, int]:
        """How many handlers of each consumer run now, by the name of its queue."""
        return {runner.spec.queue.name: runner.running for runner in self._runners}

    async def resize(
        self, queue: Queue[Any] | str, concurrency: int, *, prefetch: int | None = None
    ) -> None:
        """Change how many handlers of a queue run at once, and how many messages are held.

        Threads, processes and the prefetch grow and shrink with it; without `prefetch` it is what
        `@app.consumer` gives to such a consumer. What runs is not interrupted, and counts. Raises
        `ConfigurationError` for a wrong value, and for a queue that this worker does not consume.
        """
        await self._consumers.resize(queue, concurrency, prefetch, self._check_hold)

    async def add(self, queue: Queue[Any] | str) -> None:
        """Start to consume another of the app's queues. Nothing happens when it is consumed.

        Raises what prevents it; the worker goes on then. Raises `ConfigurationError` for a queue
        that the app does not consume, and while the worker is not running.
        """
        name = queue_name(queue, f"worker of app {self.app.name!r}: add")
        (spec,) = self._chosen([name])
        await self._consumers.add(spec)

    async def remove(self, queue: Queue[Any] | str, grace: float | timedelta | None = None) -> None:
        """Stop to consume a queue: its running handlers get `grace` seconds, as in a drain (G13).

        The other consumers go on, and what was handled counts for `max_messages`. Nothing happens
        when the queue is not consumed. Without any consumer left the worker goes on running. When
        the caller is cancelled, the consumer is removed all the same.
        """
        seconds = self._grace if grace is None else self._checked_grace(grace)
        name = queue_name(queue, f"worker of app {self.app.name!r}: remove")
        await self._consumers.remove(name, seconds)

    async def _report_unused_settings(self) -> None:
        queues = [spec.queue for spec in self.app.consumers()]
        for text in await self._session.unused_settings(self.app.name, queues, self.app.routers):
            log().warning("%s", text)

    def _warn_of_no_broker(self) -> None:
        """Warn once that no other process can reach the default broker."""
        if self._session.is_unconfigured and self.broker.is_local:
            self._session.is_unconfigured = False
            log().warning(
                "worker of app %r: no broker is configured, so it runs on memory:// and gets only "
                "what this process itself publishes. Name the broker: MQCORE_URL, url in "
                "mqcore.toml, mqcore worker --url, or app.connect(url), for instance "
                "redis://localhost/0. If memory:// is meant, name that",
                self.app.name,
            )

    async def _runner(self, spec: HandlerSpec, state: Any, inbox: Inbox | None) -> Runner:
        self._check_hold(spec)
        receiver = await self._session.receiver(
            spec.queue,
            spec.retry,
            prefetch=spec.prefetch,
            lease=spec.lease,
            isolation=self._session.isolation,
            after_crash=spec.after_crash,
            replies=self._session.replies,
            notes_each=spec.after_crash == "count" and not spec.ack_first,
        )
        return self._runner_on(spec, receiver, state, inbox)

    def _runner_on(
        self, spec: HandlerSpec, receiver: Receiver, state: Any, inbox: Inbox | None = None
    ) -> Runner:
        return Runner(
            spec,
            receiver,
            publisher=self._session.publisher,
            inbound=self._session.inbound,
            middleware=self._session.middleware,
            state=state,
            inbox=inbox,
        )

    def _check_hold(self, spec: HandlerSpec) -> None:
        warn_of_long_hold(spec, self.broker.capabilities)

    async def _run(self, part: Callable[[], Awaitable[object]]) -> None:
        """Run a consumer or the relay."""
        try:
            await part()
        except Exception as error:  # noqa: BLE001 - any error that ends a consumer ends the worker
            self._failure = error
            self._stop.set()  # `run` drains; in an `async with` block the other consumers go on

    async def drain(self, grace: float | timedelta | None = None) -> None:
        """Start no more handlers, wait for those that run, and release the rest (G13).

        Running handlers get `grace` seconds, by default the worker's own grace. The lifespan may
        use what is left of it and a moment more; then it is cancelled. May be called again.
        """
        seconds = self._grace if grace is None else self._checked_grace(grace)
        self.stop()
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)

        if self._draining is None or grace is not None:
            earlier, self._draining = (
                self._draining,
                Grace(self.broker.clock, seconds),
            )
            if earlier is not None and self._draining.over:
                earlier.hurry()  # a cancelled drain may still be closing
        until = self._draining
        if self._signals > 1:
            until.hurry()
        if self._late is not None:
            self._late.cancel()
            await asyncio.gather(self._late, return_exceptions=True)
        runners = [*self._runners, *self._spool_runners]
        commands = () if self.control is None else (self.control.close(until),)
        await asyncio.gather(*(runner.drain(until) for runner in runners), *commands)
        for task in self._tasks:
            task.cancel()
        # A relay returns what it holds, and its database may not answer (G13).
        await until.wait_for_answers(self._tasks, UNSUBSCRIBED)

        await self._close_lifespan(until.for_closing)

    async def _close_lifespan(self, limit: float) -> None:
        own = None

        try:
            async with self.broker.clock.timeout(limit):
                try:
                    await self._stack.aclose()
                except TimeoutError as error:
                    own = error
                    raise
        except TimeoutError as error:
            if error is own:
                raise  # the lifespan's own failure
            log().warning(
                "the lifespan of app %r did not close in time and was cancelled", self.app.name
            )

    def stop(self) -> None:
        """Start no more handlers, and let `run` drain and return.

        A start that is under way is interrupted.
        """
        self._stop.set()
        self._consumers.is_open = False
        for runner in (*self._runners, *self._spool_runners):
            runner.halt()
        if self._starting is not None and self._starting.when() is None:
            self._starting.reschedule(0)

    def _on_signal(self) -> None:
        """Drain at the first signal, and end the grace at the second."""
        self._signals += 1
        if self._signals > 1:
            self._hurry()
        self.stop()

    def _hurry(self) -> None:
        """End the grace of the drain now."""
        if self._draining is not None:
            self._draining.hurry()

    async def run(self) -> None:
        """Consume until `stop`, SIGTERM or SIGINT, then drain (G13).

        A second signal ends the grace. All workers of the process share one signal handler; the
        handlers that were set before are called too, and restored at the end. Raises the error that
        ended consuming, if one did.
        """
        loop = asyncio.get_running_loop()
        self._warn_of_no_broker()

        with call_at_stop_signals(self._on_signal, loop):
            try:
                await self.start()
                await self._stop.wait()
                await self.drain()
                if self._signals:
                    self._session.leaving = self._draining
            except asyncio.CancelledError:
                # The caller that cancels does not wait, and nothing may be left running.
                await self.drain(0)
                raise

        if self._failure is not None:
            raise self._failure

    def health(self) -> Health:
        """Return the broker's health, and for each queue of this worker whether it is consumed.

        These are two things: a worker can be connected and not consume (G14).
        """
        consuming = {
            runner.spec.queue.name: runner.receiver.consuming
            for runner in (*self._spool_runners, *self._runners)
            if runner in self._runners or not self._session.connection.connected
        }
        return replace(
            self.broker.health(),
            consuming={spec.queue.name: False for spec in self._specs} | consuming,
        )

    async def _watch_health(self) -> None:
        """Write the health file and check the memory, every 2 s of real time.

        Does nothing when neither option is set.
        """
        path = self._options.get("health_file")
        if path is None and self._options.get("max_memory") is None:
            return
        while True:
            if path is not None:
                write_health(Path(path), self.health(), self.broker.clock.now())
            self._recycle_when_spent()
            await asyncio.sleep(_WATCH_EVERY)

    def _recycle_when_spent(self) -> None:
        if self._is_spent():
            self.recycle = True
            self.stop()

    def _is_spent(self) -> bool:
        messages, memory = self._options.get("max_messages"), self._options.get("max_memory")
        handled = self._consumers.removed + sum(runner.handled for runner in self._runners)
        if messages is not None and handled >= messages:
            return True
        return memory is not None and handled > 0 and (resident_memory() or 0) > memory
