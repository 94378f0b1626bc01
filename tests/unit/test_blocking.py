"""The adapter for drivers that block: cancelled, late and closed calls lose and repeat nothing."""

import asyncio
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Any

import pytest

from mqcore.clock import SystemClock
from mqcore.spi import (
    DONE,
    STORED,
    Ack,
    Backend,
    Capabilities,
    ConnectionLost,
    Delivery,
    Durability,
    ErrorKind,
    Failed,
    Message,
    Options,
    Outcome,
    Outgoing,
    QueueNotFound,
    QueueSpec,
    Settled,
    Settlement,
    SupportsBrowse,
    SupportsCount,
    SupportsTake,
    Unknown,
    blocking,
    calls,
)
from mqcore.spi.blocking import (
    BlockingBackend,
    BlockingDriver,
    CallNotBegun,
    CallNotEnded,
    CallThread,
)

LONG = 5.0


class Gate:
    """Stops the thread inside of a call until `open` is called."""

    def __init__(self) -> None:
        self._loop, self._begun, self._go = (
            asyncio.get_running_loop(),
            asyncio.Event(),
            threading.Event(),
        )

    def __call__(self) -> None:
        self._loop.call_soon_threadsafe(self._begun.set)
        assert self._go.wait(LONG)

    async def begun(self) -> None:
        async with asyncio.timeout(LONG):
            await self._begun.wait()

    def open(self) -> None:
        self._go.set()


class Driver(BlockingDriver):
    """One queue in a list. `gates` holds a call of that name, `fails` makes it raise."""

    def __init__(self, url: str, options: Any) -> None:
        super().__init__(url, options)
        DRIVERS.append(self)
        self.ready = [f"{number}" for number in range(4)]
        self.held_now: dict[bytes, str] = {}
        self.calls: list[str] = []
        self.gates: dict[str, Gate] = {}
        self.fails: dict[str, Exception] = dict(FAILS)
        self.lost: Callable[[Exception], None]
        self.is_calm = False

    def _call(self, name: str) -> None:
        if (gate := self.gates.get(name)) is not None:
            gate()
        self.calls.append(name)
        if name in self.fails:
            raise self.fails[name]

    def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        self._call("open")
        self.lost = lost
        return Capabilities("fake", "fake", Durability.MEMORY, {})

    def close(self) -> None:
        self._call("close")

    def abort(self) -> None:
        self.calls.append("abort")

    def declare(self, queues: Sequence[QueueSpec]) -> None:
        self._call("declare")

    def publish(self, batch: Sequence[Outgoing], timeout: float) -> Sequence[Outcome]:
        self._call("publish")
        return [STORED] * len(batch)

    def subscribe(self, queue: str, *, prefetch: int, lease: float) -> Any:
        self._call("subscribe")
        return queue

    def claim(self, consumer: Any, limit: int) -> Sequence[Delivery]:
        self._call("claim")
        names, self.ready = self.ready[:limit], self.ready[limit:]
        self.held_now |= {name.encode(): name for name in names}
        return [Delivery(Message(id=name, body=b""), name.encode()) for name in names]

    def settle(
        self, consumer: Any, batch: Sequence[Settlement], timeout: float
    ) -> Sequence[Settled]:
        self._call("settle")
        for item in batch:
            self.held_now.pop(item.receipt)
        return [DONE] * len(batch)

    def give_back(self, queue: str, receipts: Sequence[bytes]) -> None:
        self._call("give_back")
        self.ready = [self.held_now.pop(receipt) for receipt in receipts] + self.ready

    def unsubscribe(self, consumer: Any, receipts: Sequence[bytes]) -> None:
        self._call(f"unsubscribe {[receipt.decode() for receipt in receipts]}")

    def take(self, queue: str, keys: Sequence[str], lease: float) -> Sequence[Delivery]:
        return self.claim(queue, len(keys))

    def count(self, queues: Sequence[str] | None = None) -> Sequence[Any]:
        return [queues]

    def is_quiet(self, queues: Sequence[str]) -> bool:
        self.calls.append(f"is_quiet {list(queues)}")
        return self.is_calm

    def pending(self, queues: Sequence[str]) -> Collection[str]:
        self.calls.append(f"pending {list(queues)}")
        return queues

    @staticmethod
    def classify(error: Exception) -> ErrorKind:
        return ErrorKind.DENIED if isinstance(error, PermissionError) else ErrorKind.PERMANENT


