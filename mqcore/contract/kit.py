"""What a case works with: an open backend, time, and the few moves that every case makes.

A case knows nothing of a backend but the seam. Waiting is bounded by the harness's `patience` and,
under a virtual clock, takes no time; every name is new; what a case declares is deleted at its end,
where the backend can.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from mqcore.app import App
from mqcore.broker import Broker
from mqcore.config.settings import Settings
from mqcore.contract.locate import call_name, raised_at, root_cause, suspended_at
from mqcore.messages.message import Message, new_id
from mqcore.rules.retry import RetryPolicy, fixed
from mqcore.spi import (
    STORED,
    Ack,
    Backend,
    Capabilities,
    Capability,
    Delivery,
    Done,
    ErrorKind,
    Move,
    Outcome,
    Outgoing,
    QueueSpec,
    Settled,
    Settlement,
    Subscription,
    SupportsBind,
    SupportsDelete,
)
from mqcore.testing import VirtualClock
from mqcore.worker import Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from mqcore.contract.harness import Harness
    from mqcore.queue import Queue

__all__ = ["ContractError", "Kit", "NotShown"]

T = TypeVar("T")
_REAL = 1.0
"""Seconds of real time that a thread or a bounded close may take although the clock is virtual."""
_EVENTS = {"", "Event.wait"}
"""Calls whose name says nothing of what they wait for."""
_UNDER_WAY = 0.05
"""Seconds after which a call that was begun has reached the broker."""


class ContractError(AssertionError):
    """A backend did other than the contract says: what was expected, what came, and where to look."""

    def __init__(self, expected: str, came: object, look: str = "") -> None:
        """Three plain sentences or values; `look` names the method to begin with."""
        self.expected, self.came, self.look = expected, came, look
        super().__init__(
            f"expected: {expected}\n     came: {came}" + (f"\n  look at: {look}" if look else "")
        )


class NotShown(Exception):
    """Raised by a case that finds only while running that this server cannot show it; the reason is printed."""


class Kit:
    """One case's view of one broker."""

    def __init__(self, harness: Harness) -> None:
        """Not open yet."""
        self.harness = harness
        self.clock = harness.clock
        self.capabilities: Capabilities
        self.measured: dict[str, float] = {}
        """What a case measures, by name: it goes into the report."""
        self.lost: list[Exception] = []
        self.awaited: list[asyncio.Future[Any]] = []
        """The calls that the case waits for now, or waited for when it was ended."""
        self.made: Backend | None = None
        """The first instance, once it has been asked for."""
        self._opened: list[Backend] = []
        self._killed: list[Backend] = []
        self._brokers: list[Broker] = []
        self._workers: list[Worker] = []
        self._tasks: list[asyncio.Future[Any]] = []
        self._declared: list[str] = []

    # Checks

    def same(self, came: object, wanted: object, what: str, look: str = "") -> None:
        """Fail unless the two are equal."""
        if came != wanted:
            raise ContractError(f"{what}: {wanted!r}", repr(came), look)

    def true(self, holds: object, expected: str, came: object = "not so", look: str = "") -> None:
        """Fail unless it holds."""
        if not holds:
            raise ContractError(expected, came, look)

    async def raises(
        self,
        errors: type[Exception] | tuple[type[Exception], ...],
        work: Awaitable[object],
        what: str,
        look: str = "",
    ) -> Exception:
        """Fail unless the work raises one of these within the patience; return what it raised.

        `NotImplementedError`, behind core's words too, is never what is meant: its text says what
        to write.
        """
        try:
            came = await self.within(work)
        except ContractError:
            raise  # it did not end, which is not what was asked for
        except Exception as error:
            began = root_cause(error)
            if isinstance(began, NotImplementedError):
                raise
            if isinstance(error, errors):
                return error
            if began is not error:
                look = ", ".join(filter(None, (look, raised_at(began, self.made))))
            raise ContractError(what, f"{type(error).__name__}: {error}", look) from error
        raise ContractError(what, f"nothing was raised, it returned {came!r}", look)

    def kind(self, error: Exception, wanted: ErrorKind, look: str = "Backend.classify") -> None:
        """Fail unless the backend classifies what it raised so."""
        came = self.backend.classify(error)
        if came is not wanted:
            at = raised_at(root_cause(error), self.made)
            look = f"{look}, and what is raised in {at}"
            raise ContractError(
                f"an exception of the kind {wanted.name}", f"{came.name}: {error!r}", look
            ) from error

    # Time

    @property
    def now(self) -> float:
        """The clock that delays and leases are measured by."""
        return self.clock.monotonic()

    async def advance(self, seconds: float) -> None:
        """Let time pass."""
        await self.harness.advance(seconds)

    async def within(self, work: Awaitable[T], seconds: float | None = None, what: str = "") -> T:
        """Run the work to its end; fail when it takes longer than `seconds` (by default the harness's patience).

        `what` is awaited: by default the call by its name.
        """
        limit = self.harness.patience if seconds is None else seconds
        task = asyncio.ensure_future(work)
        self.awaited.append(task)
        try:
            await self._await(task, limit)
        except BaseException:
            self._tasks.append(task)  # what spins on is cancelled before anything is closed
            raise
        self.awaited.remove(task)
        if not task.done():
            called, look = call_name(task), suspended_at(task, self.made)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            what = what or (
                f"an end of {called}" if called not in _EVENTS else "what should happen"
            )
            raise ContractError(f"{what} within {limit:g} s", "it still goes on", look)
        return await task

    async def _await(self, task: asyncio.Future[Any], limit: float) -> None:
        """Return when the task has ended, or the time is over."""
        if not isinstance(self.clock, VirtualClock):
            await asyncio.wait([task], timeout=limit)
            return
        await self.clock.settle()
        if not task.done():
            await self._pass_time(self.clock, task, limit)
        if not task.done():
            await asyncio.wait([task], timeout=_REAL)

    async def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Begin what will wait, and let it come to where it waits; it is cancelled at the case's end."""
        task = asyncio.create_task(work)
        self._tasks.append(task)
        await self.advance(_UNDER_WAY)
        return task

    @staticmethod
    async def _pass_time(clock: VirtualClock, task: asyncio.Future[T], limit: float) -> None:
        """Move the clock until the task has ended, and no further: what a case measures next must not be minutes late."""
        passing = asyncio.ensure_future(clock.advance(limit))
        task.add_done_callback(lambda _: passing.cancel())
        try:
            await asyncio.wait([passing])
        finally:
            passing.cancel()
        if not passing.cancelled():
            passing.result()

    # Opening and closing

    @property
    def backend(self) -> Backend:
        """The first instance, open."""
        if self.made is None:
            self.made = self.harness.make_backend()
        return self.made

    async def open(self, backend: Backend | None = None) -> Backend:
        """Open an instance, by default another one for the same broker; it is closed at the end."""
        backend = backend or self.harness.make_backend()
        self._opened.append(backend)

        def lost(error: Exception) -> None:
            if backend not in self._killed:
                self.lost.append(error)

        self.capabilities = await self.within(backend.open(lost))
        return backend

    async def kill(self, backend: Backend) -> None:
        """End an instance as if its process had died; that it calls `lost` then is no fault."""
        self._killed.append(backend)
        await self.harness.kill(backend)

    async def broker(self, **options: Any) -> Broker:
        """Open a Broker on the same server, with no settings but these options; it is closed at the end."""
        given = {
            "make_backend": self.harness.make_backend,
            "clock": self.clock,
            "settings": Settings(),
            **options,
        }
        broker = Broker(**given)
        self._brokers.append(broker)
        await self.within(broker.open())
        return broker

    async def worker(
        self, broker: Broker, queue: Queue[Any] | str, handler: Callable[..., Any], **options: Any
    ) -> Worker:
        """Start a Worker with this one handler (`options` are those of `App.consumer`); it is drained at the end.

        Without DELAY the default policy's waits would be refused: then what fails is handled again
        at once.
        """
        if not self.capabilities.has(Capability.DELAY):
            options.setdefault("retry", self.retry)
        app = App("contract")
        app.consumer(queue, **options)(handler)
        worker = Worker(app, broker)
        self._workers.append(worker)
        await self.within(worker.start())
        return worker

    @property
    def retry(self) -> RetryPolicy | None:
        """The policy for a consumer to which none matters: the default, or one without waits where there is no DELAY."""
        return None if self.capabilities.has(Capability.DELAY) else RetryPolicy(3, fixed(0.0))

    async def close(self) -> None:
        """Delete what the case has declared, and close whatever it opened."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for worker in self._workers:
            with suppress(Exception):
                await self.within(worker.drain(0))
        for broker in self._brokers:
            with suppress(Exception):
                await self.within(broker.close())
        with suppress(Exception):
            tidy = self.harness.make_backend()
            await self.within(tidy.open(self.lost.append))
            await self._tidy(tidy)
            await self.within(tidy.close())
        for backend in self._opened:
            with suppress(Exception):
                await self.within(backend.close())

    async def _tidy(self, backend: Backend) -> None:
        """Take away the bindings of the case's routers, which is all that is left of one, and the case's queues."""
        if isinstance(backend, SupportsBind):
            with suppress(Exception):
                bound = await self.within(backend.bindings())
                await self.within(
                    backend.unbind([one for one in bound if one.router in self._declared])
                )
        if isinstance(backend, SupportsDelete):
            for name in self._declared:
                with suppress(Exception):
                    await self.within(backend.delete(name))

    # Moves

    def name(self) -> str:
        """Return a name of the case's own; the queue or the router that is called so goes at its end."""
        name = self.harness.unique_name()
        self._declared += [name, f"{name}.dlq"]
        return name

    async def queue(self, *, dead_letter: bool = True, **settings: Any) -> str:
        """Declare a work queue with its dead-letter queue and its quarantine; return its name."""
        name = self.name()
        dlq = f"{name}.dlq" if dead_letter else None
        specs = [
            QueueSpec(name=name, dead_letter=dlq, **settings),
            QueueSpec(name=f"{name}.again", role="quarantine", dead_letter=dlq),
        ]
        if dlq is not None:
            specs.append(QueueSpec(name=dlq, role="dead_letter"))
        await self.within(self.backend.declare(specs))
        return name

    def message(self, name: str | None = None, **fields: Any) -> Message:
        """Make a message whose id, and body unless it is given, is `name`."""
        name = name or new_id()
        return Message(
            id=name, **{"body": name.encode(), "published_at": self.clock.now(), **fields}
        )

    async def publish(self, *batch: Outgoing, backend: Backend | None = None) -> list[Outcome]:
        """Publish a batch; an outcome for each."""
        target = backend or self.backend
        return list(await self.within(target.publish(batch, timeout=self.harness.patience)))

    async def put(
        self,
        queue: str,
        *names: str,
        delay: float = 0.0,
        ttl: float | None = None,
        priority: int = 5,
    ) -> None:
        """Publish messages of these names in one batch, and see all of them stored."""
        batch = [
            Outgoing(queue, self.message(name, priority=priority), delay, ttl) for name in names
        ]
        self.same(
            await self.publish(*batch), [STORED] * len(names), "all stored", "Backend.publish"
        )

    async def subscribe(
        self,
        queue: str,
        *,
        prefetch: int = 100,
        lease: float = 30.0,
        backend: Backend | None = None,
    ) -> Subscription:
        """Start a consumer."""
        return await self.within(
            (backend or self.backend).subscribe(queue, prefetch=prefetch, lease=lease)
        )

    async def receive(
        self, consumer: Subscription, limit: int = 100, *, wait: float | None = None
    ) -> list[Delivery]:
        """Receive once, waiting `wait` seconds, by default as long as silence takes to be believed."""
        patience = self.harness.silence if wait is None else wait
        return list(
            await self.within(consumer.receive(limit, patience), patience + self.harness.patience)
        )

    async def take(self, consumer: Subscription, count: int) -> list[Delivery]:
        """Receive until `count` have come; fail with what has when the patience is over."""
        got: list[Delivery] = []
        deadline = self.now + self.harness.patience
        while len(got) < count and self.now < deadline:
            got += await self.receive(
                consumer, count - len(got), wait=max(deadline - self.now, 0.0)
            )
        self.same(
            len(got),
            count,
            f"messages received within {self.harness.patience:g} s",
            "Subscription.receive",
        )
        return got

    async def drain(self, consumer: Subscription, *, wait: float | None = None) -> list[Delivery]:
        """Receive until nothing comes, settling nothing."""
        got: list[Delivery] = []
        while batch := await self.receive(consumer, wait=wait):
            got += batch
        return got

    async def settle(self, consumer: Subscription, *batch: Settlement) -> list[Settled]:
        """Settle a batch; an outcome for each."""
        return list(await self.within(consumer.settle(batch, timeout=self.harness.patience)))

    async def ack(self, consumer: Subscription, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge, and see it done."""
        settled = await self.settle(consumer, *[Ack(delivery.receipt) for delivery in deliveries])
        self.same(
            [type(it) for it in settled],
            [Done] * len(deliveries),
            "acks of what is held",
            "Subscription.settle",
        )

    async def contents(self, queue: str) -> Counter[str]:
        """Empty a queue, and count the ids that were in it."""
        consumer = await self.subscribe(queue)
        found: Counter[str] = Counter()
        while batch := await self.receive(consumer):
            found.update(self.ids(batch))
            await self.ack(consumer, batch)
        await self.within(consumer.close())
        return found

    def limit(self, capability: Capability, name: str) -> Any:
        """Return a declared limit, None when there is none."""
        return self.capabilities[capability].limits.get(name)

    def ids(self, deliveries: Sequence[Delivery]) -> list[str]:
        """Return the ids of deliveries, in their order."""
        return [delivery.message.id for delivery in deliveries]

    def successor(self, delivery: Delivery, to: str, delay: float = 0.0, **changes: Any) -> Move:
        """Make the Move that core makes: one hop more, its lineage, and what else is changed."""
        return Move(
            delivery.receipt, Outgoing(to, delivery.message.moved("its queue", **changes), delay)
        )
