"""Cancelling (T7), time limits (T8), expiry (G6), progress (T6), and unique keys (T9)."""

import asyncio
import threading

import pytest

from mqcore import Postpone, RetryPolicy, ValidationError, fixed
from mqcore.tasks import (
    Change,
    DuplicateTask,
    Failure,
    Job,
    ResultTimeout,
    SoftTimeout,
    State,
    TaskCancelled,
    TaskContext,
    TaskExpired,
    TaskFailed,
    Unique,
    WouldDeadlock,
)

from .conftest import Shop, letters

# Cancelling


async def test_a_task_that_is_cancelled_before_its_start_never_starts(shop: Shop) -> None:
    began: list[int] = []

    @shop.tasks.task()
    async def work(number: int) -> None:
        began.append(number)

    async with shop.open():
        job = await work.send(1)
        assert await job.cancel("not needed")
        assert not await job.cancel()
        with pytest.raises(TaskCancelled, match="not needed"):
            await job.result()
    async with shop.serve():
        await shop.clock.advance(1)
    assert began == []


async def test_a_running_async_task_gets_a_cancelled_error(shop: Shop) -> None:
    ended: list[str] = []

    @shop.tasks.task(retry=RetryPolicy(1))
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    async with shop.serve() as worker:
        job = await work.send()
        await shop.clock.settle()
        assert await job.state() is State.RUNNING
        await job.cancel("customer left")
        await shop.clock.settle()
        with pytest.raises(TaskCancelled, match="customer left"):
            await job.result()
        assert await letters(worker.broker) == []
        assert worker.broker.events.counts["message.done"] == 1
    assert ended == ["cancelled"]


async def test_a_cancellation_by_another_process_is_seen_with_the_next_heartbeat(
    shop: Shop,
) -> None:
    @shop.tasks.task()
    async def work() -> None:
        await asyncio.Event().wait()

    async with shop.serve():
        job = await work.send()
        await shop.clock.settle()
        from mqcore.tasks.model.changes import Cancel  # noqa: PLC0415 - as another process does it

        await shop.tasks.connected().store.apply([Cancel(job.id, "from elsewhere")])
        await shop.clock.settle()
        assert await job.state() is State.RUNNING
        await shop.clock.advance(5)
        assert await job.state() is State.CANCELLED


async def test_a_blocking_task_sees_that_it_is_cancelled(shop: Shop) -> None:
    began, go = threading.Event(), threading.Event()

    @shop.tasks.task(retry=RetryPolicy(1))
    def work(ctx: TaskContext) -> None:
        began.set()
        go.wait(60)
        ctx.check()

    async with shop.serve():
        job = await work.send()
        await asyncio.to_thread(began.wait, 60)
        await job.cancel()
        await shop.clock.settle()
        go.set()
        await job_ended(shop, job)
        assert await job.state() is State.CANCELLED


async def job_ended(shop: Shop, job: Job[object]) -> None:
    """Wait in real time for a thread."""
    async with asyncio.timeout(60):
        while (await job.state()) not in {State.CANCELLED, State.SUCCEEDED, State.FAILED}:
            await shop.clock.settle()


async def test_a_waiting_retry_is_cancelled_at_once(shop: Shop) -> None:
    attempts: list[int] = []

    @shop.tasks.task(retry=RetryPolicy(5, fixed(60)))
    async def work(ctx: TaskContext) -> None:
        attempts.append(ctx.attempt)
        raise OSError("no")

    async with shop.serve():
        job = await work.send()
        await shop.clock.advance(1)
        assert await job.state() is State.RETRYING
        await job.cancel()
        assert await job.state() is State.CANCELLED
        await shop.clock.advance(300)
    assert attempts == [1]


# Time limits and expiry


async def test_a_soft_timeout_is_raised_inside_and_may_be_handled(shop: Shop) -> None:
    @shop.tasks.task(soft_timeout=5, timeout=10)
    async def work() -> str:
        try:
            await asyncio.Event().wait()
        except SoftTimeout:
            return "in time"
        return "never"

    async with shop.serve():
        job = await work.send()
        await shop.clock.advance(6)
        assert await job.result() == "in time"


async def test_a_soft_timeout_that_is_not_handled_fails_the_attempt(shop: Shop) -> None:
    @shop.tasks.task(soft_timeout=5, retry=RetryPolicy(1))
    async def work() -> None:
        async with asyncio.timeout(3600):
            await asyncio.Event().wait()

    async with shop.serve():
        job = await work.send()
        await shop.clock.advance(6)
        with pytest.raises(TaskFailed) as caught:
            await job.result()
    assert caught.value.type == "mqcore.tasks.errors.SoftTimeout"


