"""The clock that an application's tests move by hand."""

import asyncio
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import pytest

from mqcore.clock import Clock
from mqcore.testing import VirtualClock, memory_url


async def tick(clock: VirtualClock, every: float, seen: list[float]) -> None:
    while True:
        await clock.sleep(every)
        seen.append(clock.monotonic())


async def in_thread(clock: VirtualClock, call: Callable[[], object]) -> None:
    with clock.busy():
        await asyncio.get_running_loop().run_in_executor(None, call)


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


async def test_it_is_a_clock_that_is_not_real(clock: VirtualClock) -> None:
    as_clock: Clock = clock
    assert as_clock.real is False


async def test_both_times_stand_still_until_they_are_moved_and_then_move_together() -> None:
    clock = VirtualClock(epoch=1_000.0)
    assert (clock.now(), clock.monotonic()) == (1_000.0, 0.0)
    await clock.advance(2.5)
    assert (clock.now(), clock.monotonic()) == (1_002.5, 2.5)
    await clock.advance(timedelta(minutes=1))
    assert (clock.now(), clock.monotonic()) == (1_062.5, 62.5)


async def test_a_sleep_ends_at_its_time_and_not_before(clock: VirtualClock) -> None:
    sleeper = asyncio.create_task(clock.sleep(10))
    await clock.advance(9.99)
    assert not sleeper.done()
    await clock.advance(0.01)
    assert sleeper.done()


async def test_timers_fire_in_order_and_the_clock_shows_the_time_of_each(
    clock: VirtualClock,
) -> None:
    seen: list[tuple[str, float]] = []

    async def note(name: str, delay: float) -> None:
        await clock.sleep(delay)
        seen.append((name, clock.monotonic()))

    async with asyncio.TaskGroup() as group:
        for name, delay in (("c", 3.0), ("a", 1.0), ("b1", 2.0), ("b2", 2.0)):
            group.create_task(note(name, delay))
        await clock.advance(5)
    assert seen == [("a", 1.0), ("b1", 2.0), ("b2", 2.0), ("c", 3.0)]
    assert clock.monotonic() == 5.0


async def test_timers_that_are_started_on_the_way_fire_on_the_way(clock: VirtualClock) -> None:
    seen: list[float] = []
    ticking = asyncio.create_task(tick(clock, 10, seen))
    await clock.advance(35)
    assert seen == [10, 20, 30]
    ticking.cancel()


async def test_tenths_add_up(clock: VirtualClock) -> None:
    seen: list[float] = []
    ticking = asyncio.create_task(tick(clock, 0.1, seen))
    await clock.advance(0.3)
    assert len(seen) == 3
    ticking.cancel()


async def test_a_deadline_kept_in_wall_clock_time_is_met(clock: VirtualClock) -> None:
    await clock.advance(0.1)
    due = clock.now() + 0.7

    async def wait() -> None:
        while (left := due - clock.now()) > 0:
            await clock.sleep(left)

    waiting = asyncio.create_task(wait())
    await clock.advance(0.7)
    assert waiting.done()


@pytest.mark.parametrize("delay", [0, -1])
async def test_a_sleep_of_nothing_lets_others_run_once(clock: VirtualClock, delay: float) -> None:
    seen: list[str] = []
    asyncio.get_running_loop().call_soon(seen.append, "other")
    await clock.sleep(delay)
    assert seen == ["other"]


async def test_advance_returns_when_long_chains_have_run(clock: VirtualClock) -> None:
    async def chain(length: int) -> int:
        return 0 if length == 0 else 1 + await asyncio.create_task(chain(length - 1))

    async def later() -> int:
        await clock.sleep(1)
        return await chain(300)

    task = asyncio.create_task(later())
    await clock.advance(1)
    assert task.result() == 300


