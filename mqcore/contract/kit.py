"""What a case works with: an open backend, time, and the calls that most cases make.

A case uses the backend interface only. Every wait is bounded by the harness's `patience`; under a
virtual clock it takes no time. Every queue has a new name, and what a case declares is deleted at
its end where the backend can do that.
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
from mqcore.contract.values import difference
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
    from mqcore.spi import QueueCounts

__all__ = ["ContractError", "Kit", "NotShown"]

T = TypeVar("T")
_REAL = 1.0
"""Seconds of real time for a thread or a bounded close, although the clock is virtual."""
_EVENTS = {"", "Event.wait"}
"""Names of calls that do not say what they wait for."""
_UNDER_WAY = 0.05
"""Seconds after which a started call has reached the broker."""


class ContractError(AssertionError):
    """A backend broke the contract: what was expected, what happened, and where to look."""

    def __init__(self, expected: str, actual: object, look: str = "") -> None:
        """Take two plain sentences or values; `look` names the method to look at first."""
        self.expected, self.actual, self.look = expected, actual, look

        text = f"expected: {expected}\n     came: {actual}"
        super().__init__(f"{text}\n  look at: {look}" if look else text)


class NotShown(Exception):
    """Raised by a case that finds that this server cannot show it; the reason is reported."""


class Kit:
    """One case's access to one broker."""

    def __init__(self, harness: Harness) -> None:
        """Open nothing yet."""
        self.harness = harness
        self.clock = harness.clock
        self.capabilities: Capabilities
        self.measured: dict[str, float] = {}
        """What the case measures, by name; it is part of the report."""
        self.lost: list[Exception] = []
        self.awaited: list[asyncio.Future[Any]] = []
        """The calls that the case awaits, or awaited when it was ended."""
        self.made: Backend | None = None
        """The first instance, once it has been used."""
        self._opened: list[Backend] = []
        self._killed: list[Backend] = []
        self._brokers: list[Broker] = []
        self._workers: list[Worker] = []
        self._tasks: list[asyncio.Future[Any]] = []
        self._declared: list[str] = []

    # Checks

    def same(self, actual: object, expected: object, what: str, look: str = "") -> None:
        """Fail unless the two are equal. `what` says what the value is."""
        if actual != expected:
            shown, shown_expected = difference(actual, expected)
            raise ContractError(f"{what}: {shown_expected}", shown, look)

    def counted(
        self,
        counts: QueueCounts,
        *,
        ready: int,
        leased: int | None = None,
        delayed: int | None = None,
        look: str = "SupportsCount.count",
    ) -> None:
        """Fail unless the counts are equal. A count that is None on one side is not compared."""
        expected = {"ready": ready, "leased": leased, "delayed": delayed}
        reported = {name: getattr(counts, name) for name in expected}
        compared = [name for name in expected if None not in (expected[name], reported[name])]
        self.same(
            {name: reported[name] for name in compared},
            {name: expected[name] for name in compared},
            f"counts of {counts.name}",
            look,
        )

    def true(
        self, holds: object, expected: str, actual: object = "that is not so", look: str = ""
    ) -> None:
        """Fail unless `holds` is true."""
        if not holds:
            raise ContractError(expected, actual, look)

    async def raises(
        self,
        errors: type[Exception] | tuple[type[Exception], ...],
        work: Awaitable[object],
        what: str,
        look: str = "",
    ) -> Exception:
        """Fail unless the work raises one of these errors in time; return what it raised.

        `NotImplementedError` is never the expected error, also where core has wrapped it: its text
        says which method to write next.
        """
        try:
            returned = await self.within(work)
        except ContractError:
            raise  # it did not end in time
        except Exception as error:
            cause = root_cause(error)
            if isinstance(cause, NotImplementedError):
                raise
            if isinstance(error, errors):
                return error

            if cause is not error:
                look = ", ".join(filter(None, (look, raised_at(cause, self.made))))
            raise ContractError(what, f"{type(error).__name__}: {error}", look) from error

        raise ContractError(what, f"no exception, it returned {returned!r}", look)

    def kind(self, error: Exception, expected: ErrorKind, look: str = "Backend.classify") -> None:
        """Fail unless the backend classifies the error as this kind."""
        actual = self.backend.classify(error)
        if actual is expected:
            return

        at = raised_at(root_cause(error), self.made)
        raise ContractError(
            f"an exception of the kind {expected.name}",
            f"{actual.name}: {error!r}",
            f"{look}, and the exception that is raised in {at}",
        ) from error

    # Time

    @property
    def now(self) -> float:
        """The time of the clock that delays and leases use."""
        return self.clock.monotonic()

    async def advance(self, seconds: float) -> None:
        """Let time pass."""
        await self.harness.advance(seconds)

    async def within(self, work: Awaitable[T], seconds: float | None = None, what: str = "") -> T:
        """Await the work; fail when it takes longer than `seconds`, by default the patience.

        `what` says what is awaited, by default that the call returns.
        """
        limit = self.harness.patience if seconds is None else seconds
        task = asyncio.ensure_future(work)
        self.awaited.append(task)

        try:
            await self._await(task, limit)
        except BaseException:
            self._tasks.append(task)  # it is cancelled before anything is closed
            raise
        self.awaited.remove(task)
        if task.done():
            return await task

        call, look = call_name(task), suspended_at(task, self.made)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

        what = what or (f"{call} returns" if call not in _EVENTS else "the awaited event happens")
        raise ContractError(f"{what} within {limit:g} s", "it has not ended", look)

    async def _await(self, task: asyncio.Future[Any], limit: float) -> None:
        """Return when the task has ended or the time is over."""
        if not isinstance(self.clock, VirtualClock):
            await asyncio.wait([task], timeout=limit)
            return
        await self.clock.settle()
        if not task.done():
            await self._pass_time(self.clock, task, limit)
        if not task.done():
            await asyncio.wait([task], timeout=_REAL)

    async def start(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a call that will wait, and let it reach its wait.

        It is cancelled at the end of the case.
        """
        task = asyncio.create_task(work)
        self._tasks.append(task)
        await self.advance(_UNDER_WAY)
        return task

    @staticmethod
    async def _pass_time(clock: VirtualClock, task: asyncio.Future[T], limit: float) -> None:
        """Advance the clock until the task has ended, and no further.

        Otherwise what the case measures next would be minutes late.
        """
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
        """Open an instance, by default another one for the same broker.

        It is closed at the end of the case.
        """
        backend = backend or self.harness.make_backend()
        self._opened.append(backend)

        def lost(error: Exception) -> None:
            if backend not in self._killed:
                self.lost.append(error)

        self.capabilities = await self.within(backend.open(lost))
        return backend

    async def kill(self, backend: Backend) -> None:
        """End an instance as if its process had died.

        It may call `lost` then.
        """
        self._killed.append(backend)
        await self.harness.kill(backend)

    async def broker(self, **options: Any) -> Broker:
        """Open a Broker on the same server, with these options and no other settings.

        It is closed at the end of the case.
        """
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
        """Start a Worker with this handler; `options` are those of `App.consumer`.

        It is drained at the end of the case. Without DELAY core would refuse the waits of the
        default policy, so failed messages are handled again at once.
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
        """The policy of a consumer whose retries do not matter.

        None is the default policy; without DELAY it is one without waits.
        """
        return None if self.capabilities.has(Capability.DELAY) else RetryPolicy(3, fixed(0.0))

    async def close(self) -> None:
        """Delete what the case has declared, and close what it opened."""
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
        """Delete the bindings of the case's routers, and its queues."""
        if isinstance(backend, SupportsBind):
            with suppress(Exception):
                bound = await self.within(backend.bindings())
                await self.within(
                    backend.unbind(
                        [binding for binding in bound if binding.router in self._declared]
                    )
                )
        if isinstance(backend, SupportsDelete):
            for name in self._declared:
                with suppress(Exception):
                    await self.within(backend.delete(name))

    # Moves

    def name(self) -> str:
        """Return a new name for a queue or a router, which is deleted at the end of the case."""
        name = self.harness.unique_name()
        self._declared += [name, f"{name}.dlq"]
        return name

    async def queue(self, *, dead_letter: bool = True, **settings: Any) -> str:
        """Declare a work queue with its dead-letter queue and quarantine; return its name."""
        name = self.name()
        dlq = f"{name}.dlq" if dead_letter else None
        specs = [
            QueueSpec(name=name, dead_letter=dlq, **settings),
            QueueSpec(name=f"{name}.quarantine", role="quarantine", dead_letter=dlq),
        ]
        if dlq is not None:
            specs.append(QueueSpec(name=dlq, role="dead_letter"))
        await self.within(self.backend.declare(specs))
        return name

    def message(self, name: str | None = None, **fields: Any) -> Message:
        """Make a message; `name` is its id, and its body unless one is given."""
        name = name or new_id()
        return Message(
            id=name, **{"body": name.encode(), "published_at": self.clock.now(), **fields}
        )

    async def publish(self, *batch: Outgoing, backend: Backend | None = None) -> list[Outcome]:
        """Publish a batch; return an outcome for each item."""
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
        """Publish messages with these names in one batch, and check that all are stored."""
        batch = [
            Outgoing(queue, self.message(name, priority=priority), delay, ttl) for name in names
        ]
        self.same(
            await self.publish(*batch),
            [STORED] * len(names),
            "outcomes of publishing",
            "Backend.publish",
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
        """Receive once, waiting at most `wait` seconds, by default the harness's `silence`."""
        patience = self.harness.silence if wait is None else wait
        return list(
            await self.within(consumer.receive(limit, patience), patience + self.harness.patience)
        )

    async def take(self, consumer: Subscription, count: int) -> list[Delivery]:
        """Receive until `count` messages have arrived; fail when the patience is over."""
        got: list[Delivery] = []
        deadline = self.now + self.harness.patience
        while len(got) < count and self.now < deadline:
            got += await self.receive(
                consumer, count - len(got), wait=max(deadline - self.now, 0.0)
            )

        self.same(
            len(got),
            count,
            f"number of messages received within {self.harness.patience:g} s",
            "Subscription.receive",
        )

        return got

    async def drain(self, consumer: Subscription, *, wait: float | None = None) -> list[Delivery]:
        """Receive until nothing more arrives, and settle nothing."""
        got: list[Delivery] = []
        while batch := await self.receive(consumer, wait=wait):
            got += batch
        return got

    async def settle(self, consumer: Subscription, *batch: Settlement) -> list[Settled]:
        """Settle a batch; return an outcome for each item."""
        return list(await self.within(consumer.settle(batch, timeout=self.harness.patience)))

    async def ack(self, consumer: Subscription, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge deliveries, and check that each is done."""
        settled = await self.settle(consumer, *[Ack(delivery.receipt) for delivery in deliveries])
        self.same(
            [type(item) for item in settled],
            [Done] * len(deliveries),
            "outcomes of acks",
            "Subscription.settle",
        )

    async def contents(self, queue: str) -> Counter[str]:
        """Empty a queue, and count the ids that were in it."""
        consumer = await self.subscribe(queue)
        ids: Counter[str] = Counter()
        while batch := await self.receive(consumer):
            ids.update(self.ids(batch))
            await self.ack(consumer, batch)
        await self.within(consumer.close())
        return ids

    def limit(self, capability: Capability, name: str) -> Any:
        """Return a declared limit, or None."""
        return self.capabilities[capability].limits.get(name)

    def ids(self, deliveries: Sequence[Delivery]) -> list[str]:
        """Return the ids of deliveries, in order."""
        return [delivery.message.id for delivery in deliveries]

    def successor(self, delivery: Delivery, to: str, delay: float = 0.0, **changes: Any) -> Move:
        """Make the Move that core makes: one hop more, a lineage, and the given changes."""
        return Move(
            delivery.receipt, Outgoing(to, delivery.message.moved("its queue", **changes), delay)
        )