async def test_a_blocking_task_sees_that_its_soft_timeout_is_over(shop: Shop) -> None:
    seen: list[bool] = []
    began, go = threading.Event(), threading.Event()

    @shop.tasks.task(soft_timeout=5)
    def work(ctx: TaskContext) -> None:
        seen.append(ctx.timed_out)
        began.set()
        go.wait(60)
        seen.append(ctx.timed_out)

    async with shop.serve():
        job = await work.send()
        await asyncio.to_thread(began.wait, 60)
        await shop.clock.advance(6)
        go.set()
        await job_ended(shop, job)
    assert seen == [False, True]


async def test_a_hard_timeout_ends_the_task_with_its_reason(shop: Shop) -> None:
    @shop.tasks.task(timeout=5, retry=RetryPolicy(2, fixed(1)))
    async def work() -> None:
        await asyncio.Event().wait()

    async with shop.serve() as worker:
        job = await work.send()
        await shop.clock.advance(20)
        with pytest.raises(TaskFailed) as caught:
            await job.result()
        assert [each.reason for each in await letters(worker.broker)] == ["timeout"]
    assert caught.value.reason == "timeout"


async def test_a_task_that_expires_in_the_queue_is_expired_in_the_table(shop: Shop) -> None:
    @shop.tasks.task()
    async def work() -> None: ...

    async with shop.open():
        job = await work.using(expires=5).send()
        with pytest.raises(ValidationError, match="could never start"):
            await work.using(expires=5, delay=6).send()
        await shop.clock.advance(6)
    async with shop.serve() as worker:
        await shop.clock.advance(6)
        with pytest.raises(TaskExpired):
            await job.result()
        assert [each.reason for each in await letters(worker.broker)] == ["expired"]


async def test_a_delayed_task_waits_and_one_of_high_priority_goes_first(shop: Shop) -> None:
    order: list[str] = []

    @shop.tasks.task()
    async def work(name: str) -> None:
        order.append(name)

    async with shop.open():
        late = await work.using(delay=10).send("late")
        await work.send("low")
        await work.using(priority=9).send("high")
        assert await late.state() is State.SCHEDULED
    async with shop.serve(concurrency=1):
        await shop.clock.advance(9)
        assert order == ["high", "low"]
        await shop.clock.advance(2)
    assert order == ["high", "low", "late"]


async def test_a_postponed_task_is_queued_and_keeps_its_attempt(shop: Shop) -> None:
    attempts: list[int] = []

    @shop.tasks.task(retry=RetryPolicy(1))
    async def work(ctx: TaskContext) -> None:
        attempts.append(ctx.attempt)
        if len(attempts) == 1:
            raise Postpone(30)

    async with shop.serve():
        job = await work.send()
        await shop.clock.advance(1)
        assert await job.state() is State.QUEUED
        await shop.clock.advance(30)
        await job.result()
    assert attempts == [1, 1]


async def test_a_task_that_postpones_itself_beyond_its_max_age_has_failed(shop: Shop) -> None:
    told: list[str] = []

    @shop.tasks.task(retry=RetryPolicy(1, max_age=60))
    async def work() -> None:
        raise Postpone(25)

    @shop.tasks.task()
    async def tell(failure: Failure) -> None:
        told.append(failure.reason)

    async with shop.serve() as worker:
        job = await work.s().on_error(tell.step()).send()
        await shop.clock.advance(45)
        assert await job.state() is State.QUEUED
        await shop.clock.advance(20)
        with pytest.raises(TaskFailed, match="postponed beyond max_age") as caught:
            await job.result()
        assert caught.value.reason == "retries_exhausted"
        assert [letter.reason for letter in await letters(worker.broker)] == ["retries_exhausted"]
        await shop.clock.advance(5)
    assert told == ["retries_exhausted: it was postponed beyond max_age of its retry policy"]


# Progress


async def test_progress_is_ordered_at_most_four_a_second_and_never_after_the_end(
    shop: Shop,
) -> None:
    @shop.tasks.task()
    async def work(ctx: TaskContext) -> None:
        for number in range(20):
            ctx.progress(number, 20, f"step {number}")
            await shop.clock.sleep(0.05)
        ctx.progress(20, 20, "done")

    seen: list[Change] = []

    async def watch(job: Job[None]) -> None:
        seen.extend([change async for change in job.changes()])

    async with shop.serve():
        job = await work.send()
        watching = asyncio.create_task(watch(job))
        await shop.clock.advance(3)
        await watching
    reports = [change.done for change in seen if change.done is not None]
    assert reports == sorted(reports)
    assert len(set(reports)) <= 6  # one second of work, and the last report
    assert seen[-1] == Change(State.SUCCEEDED, 1, 20, 20, "done")


