"""`on_error` and `on_done`: calls that are sent when a task or a workflow fails, or ends."""

import pytest

from mqcore import App, ConfigurationError, Reject, RetryPolicy, UnsupportedFeature
from mqcore.tasks import Failure, State, TaskFailed, Tasks, group
from mqcore.testing import memory_url

from .conftest import Shop

ONCE = RetryPolicy(1)


class Told:
    """What the calls have got."""

    def __init__(self, shop: Shop) -> None:
        self.errors: list[Failure] = []
        self.outcomes: list[int | Failure] = []
        self.plain: list[str] = []

        @shop.tasks.task()
        async def failed(failure: Failure, customer: str = "") -> None:
            self.errors.append(failure)

        @shop.tasks.task()
        def ended(outcome: int | Failure) -> None:
            self.outcomes.append(outcome)

        @shop.tasks.task()
        async def plain(text: str) -> None:
            self.plain.append(text)

        @shop.tasks.task(retry=ONCE)
        async def half(number: int) -> int:
            if number % 2:
                raise ValueError("odd")
            return number // 2

        self.failed, self.ended, self.note, self.half = failed, ended, plain, half


@pytest.fixture
def told(shop: Shop) -> Told:
    return Told(shop)


async def test_a_failure_is_told_with_its_reason_and_the_result_is_as_before(
    shop: Shop, told: Told
) -> None:
    call = told.half.s(3).on_error(told.failed.step(customer="anna")).on_done(told.ended.step())
    async with shop.serve():
        job = await call.send()
        with pytest.raises(TaskFailed, match="odd"):
            await job.result()
        await shop.clock.advance(1)
    expected = Failure(job.id, State.FAILED, "retries_exhausted: ValueError: odd")
    assert (told.errors, told.outcomes) == ([expected], [expected])


async def test_a_success_is_told_with_its_result(shop: Shop, told: Told) -> None:
    call = told.half.s(8).on_error(told.failed.step()).on_done(told.ended.step())
    async with shop.serve():
        assert await (await call.send()).result() == 4
        await shop.clock.advance(1)
    assert (told.errors, told.outcomes) == ([], [4])


async def test_a_call_that_takes_nothing_and_further_ones_run_too(shop: Shop, told: Told) -> None:
    call = told.half.s(3).on_error(told.note.s("first")).on_error(told.failed.step())
    call = call.on_error(told.note.s("second") | told.note.s("third"))
    async with shop.serve():
        await call.send()
        await shop.clock.advance(1)
    assert sorted(told.plain) == ["first", "second", "third"]
    assert len(told.errors) == 1


async def test_workflows_steps_and_members_have_them(shop: Shop, told: Told) -> None:
    steps = told.half.s(12) | told.half.step().on_done(told.ended.step()) | told.half.step()
    chain = steps.on_error(told.failed.step())
    members = group(told.half.s(2), told.half.s(5), policy="collect").on_done(told.note.s("all"))
    async with shop.serve():
        jobs = [await chain.send(), await members.send()]
        await shop.clock.advance(1)
        assert [await job.state() for job in jobs] == [State.FAILED, State.SUCCEEDED]
    assert (told.outcomes, told.plain) == ([3], ["all"])
    (error,) = told.errors
    assert (error.node, error.reason) == (jobs[0].id, "retries_exhausted: ValueError: odd")


async def test_a_cancelled_workflow_tells_its_end(shop: Shop, told: Told) -> None:
    call = (told.half.s(8) | told.half.step()).on_error(told.failed.step())
    call = call.on_done(told.ended.step())
    async with shop.open():
        job = await call.send()
        await job.cancel("not needed")
    async with shop.serve():
        await shop.clock.advance(1)
    assert told.errors == []
    assert told.outcomes == [Failure(job.id, State.CANCELLED, "not needed")]


async def test_a_redriven_task_tells_no_second_end(shop: Shop, told: Told) -> None:
    runs: list[int] = []

    @shop.tasks.task()
    async def work() -> int:
        runs.append(1)
        if len(runs) == 1:
            raise Reject("no")
        return 7

    async with shop.serve() as worker:
        job = await work.s().on_done(told.ended.step()).send()
        await shop.clock.advance(1)
        assert await worker.broker.dead_letters("default").redrive()
        await shop.clock.advance(1)
        assert await job.result() == 7
    assert [type(each) for each in told.outcomes] == [Failure]


async def test_a_call_that_fails_is_a_task_that_fails(shop: Shop, told: Told) -> None:
    @shop.tasks.task(retry=ONCE)
    async def report(outcome: int | Failure) -> None:
        raise ValueError("cannot report")

    async with shop.serve():
        job = await told.half.s(8).on_done(report.step()).send()
        await shop.clock.advance(1)
        assert await job.result() == 4
        assert await shop.tasks.job(f"{job.id}.-2").state() is State.FAILED


async def test_a_group_of_many_has_them(shop: Shop, told: Told) -> None:
    call = group(told.half.s(2) for _ in range(2_500)).on_done(told.note.s("many"))
    async with shop.serve(concurrency=200):
        await call.send()
        await shop.clock.advance(1)
        assert told.plain == ["many"]


async def test_eager_mode_runs_them(shop: Shop, told: Told) -> None:
    async with shop.tasks.eager():
        job = await told.half.s(8).on_done(told.ended.step()).send()
        assert await job.result() == 4
    assert told.outcomes == [4]


async def test_mistakes_are_refused(shop: Shop, told: Told) -> None:
    with pytest.raises(ConfigurationError, match="on_error and on_done take a step"):
        told.half.s(1).on_error(told.failed)  # type: ignore[arg-type]  # the mistake

    tasks = Tasks("unstored")

    @tasks.task()
    async def work() -> None: ...

    async with App("unstored", tasks=[tasks]).connect(memory_url(), clock=shop.clock):
        with pytest.raises(UnsupportedFeature, match="need a store"):
            await work.s().on_done(work.s()).send()
