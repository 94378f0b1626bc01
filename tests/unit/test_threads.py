"""Threads for blocking handlers: results come back, a stuck thread costs its slot only."""

import asyncio
import contextlib
import contextvars
import functools
import gc
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mqcore.running.threads import ThreadPool


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    pool = ThreadPool(2, "handlers")
    yield pool
    pool.close()


def raiser(error: BaseException) -> Callable[[], None]:
    def call() -> None:
        raise error

    return call


async def started(pool: ThreadPool, call: Callable[[], object]) -> asyncio.Task[object]:
    """Return a task whose call has begun in its thread."""
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()

    def report() -> object:
        loop.call_soon_threadsafe(begun.set)
        return call()

    task = asyncio.create_task(pool.run(report))
    await begun.wait()
    return task


async def test_a_call_runs_in_a_named_daemon_thread(pool: ThreadPool) -> None:
    def where() -> tuple[str, bool]:
        thread = threading.current_thread()
        return thread.name, thread.daemon

    assert await pool.run(where) == ("handlers-1", True)


async def test_a_thread_is_used_again(pool: ThreadPool) -> None:
    names = {await pool.run(lambda: threading.current_thread().name) for _ in range(10)}
    assert names == {"handlers-1"}


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        SystemExit(3),
        KeyboardInterrupt(),
        GeneratorExit(),
        StopAsyncIteration(),
        TimeoutError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_any_exception_is_raised_where_the_call_is_awaited(
    pool: ThreadPool, error: BaseException
) -> None:
    with pytest.raises(type(error)) as caught:
        await pool.run(raiser(error))
    assert caught.value is error
    assert pool.free == 2


@pytest.mark.parametrize(
    "error", [StopIteration(7), asyncio.CancelledError("by me")], ids=lambda e: type(e).__name__
)
async def test_what_a_coroutine_cannot_raise_comes_as_a_cause(
    pool: ThreadPool, error: BaseException
) -> None:
    with pytest.raises(
        RuntimeError, match=f"the call raised {type(error).__name__}: {error}"
    ) as caught:
        await pool.run(raiser(error))
    assert caught.value.__cause__ is error


async def test_context_variables_are_copied_into_the_thread(pool: ThreadPool) -> None:
    name: contextvars.ContextVar[str] = contextvars.ContextVar("name")
    name.set("outside")

    def change() -> str:
        before = name.get()
        name.set("inside")
        return before

    assert await pool.run(change) == "outside"
    assert name.get() == "outside"


async def test_a_call_waits_for_a_free_slot(pool: ThreadPool) -> None:
    go = threading.Event()
    running = [await started(pool, go.wait) for _ in range(2)]
    assert pool.free == 0
    third = asyncio.create_task(pool.run(lambda: "third"))
    await asyncio.sleep(0)
    assert not third.done()
    go.set()
    assert await third == "third"
    await asyncio.gather(*running)
    assert pool.free == 2


async def test_many_callers_share_the_slots(pool: ThreadPool) -> None:
    lock, now, most = threading.Lock(), 0, 0

    def work() -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        with lock:
            now -= 1

    await asyncio.gather(*(pool.run(work) for _ in range(200)))
    assert most <= 2
    assert pool.free == 2


async def test_calls_that_block_run_side_by_side() -> None:
    pool, all_of_them = ThreadPool(8, "beside"), threading.Barrier(8)
    try:
        for _ in range(3):  # in new threads, then in threads that sleep
            await asyncio.gather(*(pool.run(lambda: all_of_them.wait(10)) for _ in range(8)))
    finally:
        pool.close()


async def test_a_call_does_not_wait_for_one_that_was_handed_over_with_it(pool: ThreadPool) -> None:
    go = threading.Event()
    await asyncio.gather(*(pool.run(lambda: None) for _ in range(2)))
    slow, quick = (asyncio.create_task(pool.run(call)) for call in (go.wait, lambda: "quick"))
    assert await quick == "quick"
    assert not slow.done()
    go.set()
    await slow


async def test_calls_that_ended_while_the_loop_was_busy_are_reported_together() -> None:
    freed = 0

    def count() -> None:
        nonlocal freed
        freed += 1

    pool, ended = ThreadPool(4, "together", count), threading.Semaphore(0)

    class Ended(deque[Any]):
        def append(self, job: object) -> None:
            super().append(job)
            ended.release()

    pool._ended = Ended()
    tasks = [asyncio.create_task(pool.run(lambda: None)) for _ in range(4)]
    await asyncio.sleep(0)  # they are handed over
    for _ in tasks:
        assert ended.acquire(timeout=10)  # the loop does not turn meanwhile
    await asyncio.gather(*tasks)
    assert freed == 1
    pool.close()


async def test_wait_free_returns_when_a_slot_is_free(pool: ThreadPool) -> None:
    await pool.wait_free()
    go = threading.Event()
    running = [await started(pool, go.wait) for _ in range(2)]
    waiting = asyncio.create_task(pool.wait_free())
    await asyncio.sleep(0)
    assert not waiting.done()
    go.set()
    await waiting
    assert pool.free
    await asyncio.gather(*running)