async def test_the_result_of_a_task_that_never_ends_is_waited_for_in_bounds(shop: Shop) -> None:
    @shop.tasks.task()
    async def work() -> None: ...

    async with shop.open():
        job = await work.send()
        waiting = asyncio.create_task(job.result(timeout=5))
        await shop.clock.advance(6)
        with pytest.raises(ResultTimeout, match="has not ended within 5 s"):
            await waiting


async def test_a_wait_without_a_worker_on_a_broker_in_this_process_says_what_is_missing(
    shop: Shop,
) -> None:
    @shop.tasks.task()
    async def add(x: int, y: int) -> int:
        return x + y

    async with shop.open():
        job = await add.send(2, 3)
        with pytest.raises(ResultTimeout, match="there is no worker in this process"):
            await job.result(timeout=0)


async def test_waiting_for_a_task_of_the_same_queue_is_refused(shop: Shop) -> None:
    @shop.tasks.task()
    async def inner() -> int:
        return 1

    @shop.tasks.task(queue="other")
    async def elsewhere() -> int:
        return 2

    @shop.tasks.task(retry=RetryPolicy(1))
    async def outer() -> int:
        other = await (await elsewhere.send()).result()
        with pytest.raises(WouldDeadlock, match="may need the same queue"):
            await (await inner.using(delay=3600).send()).result()
        return other + await (await inner.send()).result(allow_wait=True)

    async with shop.serve():
        assert await (await outer.send()).result() == 3


async def test_a_wait_that_could_block_its_own_queue_is_not_tried_again(shop: Shop) -> None:
    starts = 0

    @shop.tasks.task()
    async def inner() -> int:
        return 1

    @shop.tasks.task(retry=RetryPolicy(5, backoff=fixed(0)))
    async def outer() -> int:
        nonlocal starts
        starts += 1
        return await (await inner.using(delay=3600).send()).result()

    async with shop.serve():
        job = await outer.send()
        with pytest.raises(
            TaskFailed, match=r"rejected: .*WouldDeadlock.* may need the same queue"
        ):
            await job.result()
    assert starts == 1


# Unique keys


async def test_a_second_send_with_the_same_key_returns_the_open_job(shop: Shop) -> None:
    @shop.tasks.task(unique=Unique(by=("user",)))
    async def report(user: int, text: str) -> str:
        return f"{user} {text}"

    async with shop.open():
        first = await report.send(1, "a")
        assert (await report.send(1, "b")).id == first.id
        assert (await report.send(2, "b")).id != first.id
    async with shop.serve():
        await shop.clock.advance(1)
        assert await first.result() == "1 a"
        third = await report.send(1, "c")
        assert third.id != first.id


async def test_a_second_send_can_be_refused(shop: Shop) -> None:
    @shop.tasks.task(unique=Unique(policy="reject"))
    async def report(user: int) -> None: ...

    async with shop.open():
        first = await report.send(1)
        with pytest.raises(DuplicateTask) as caught:
            await report.send(1)
    assert caught.value.holder == first.id


async def test_a_second_send_can_replace_what_waits_and_what_runs(shop: Shop) -> None:
    began: list[str] = []

    @shop.tasks.task(unique=Unique(by=("user",), policy="replace"))
    async def report(user: int, text: str) -> str:
        began.append(f"{text} {user}")
        if text == "long":
            await asyncio.Event().wait()
        return text

    async with shop.open():
        first = await report.send(1, "first")
        second = await report.send(1, "long")
        assert await first.state() is State.CANCELLED
    async with shop.serve():
        await shop.clock.settle()
        assert await second.state() is State.RUNNING
        third = await report.send(1, "last")
        assert await third.result() == "last"
        assert await second.state() is State.CANCELLED
    assert began == ["long 1", "last 1"]


async def test_a_task_that_replaces_another_keeps_the_calls_that_follow_it(shop: Shop) -> None:
    told: list[tuple[str, int | State]] = []

    @shop.tasks.task(unique=Unique(by=("user",), policy="replace"))
    async def report(user: int, number: int) -> int:
        if number == 1:
            await asyncio.Event().wait()
        return number

    @shop.tasks.task()
    async def note(outcome: int | Failure, which: str) -> None:
        told.append((which, outcome if isinstance(outcome, int) else outcome.state))

    async with shop.serve():
        await report.s(7, 1).on_done(note.step(which="first")).send()
        await shop.clock.settle()
        second = await report.s(7, 2).on_done(note.step(which="second")).send()
        assert await second.result() == 2
        await shop.clock.advance(5)
    assert told == [("first", State.CANCELLED), ("second", 2)]