async def test_a_loop_that_shows_nothing_gets_a_number_of_passes(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Opaque:
        create_future = staticmethod(asyncio.get_running_loop().create_future)
        time = staticmethod(asyncio.get_running_loop().time)

    opaque = Opaque()
    monkeypatch.setattr(clock, "_loop", lambda: opaque)
    steps: list[float] = []

    async def later() -> None:
        await clock.sleep(1)
        for _ in range(20):
            await asyncio.sleep(0)
            steps.append(clock.monotonic())

    task = asyncio.create_task(later())
    await clock.advance(1)
    assert steps == [1.0] * 20
    await task


async def test_a_task_that_spins_is_named_and_not_waited_for_endlessly(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqcore.testing._MOST_PASSES", 500)

    async def spin() -> None:
        for _ in iter(int, 1):
            await asyncio.sleep(0)

    spinning = asyncio.create_task(spin())
    with pytest.raises(
        RuntimeError, match=r"after 500 passes at virtual time 0: a task polls with sleep\(0\)"
    ):
        await clock.advance(1)
    spinning.cancel()


@pytest.mark.parametrize("delay", [1e-12, 1e-9])
async def test_timers_for_no_time_that_start_anew_for_ever_are_noticed(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch, delay: float
) -> None:
    monkeypatch.setattr("mqcore.testing._MOST_ROUNDS", 500)

    async def early() -> None:
        await clock.sleep(2)
        while True:
            with suppress(TimeoutError):
                async with clock.timeout(delay):
                    await asyncio.Event().wait()

    waiting = asyncio.create_task(early())
    with pytest.raises(
        RuntimeError,
        match="virtual time stands still at 2: 500 timers were started one after the other",
    ):
        await clock.advance(5)
    waiting.cancel()
    await clock.advance(5)
    assert clock.monotonic() == pytest.approx(7)


async def test_many_timers_of_one_moment_are_no_standstill(
    clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqcore.testing._MOST_ROUNDS", 10)
    rang: list[float] = []

    async def ring_twice() -> None:
        for _ in "ab":
            await clock.sleep(1)
            rang.append(clock.monotonic())

    tasks = [asyncio.create_task(ring_twice()) for _ in range(100)]
    await clock.advance(2)
    assert rang == [1.0] * 100 + [2.0] * 100
    await asyncio.gather(*tasks)


async def test_two_tasks_cannot_advance_at_once(clock: VirtualClock) -> None:
    async def advance_later() -> None:
        await clock.sleep(1)
        await clock.advance(1)

    second = asyncio.create_task(advance_later())
    await clock.advance(5)
    with pytest.raises(RuntimeError, match="already being advanced by another task"):
        await second
    await clock.advance(1)
    assert clock.monotonic() == 6.0


async def test_time_is_never_moved_back(clock: VirtualClock) -> None:
    with pytest.raises(ValueError, match="cannot go back"):
        await clock.advance(-1)


async def test_settle_runs_what_is_runnable_and_moves_nothing(clock: VirtualClock) -> None:
    sleeper = asyncio.create_task(clock.sleep(1))
    done = asyncio.create_task(asyncio.sleep(0, "ran"))
    await clock.settle()
    assert done.result() == "ran"
    assert not sleeper.done()
    assert clock.monotonic() == 0.0
    sleeper.cancel()


async def test_several_tasks_may_settle_at_once(clock: VirtualClock) -> None:
    seen: list[int] = []

    async def work() -> None:
        for step in range(30):
            await asyncio.sleep(0)
            seen.append(step)

    task = asyncio.create_task(work())
    await asyncio.gather(clock.settle(), clock.settle(), clock.advance(1))
    assert task.done()
    assert len(seen) == 30


async def test_another_loop_is_refused_while_the_first_is_in_use(clock: VirtualClock) -> None:
    await clock.settle()
    with pytest.raises(RuntimeError, match="in use by another event loop"):
        await asyncio.to_thread(asyncio.run, clock.advance(1))


def test_a_clock_may_move_on_to_the_next_loop(clock: VirtualClock) -> None:
    asyncio.run(clock.advance(1))
    asyncio.run(clock.advance(1))
    assert clock.monotonic() == 2.0


# timeout: as asyncio.timeout, only that this clock's time counts


async def test_a_timeout_ends_its_block_at_its_time(clock: VirtualClock) -> None:
    async def limited() -> float:
        with pytest.raises(TimeoutError) as caught:
            async with clock.timeout(5):
                await clock.sleep(60)
        # As from asyncio.timeout: before Python 3.11.3 it is the context only.
        began = caught.value.__cause__ or caught.value.__context__
        assert isinstance(began, asyncio.CancelledError)
        return clock.monotonic()

    task = asyncio.create_task(limited())
    await clock.advance(4.9)
    assert not task.done()
    await clock.advance(0.2)
    assert task.result() == 5.0
    assert task.cancelling() == 0


@pytest.mark.parametrize("delay", [5, None])
async def test_a_block_that_ends_in_time_is_left_alone(
    clock: VirtualClock, delay: float | None
) -> None:
    async def limited() -> str:
        async with clock.timeout(delay):
            await clock.sleep(4)
        await clock.sleep(60)
        return "done"

    task = asyncio.create_task(limited())
    await clock.advance(64)
    assert task.result() == "done"


@pytest.mark.parametrize("delay", [0, -1])
async def test_a_timeout_of_nothing_ends_the_first_wait(clock: VirtualClock, delay: float) -> None:
    with pytest.raises(TimeoutError):
        async with clock.timeout(delay):
            await clock.sleep(1)


@pytest.mark.parametrize(("outer", "inner", "ended"), [(5, 9, "outer"), (9, 5, "inner")])
async def test_of_nested_timeouts_the_one_that_is_due_raises(
    clock: VirtualClock, outer: float, inner: float, ended: str
) -> None:
    async def nested() -> str:
        try:
            async with clock.timeout(outer):
                try:
                    async with clock.timeout(inner):
                        await clock.sleep(60)
                except TimeoutError:
                    return "inner"
        except TimeoutError:
            return "outer"
        return "none"

    task = asyncio.create_task(nested())
    await clock.advance(10)
    assert task.result() == ended


async def test_nested_timeouts_of_one_moment_end_the_outer_block(clock: VirtualClock) -> None:
    seen: list[str] = []

    async def nested() -> None:
        try:
            async with clock.timeout(5):
                try:
                    async with clock.timeout(5):
                        await clock.sleep(60)
                finally:
                    await clock.sleep(1)
                    seen.append("cleaned up")
        except TimeoutError:
            seen.append("timed out")

    task = asyncio.create_task(nested())
    await clock.advance(10)
    assert seen[-1] == "timed out"
    assert task.done()


async def test_cancellation_from_outside_stays_a_cancellation(clock: VirtualClock) -> None:
    async def limited() -> None:
        async with clock.timeout(5):
            await clock.sleep(60)

    task = asyncio.create_task(limited())
    await clock.advance(1)
    task.cancel()
    await clock.advance(10)
    assert task.cancelled()


async def test_cancellation_from_outside_at_the_moment_of_the_timeout_is_not_swallowed(
    clock: VirtualClock,
) -> None:
    async def limited() -> None:
        async with clock.timeout(5):
            await clock.sleep(60)

    async def cancel_at_five() -> None:
        await clock.sleep(5)
        task.cancel()

    canceller = asyncio.create_task(cancel_at_five())
    await clock.settle()
    task = asyncio.create_task(limited())
    await clock.advance(10)
    assert canceller.done()
    assert task.cancelled()


async def test_an_error_in_the_block_passes_unchanged(clock: VirtualClock) -> None:
    with pytest.raises(StopAsyncIteration):
        async with clock.timeout(5):
            raise StopAsyncIteration
    await clock.advance(10)


# work outside the loop


async def test_what_a_thread_brings_back_is_noticed(clock: VirtualClock) -> None:
    loop = asyncio.get_running_loop()
    came: asyncio.Future[float] = loop.create_future()

    def work() -> None:
        sum(range(500_000))
        loop.call_soon_threadsafe(came.set_result, clock.monotonic())

    async def later() -> None:
        await clock.sleep(1)
        await in_thread(clock, work)
        await clock.sleep(1)

    task = asyncio.create_task(later())
    await clock.advance(10)
    assert came.result() == 1.0
    assert task.done()


async def test_a_stuck_thread_is_waited_for_once_and_does_not_stop_the_clock() -> None:
    clock = VirtualClock(patience=0.05)
    freed = threading.Event()
    seen: list[float] = []
    stuck = asyncio.create_task(in_thread(clock, freed.wait))
    ticking = asyncio.create_task(tick(clock, 1, seen))
    began = time.monotonic()
    await clock.advance(500)
    await clock.advance(500)
    took = time.monotonic() - began
    assert len(seen) == 1000
    assert not stuck.done()
    assert 0.05 <= took < 25  # a thousand waits would take 50 s
    freed.set()
    await stuck
    ticking.cancel()


async def test_what_follows_on_a_thread_has_run_too(clock: VirtualClock) -> None:
    go = threading.Event()
    asyncio.get_running_loop().call_later(
        0.01, go.set
    )  # when nothing has been runnable for a while

    async def work() -> str:
        await in_thread(clock, go.wait)
        for _ in range(20):
            await asyncio.sleep(0)
        return "done"

    task = asyncio.create_task(work())
    await clock.settle()
    assert task.done()


async def test_beside_a_stuck_thread_others_are_still_waited_for() -> None:
    clock = VirtualClock(patience=0.05)
    freed = threading.Event()
    stuck = asyncio.create_task(in_thread(clock, freed.wait))
    await clock.settle()
    for _ in range(5):
        barrier = threading.Barrier(2)
        threading.Thread(target=barrier.wait, daemon=True).start()
        quick = asyncio.create_task(in_thread(clock, barrier.wait))
        await clock.settle()
        assert quick.done()
    freed.set()
    await stuck


async def test_when_one_is_given_up_the_wait_for_a_younger_one_goes_on() -> None:
    clock = VirtualClock(patience=0.05)
    with clock.busy():
        (old,) = clock._work
        old.began -= 1000
        barrier = threading.Barrier(2)
        threading.Thread(target=barrier.wait, daemon=True).start()
        quick = asyncio.create_task(in_thread(clock, barrier.wait))
        await clock.settle()
        assert quick.done()


async def test_patience_counts_from_the_start_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = VirtualClock(patience=1000)
    real = time.monotonic
    with clock.busy():
        monkeypatch.setattr("mqcore.testing.time.monotonic", lambda: real() + 2000)
        async with asyncio.timeout(5):
            await clock.advance(1)
    assert clock.monotonic() == 1.0


async def test_settle_waits_for_threads_too(clock: VirtualClock) -> None:
    barrier = threading.Barrier(2)
    threading.Thread(target=barrier.wait, daemon=True).start()
    task = asyncio.create_task(in_thread(clock, barrier.wait))
    await clock.settle()
    assert task.done()


# speed


async def test_a_day_of_ticks_passes_in_well_under_a_second(clock: VirtualClock) -> None:
    seen: list[float] = []
    ticking = asyncio.create_task(tick(clock, 10, seen))
    began = time.process_time()
    await clock.advance(timedelta(days=1))
    assert time.process_time() - began < 2  # measured: 0.16 s; the rest is for a slow machine
    assert len(seen) == 8640
    ticking.cancel()


async def test_an_empty_day_passes_at_once(clock: VirtualClock) -> None:
    best = 1.0
    for _ in range(20):
        began = time.perf_counter()
        await clock.advance(timedelta(days=1))
        best = min(best, time.perf_counter() - began)
    assert best < 0.1


async def test_timers_that_never_fire_do_not_pile_up(clock: VirtualClock) -> None:
    for _ in range(1000):
        async with clock.timeout(3600):
            pass
    assert len(clock._timers) < 200
    sleeper = asyncio.create_task(clock.sleep(5))
    await clock.advance(5)
    assert sleeper.done()


def test_each_memory_url_is_fresh_and_may_be_named() -> None:
    assert memory_url() != memory_url()
    assert memory_url("orders").startswith("memory://orders-")


async def test_advance_until_stops_at_the_timer_that_brings_it() -> None:
    clock = VirtualClock()
    reached: list[float] = []

    async def wait() -> None:
        for delay in (10, 20, 30):
            await clock.sleep(delay)
            reached.append(clock.monotonic())

    waiting = asyncio.create_task(wait())
    assert await clock.advance_until(lambda: len(reached) == 2, within=100)
    assert (reached, clock.monotonic()) == ([10, 30], 30)
    assert await clock.advance_until(lambda: True)
    assert not await clock.advance_until(lambda: len(reached) == 4, within=timedelta(seconds=70))
    assert (reached, clock.monotonic()) == ([10, 30, 60], 100)
    await waiting