DRIVERS: list[Driver] = []
FAILS: dict[str, Exception] = {}


class Adapted(BlockingBackend):
    scheme = "fake"
    Driver = Driver
    poll = 0.001


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(blocking, "_CLOSE", 0.01)
    monkeypatch.setattr(blocking, "_LEAST", 0.01)
    yield
    DRIVERS.clear()
    FAILS.clear()


async def opened() -> tuple[Adapted, Driver]:
    backend = Adapted("fake://", Options())
    await backend.open(lambda _: None)
    return backend, DRIVERS[-1]


async def idle(backend: Adapted) -> None:
    """Return when the thread has done everything that it was given."""
    await backend.run(lambda _: None)


async def called(driver: Driver, name: str, times: int = 1) -> None:
    async with asyncio.timeout(LONG):
        while driver.calls.count(name) < times:  # noqa: ASYNC110 - the thread notes it in a list
            await asyncio.sleep(0)


def thread() -> CallThread:
    return CallThread("test", SystemClock())


# The thread


async def test_calls_run_in_their_order_and_answer_with_result_or_exception() -> None:
    calls, order = thread(), list[int]()
    answers = await asyncio.gather(*(calls.run(lambda n=n: order.append(n) or n) for n in range(9)))
    assert answers == order == list(range(9))

    with pytest.raises(ZeroDivisionError):
        await calls.run(lambda: 1 // 0)
    calls.close()
    with pytest.raises(ConnectionLost, match="closed"):
        await calls.run(lambda: 1)


async def test_a_call_that_is_cancelled_before_it_begins_never_begins() -> None:
    calls, gate, ran = thread(), Gate(), list[str]()
    first = asyncio.create_task(calls.run(gate))
    await gate.begun()
    second = asyncio.create_task(calls.run(lambda: ran.append("second")))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second

    gate.open()
    await first
    await calls.run(lambda: ran.append("third"))
    assert ran == ["third"]


@pytest.mark.parametrize("how", ["cancelled", "late"])
async def test_a_call_that_has_begun_is_undone_and_its_caller_goes_on(how: str) -> None:
    calls, gate, undone = thread(), Gate(), list[str]()
    timeout = None if how == "cancelled" else 0.01

    task = asyncio.create_task(
        calls.run(lambda: gate() or "claimed", timeout=timeout, undo=undone.append)
    )
    await gate.begun()
    if how == "cancelled":
        task.cancel()
    with pytest.raises(asyncio.CancelledError if how == "cancelled" else CallNotEnded):
        await task
    assert undone == []

    gate.open()
    await calls.run(lambda: None)
    assert undone == ["claimed"]


async def test_a_call_whose_caller_is_cancelled_in_the_moment_of_the_answer_is_undone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running, undone, end = thread(), list[str](), calls._Call._end

    def end_and_cancel(call: Any) -> None:
        end(call)
        task.cancel()

    monkeypatch.setattr(calls._Call, "_end", end_and_cancel)
    task = asyncio.create_task(running.run(lambda: "claimed", undo=undone.append))
    with pytest.raises(asyncio.CancelledError):
        await task

    monkeypatch.undo()
    await running.run(lambda: None)
    assert undone == ["claimed"]


async def test_a_call_that_was_not_begun_in_time_says_so_and_never_begins() -> None:
    calls, gate, ran = thread(), Gate(), list[str]()
    first = asyncio.create_task(calls.run(gate))
    await gate.begun()
    with pytest.raises(CallNotBegun):
        await calls.run(lambda: ran.append("late"), timeout=0.01)

    gate.open()
    await first
    await calls.run(lambda: None)
    assert ran == []


# The backend


async def test_a_publish_that_was_not_begun_is_failed_and_one_that_was_is_unknown() -> None:
    backend, driver = await opened()
    gate = driver.gates["publish"] = Gate()
    batch = [Outgoing("q", Message(id="m", body=b""))] * 2

    begun = asyncio.create_task(backend.publish(batch, timeout=0.05))
    await gate.begun()
    waiting = await backend.publish(batch, timeout=0.01)

    assert [type(outcome) for outcome in await begun] == [Unknown, Unknown]
    assert all(isinstance(it, Failed) and it.kind is ErrorKind.TRANSIENT for it in waiting)
    gate.open()
    await idle(backend)
    assert driver.calls.count("publish") == 1
    await backend.close()


async def test_what_a_cancelled_receive_claims_goes_back_and_comes_with_the_next() -> None:
    backend, driver = await opened()
    consumer = await backend.subscribe("q", prefetch=2, lease=30)
    gate = driver.gates["claim"] = Gate()

    task = asyncio.create_task(consumer.receive(2, LONG))
    await gate.begun()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.open()

    assert [it.message.id for it in await consumer.receive(2, LONG)] == ["0", "1"]
    assert driver.calls[2:] == ["claim", "give_back", "claim"]
    await backend.close()


async def test_a_claim_that_ends_after_its_time_goes_back() -> None:
    backend, driver = await opened()
    consumer = await backend.subscribe("q", prefetch=2, lease=30)
    gate = driver.gates["claim"] = Gate()

    assert await consumer.receive(2, 0.0) == []

    gate.open()
    await idle(backend)
    assert driver.ready == ["0", "1", "2", "3"]
    await backend.close()


@pytest.mark.parametrize("turns", range(24))
async def test_wherever_a_receive_is_cancelled_no_message_is_lost(turns: int) -> None:
    backend, _ = await opened()
    consumer = await backend.subscribe("q", prefetch=9, lease=30)

    task = asyncio.create_task(consumer.receive(2, LONG))
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    got = []
    with suppress(asyncio.CancelledError):
        got = [it.message.id for it in await task]

    while len(got) < 4:
        got += [it.message.id for it in await consumer.receive(9, LONG)]
    assert got == ["0", "1", "2", "3"]
    await backend.close()


async def test_a_settlement_whose_caller_is_cancelled_frees_its_room() -> None:
    backend, driver = await opened()
    consumer = await backend.subscribe("q", prefetch=1, lease=30)
    (held,) = await consumer.receive(1, LONG)
    gate = driver.gates["settle"] = Gate()

    task = asyncio.create_task(consumer.settle([Ack(held.receipt)], timeout=LONG))
    await gate.begun()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.open()
    await idle(backend)

    (other,) = await consumer.receive(1, LONG)
    assert other.message.id == "1"
    await backend.close()


async def settling_behind_a_busy_thread(
    backend: Adapted, driver: Driver
) -> tuple[Gate, list[asyncio.Task[Sequence[Settled]]]]:
    """Three settlements, of which the first is at work and the others wait."""
    consumer = await backend.subscribe("q", prefetch=9, lease=30)
    held = await consumer.receive(3, LONG)
    gate = driver.gates["settle"] = Gate()
    tasks = []
    for delivery in held:
        settling = consumer.settle([Ack(delivery.receipt)], timeout=LONG)
        tasks.append(asyncio.create_task(settling))
        await gate.begun()
    return gate, tasks


async def test_settlements_that_wait_at_the_same_time_are_one_call() -> None:
    backend, driver = await opened()
    gate, tasks = await settling_behind_a_busy_thread(backend, driver)
    gate.open()

    assert await asyncio.gather(*tasks) == [[DONE]] * 3
    assert driver.calls.count("settle") == 2
    assert not driver.held_now
    await backend.close()


async def test_a_caller_that_is_cancelled_takes_nobody_elses_settlement_along() -> None:
    backend, driver = await opened()
    gate, (first, second, third) = await settling_behind_a_busy_thread(backend, driver)
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.open()

    assert [await first, await third] == [[DONE], [DONE]]
    await backend.close()


async def test_settlements_whose_callers_are_all_cancelled_never_begin() -> None:
    backend, driver = await opened()
    gate, (first, *others) = await settling_behind_a_busy_thread(backend, driver)
    await asyncio.sleep(0)
    for task in others:
        task.cancel()
    ended = await asyncio.gather(*others, return_exceptions=True)
    gate.open()

    assert [type(error) for error in ended] == [asyncio.CancelledError] * 2
    assert await first == [DONE]
    await idle(backend)
    assert driver.calls.count("settle") == 1
    assert len(driver.held_now) == 2
    await backend.close()


async def test_a_settlement_under_way_counts_before_the_close() -> None:
    backend, driver = await opened()
    consumer = await backend.subscribe("q", prefetch=2, lease=30)
    first, _ = await consumer.receive(2, LONG)
    gate = driver.gates["settle"] = Gate()

    settling = asyncio.create_task(consumer.settle([Ack(first.receipt)], timeout=LONG))
    await gate.begun()
    closing = asyncio.create_task(consumer.close())
    await asyncio.sleep(0)
    gate.open()

    assert await settling == [DONE]
    await closing
    await idle(backend)
    assert driver.calls[-2:] == ["settle", "unsubscribe ['1']"]
    await backend.close()


async def test_a_close_ends_a_waiting_receive_and_what_it_claims_goes_back_unmarked() -> None:
    backend, driver = await opened()
    consumer = await backend.subscribe("q", prefetch=9, lease=30)
    gate = driver.gates["claim"] = Gate()

    task = asyncio.create_task(consumer.receive(9, LONG))
    await gate.begun()
    closing = asyncio.create_task(consumer.close())
    await asyncio.sleep(0)
    gate.open()

    assert await task == []
    await closing
    await idle(backend)
    assert driver.ready == ["0", "1", "2", "3"]
    assert "unsubscribe []" in driver.calls
    with pytest.raises(ConnectionLost, match="closed"):
        await consumer.receive(1, 0)
    await backend.close()


def await_the_thread(backend: Adapted) -> None:
    """Wait until the thread has done all that it has, and let nothing run on the loop meanwhile."""
    done = threading.Event()
    backend._thread._calls.put(done.set)
    assert done.wait(LONG)


@pytest.mark.parametrize("how", ["backend", "subscription", "cancelled"])
async def test_a_claim_whose_answer_comes_beside_the_close_goes_back_unmarked(how: str) -> None:
    backend, driver = await opened()
    consumer = await backend.subscribe("q", prefetch=9, lease=30)

    task = asyncio.create_task(consumer.receive(9, LONG))
    await asyncio.sleep(0)
    await_the_thread(backend)  # it has claimed, and the loop does not know it yet
    assert driver.calls[-1] == "claim"
    if how == "cancelled":
        task.cancel()
    await (consumer if how == "subscription" else backend).close()

    (answer,) = await asyncio.gather(task, return_exceptions=True)
    assert answer == [] or isinstance(answer, asyncio.CancelledError)
    assert driver.ready == ["0", "1", "2", "3"]
    assert driver.calls.count("give_back") == 1
    assert "unsubscribe []" in driver.calls
    await backend.close()


@pytest.mark.parametrize("how", ["late", "cancelled"])
async def test_a_close_beside_a_stuck_call_leaves_the_thread_and_cuts_the_connection(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "cancelled":
        monkeypatch.setattr(blocking, "_CLOSE", LONG)
    backend, driver = await opened()
    gate = driver.gates["publish"] = Gate()
    stuck = asyncio.create_task(
        backend.publish([Outgoing("q", Message(id="m", body=b""))], timeout=LONG)
    )
    await gate.begun()

    closing = asyncio.create_task(backend.close())
    await asyncio.sleep(0)
    if how == "cancelled":
        closing.cancel()
    with suppress(asyncio.CancelledError):
        await closing
    assert driver.calls[-1] == "abort"
    await backend.close()

    # A new generation does not wait for the old thread.
    await backend.open(lambda _: None)
    assert DRIVERS[-1] is not driver
    gate.open()
    await stuck
    await backend.close()
    assert [name for name in driver.calls if name != "abort"] == ["open", "publish", "close"]


async def test_a_loss_wakes_a_waiting_receive_and_is_reported_once_on_the_loop() -> None:
    backend, heard = Adapted("fake://", Options()), list[tuple[Exception, int]]()
    await backend.open(lambda error: heard.append((error, threading.get_ident())))
    driver = DRIVERS[-1]
    driver.ready = []
    consumer = await backend.subscribe("q", prefetch=1, lease=30)

    task = asyncio.create_task(consumer.receive(1, LONG))
    loss = OSError("gone")
    for _ in range(2):
        threading.Thread(target=driver.lost, args=(loss,)).start()
    with pytest.raises(ConnectionLost, match="gone"):
        await task
    await asyncio.sleep(0)
    assert heard == [(loss, threading.get_ident())]

    await backend.close()
    driver.lost(OSError("late"))
    await asyncio.sleep(0)
    assert len(heard) == 1


async def test_an_open_that_fails_raises_the_drivers_own_exception_and_leaves_nothing() -> None:
    FAILS["open"] = PermissionError("no")
    backend = Adapted("fake://", Options())
    with pytest.raises(PermissionError):
        await backend.open(lambda _: None)
    await backend.close()
    await called(DRIVERS[-1], "close")

    with pytest.raises(ConnectionLost, match="closed"):
        await backend.declare([])
    assert backend.classify(PermissionError()) is ErrorKind.DENIED
    assert backend.classify(ConnectionLost("closed")) is ErrorKind.TRANSIENT
    assert backend.classify(QueueNotFound("q")) is ErrorKind.NOT_FOUND


async def test_an_adapter_supports_what_its_driver_does() -> None:
    backend, driver = await opened()
    assert isinstance(backend, Backend)
    assert isinstance(backend, SupportsCount)
    assert isinstance(backend, SupportsTake)
    assert not isinstance(backend, SupportsBrowse)
    assert await backend.count(["q"]) == [["q"]]

    gate = driver.gates["claim"] = Gate()
    task = asyncio.create_task(backend.take("q", ["0", "1"], 30))
    await gate.begun()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.open()
    await idle(backend)
    assert driver.ready == ["0", "1", "2", "3"]
    await backend.close()


async def test_one_poll_serves_all_idle_consumers_and_a_full_one_is_not_asked_for() -> None:
    backend, driver = await opened()
    full = await backend.subscribe("full", prefetch=1, lease=30)
    await full.receive(1, LONG)
    driver.ready = []
    others = [await backend.subscribe(name, prefetch=1, lease=30) for name in ("b", "a", "b")]
    tasks = [asyncio.create_task(it.receive(1, LONG)) for it in (full, *others)]

    await called(driver, "pending ['a', 'b']")

    await backend.close()
    assert await asyncio.gather(*tasks) == [[], [], [], []]
    assert not any("full" in call for call in driver.calls if call.startswith("pending"))


async def test_a_driver_that_is_quiet_is_not_asked_until_it_is_not() -> None:
    backend, driver = await opened()
    driver.ready, driver.is_calm = [], True
    consumer = await backend.subscribe("a", prefetch=1, lease=30)
    task = asyncio.create_task(consumer.receive(1, LONG))

    await called(driver, "is_quiet ['a']", times=3)
    assert not any(call.startswith("pending") for call in driver.calls)
    driver.is_calm = False
    await called(driver, "pending ['a']")

    await backend.close()
    assert await task == []


async def test_a_lease_that_ended_gives_its_room_again_unless_it_was_renewed() -> None:
    backend, driver = await opened()
    consumer = await backend.subscribe("q", prefetch=1, lease=0.0)
    await consumer.receive(1, LONG)
    assert [it.message.id for it in await consumer.receive(1, LONG)] == ["1"]

    driver.held = lambda _consumer, receipts: receipts  # type: ignore[method-assign]  # another has renewed them
    assert await consumer.receive(1, 0.0) == []
    await backend.close()