async def test_a_thread_whose_caller_is_gone_keeps_its_slot_until_it_ends(pool: ThreadPool) -> None:
    go = threading.Event()
    task = await started(pool, go.wait)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await task
    assert (pool.free, pool.stuck) == (1, 1)
    assert await pool.run(lambda: "the other slot works") == "the other slot works"
    second = await started(pool, go.wait)
    freed = asyncio.create_task(pool.wait_free())
    await asyncio.sleep(0)
    assert not freed.done()
    go.set()
    await freed
    await second
    both = threading.Barrier(2)
    await asyncio.gather(pool.run(both.wait), pool.run(both.wait))
    assert (pool.free, pool.stuck) == (2, 0)


@pytest.mark.parametrize(
    "late", [lambda: "late", raiser(ValueError("late"))], ids=["result", "error"]
)
async def test_a_late_outcome_is_dropped_silently(
    late: Callable[[], object], caplog: pytest.LogCaptureFixture
) -> None:
    pool = ThreadPool(1, "late")
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    go = threading.Event()
    task = await started(pool, lambda: (go.wait(), late()))
    task.cancel()
    await asyncio.wait({task})
    go.set()
    await pool.wait_free()
    pool.close()
    gc.collect()
    assert task.cancelled()
    assert pool.stuck == 0
    assert not complaints
    assert not caplog.records


async def test_a_caller_cancelled_while_it_waits_starts_nothing(pool: ThreadPool) -> None:
    go, ran = threading.Event(), threading.Event()
    running = [await started(pool, go.wait) for _ in range(2)]
    third = asyncio.create_task(pool.run(ran.set))
    await asyncio.sleep(0)
    third.cancel()
    await asyncio.wait({third})
    go.set()
    await asyncio.gather(*running)
    assert await pool.run(lambda: "after") == "after"
    assert not ran.is_set()
    assert pool.stuck == 0


async def test_a_cancellation_that_meets_the_result_leaves_nothing_stuck(pool: ThreadPool) -> None:
    task = asyncio.create_task(pool.run(lambda: 1))
    end = pool._end

    def end_and_cancel(job: object) -> None:
        end(job)  # type: ignore[arg-type]  # the job is passed through
        task.cancel()

    pool._end = end_and_cancel  # type: ignore[method-assign]  # to hit the moment between the two
    await asyncio.wait({task})
    assert task.cancelled()
    assert (pool.free, pool.stuck) == (2, 0)


async def test_nothing_of_a_call_is_kept_when_it_is_over(pool: ThreadPool) -> None:
    class Body:
        pass

    def fail(body: Body) -> None:
        raise ValueError(body)

    async def one(call: Callable[[Body], object]) -> asyncio.Event:
        body, freed, loop = Body(), asyncio.Event(), asyncio.get_running_loop()
        weakref.finalize(body, loop.call_soon_threadsafe, freed.set)
        with contextlib.suppress(ValueError):
            await pool.run(functools.partial(call, body))
        return freed

    gc.disable()
    try:
        for call in (fail, id):
            freed = await one(call)
            async with asyncio.timeout(10):
                await freed.wait()
    finally:
        gc.enable()


async def test_threads_end_when_the_pool_is_closed() -> None:
    pool = ThreadPool(2, "closing")
    go = threading.Event()
    threads: list[threading.Thread] = []
    running = [
        await started(pool, lambda: (threads.append(threading.current_thread()), go.wait()))
        for _ in range(2)
    ]
    pool.close()
    pool.close()
    go.set()
    await asyncio.gather(*running)
    for thread in threads:
        await asyncio.to_thread(thread.join, 10)
    assert [thread.is_alive() for thread in threads] == [False, False]
    with pytest.raises(RuntimeError, match="'closing' is closed"):
        await pool.run(lambda: None)


def test_a_thread_that_outlives_its_loop_ends_quietly() -> None:
    go = threading.Event()

    async def leave() -> threading.Thread:
        pool = ThreadPool(1, "orphan")
        task = await started(pool, go.wait)
        task.cancel()
        pool.close()
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "orphan-1"]
        return thread

    thread = asyncio.run(leave())
    go.set()
    thread.join(10)
    assert not thread.is_alive()


async def test_a_call_for_which_no_thread_could_be_started_does_not_run_later() -> None:
    pool, ran = ThreadPool(1, "refused"), threading.Event()
    before = threading.stack_size(1 << 60)  # more than any machine has
    try:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await pool.run(ran.set)
    finally:
        threading.stack_size(before)

    assert (pool.free, pool.stuck) == (1, 0)
    async with asyncio.timeout(10):
        assert await pool.run(lambda: "after") == "after"
    assert not ran.is_set()
    assert (pool.free, pool.stuck) == (1, 0)
    pool.close()


async def test_a_call_whose_caller_has_gone_before_it_began_does_not_begin() -> None:
    """Its message was released, and another worker may run it already (G13)."""
    pool, may_take, ran = ThreadPool(1, "gone"), threading.Event(), threading.Event()

    class Waiting(deque[Any]):
        def popleft(self) -> object:
            may_take.wait()
            return super().popleft()

    pool._waiting = Waiting()
    task = asyncio.create_task(pool.run(ran.set))
    await asyncio.sleep(0)  # it is handed over
    task.cancel()
    await asyncio.wait({task})
    assert (pool.free, pool.stuck) == (0, 1)
    may_take.set()

    async with asyncio.timeout(10):
        await pool.wait_free()
    assert not ran.is_set()
    assert (pool.free, pool.stuck) == (1, 0)
    pool.close()
