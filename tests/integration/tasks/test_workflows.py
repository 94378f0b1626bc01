"""Groups, chains and chords: results in order, endings that count once, and no member forgotten."""

import asyncio
from typing import Any

import pytest

from mqcore import ConfigurationError, RetryPolicy, ValidationError
from mqcore.tasks import (
    Call,
    Failure,
    State,
    Step,
    TaskCancelled,
    TaskContext,
    TaskFailed,
    Unique,
    chain,
    group,
)
from mqcore.tasks.api import Tasks

from .conftest import Shop, letters


class Sums:
    """The tasks of these tests."""

    def __init__(self, tasks: Tasks) -> None:
        self.runs: list[str] = []
        once = RetryPolicy(1)

        @tasks.task(name="add", retry=once)
        async def add(x: int, y: int) -> int:
            self.runs.append(f"add {x} {y}")
            return x + y

        @tasks.task(name="mul", retry=once)
        def mul(x: int, by: int = 2) -> int:
            return x * by

        @tasks.task(name="xsum", retry=once)
        async def xsum(numbers: list[int]) -> int:
            self.runs.append("xsum")
            return sum(numbers)

        @tasks.task(name="broken", retry=once)
        async def broken(x: int = 0) -> int:
            raise ValueError(f"no: {x}")

        @tasks.task(name="stuck", retry=once)
        async def stuck(x: int = 0) -> int:
            await asyncio.Event().wait()
            return x

        @tasks.task(name="count", retry=once)
        async def count(numbers: list[int | Failure]) -> tuple[int, list[str]]:
            failures = [each.reason for each in numbers if isinstance(each, Failure)]
            return len(numbers) - len(failures), failures

        self.add, self.mul, self.xsum = add, mul, xsum
        self.broken, self.stuck, self.count = broken, stuck, count


@pytest.fixture
def sums(shop: Shop) -> Sums:
    return Sums(shop.tasks)


async def test_a_chain_hands_each_result_to_the_next_step(shop: Shop, sums: Sums) -> None:
    call: Call[int] = sums.add.s(4, 4) | sums.mul.step(8) | sums.add.step(1)
    async with shop.serve():
        job = await call.send()
        assert await job.result() == 65
        assert await job.state() is State.SUCCEEDED


async def test_a_group_returns_the_results_in_the_order_of_its_members(
    shop: Shop, sums: Sums
) -> None:
    async with shop.serve():
        job = await group(sums.add.s(number, number) for number in range(10)).send()
        assert await job.result() == [2 * number for number in range(10)]
        assert await (await group([], tasks=shop.tasks).send()).result() == []


async def test_the_body_of_a_chord_runs_once_with_all_results(shop: Shop, sums: Sums) -> None:
    members = group(sums.add.s(number, 1) | sums.mul.step(2) for number in range(5))
    async with shop.serve():
        job = await (members | sums.xsum.step() | sums.mul.step(10)).send()
        assert await job.result() == 300
    assert sums.runs.count("xsum") == 1


async def test_a_result_can_fan_out_to_a_group_of_steps(shop: Shop, sums: Sums) -> None:
    fan: Step[int, list[int]] = group(sums.mul.step(2), sums.mul.step(3), sums.add.step(1))
    async with shop.serve():
        job = await (sums.add.s(5, 5) | fan | sums.xsum.step()).send()
        assert await job.result() == 20 + 30 + 11


async def test_a_call_in_a_chain_ignores_the_result_before_it(shop: Shop, sums: Sums) -> None:
    async with shop.serve():
        job = await chain(sums.add.s(1, 1), sums.mul.s(3), sums.add.step(4)).send()
        assert await job.result() == 10


async def test_later_keyword_arguments_win(shop: Shop, sums: Sums) -> None:
    partial = sums.add.partial(y=1).partial(y=5)
    async with shop.serve():
        assert await (await partial.s(1).send()).result() == 6
        assert await (await partial.s(1, y=7).send()).result() == 8
        assert await (await (sums.add.s(1, 1) | partial.step(y=9)).send()).result() == 11


async def test_a_step_is_completed_with_its_first_argument(shop: Shop, sums: Sums) -> None:
    one: Call[int] = sums.mul.step(8).s(4)
    several: Call[list[int]] = group(sums.add.step(number) for number in range(3)).s(10)
    chained: Call[int] = (sums.add.step(4) | sums.mul.step(8)).s(4)
    nested = (group(sums.add.step(1) | sums.mul.step(2), sums.mul.step()) | sums.xsum.step()).s(5)
    ignoring = group(sums.add.step(1), sums.add.step(2) | sums.add.s(7, 7)).s(0)
    async with shop.serve():
        results = [await (await call.send()).result() for call in (one, chained, nested)]
        assert results == [32, 64, 22]
        assert await (await several.send()).result() == [10, 11, 12]
        assert await (await ignoring.send()).result() == [1, 14]


async def test_the_argument_of_a_step_is_checked(shop: Shop, sums: Sums) -> None:
    step: Step[Any, int] = sums.add.partial().step(y=2)
    with pytest.raises(ValidationError, match="add"):
        step.s("three")


async def test_a_completed_step_has_its_unique_key(shop: Shop) -> None:
    @shop.tasks.task(unique=Unique(by=("user",)))
    async def mail(user: int, text: str) -> None: ...

    async with shop.open():
        first = await mail.step("hello").s(1).send()
        assert (await mail.send(1, "again")).id == first.id
        assert (await mail.step("hello").s(2).send()).id != first.id


async def test_map_starmap_and_chunks(shop: Shop, sums: Sums) -> None:
    async with shop.serve():
        assert await (await sums.mul.map([1, 2, 3]).send()).result() == [2, 4, 6]
        pairs = [(number, number) for number in range(5)]
        assert await (await sums.add.starmap(pairs).send()).result() == [0, 2, 4, 6, 8]
        chunks = await sums.add.chunks(pairs, 2).send()
        assert await chunks.result() == [[0, 2], [4, 6], [8]]
        assert await shop.tasks.job(f"{chunks.id}.0").result() == [0, 2]
        total = await (sums.add.starmap(pairs) | sums.xsum.step()).send()
        assert await total.result() == 20


async def test_a_failing_step_skips_the_rest_and_names_its_error(shop: Shop, sums: Sums) -> None:
    async with shop.serve() as worker:
        job = await (sums.add.s(1, 1) | sums.broken.step() | sums.xsum.step()).send()
        with pytest.raises(TaskFailed) as caught:
            await job.result()
        assert await shop.tasks.job(f"{job.id}.2").state() is State.SKIPPED
        await shop.clock.settle()
        assert [letter.reason for letter in await letters(worker.broker)] == ["retries_exhausted"]
    assert (caught.value.type, caught.value.text) == ("ValueError", "no: 2")
    assert "xsum" not in sums.runs


async def test_a_failing_member_does_not_hang_its_chord(shop: Shop, sums: Sums) -> None:
    async with shop.serve():
        job = await (group(sums.add.s(1, 1), sums.broken.s(3)) | sums.xsum.step()).send()
        with pytest.raises(TaskFailed, match="no: 3"):
            await job.result()
        assert await shop.tasks.job(f"{job.id}.0.0").result() == 2
    assert "xsum" not in sums.runs


async def test_the_policy_collect_gives_failures_to_the_body(shop: Shop, sums: Sums) -> None:
    members = group(sums.add.s(1, 1), sums.broken.s(3), policy="collect")
    async with shop.serve():
        job = await (members | sums.count.step()).send()  # type: ignore[operator]  # list[int | Failure] cannot be inferred
        assert await job.result() == (1, ["retries_exhausted: ValueError: no: 3"])


async def test_the_policy_cancel_stops_the_other_members(shop: Shop, sums: Sums) -> None:
    async with shop.serve():
        job = await group(sums.stuck.s(1), sums.broken.s(3), policy="cancel").send()
        await shop.clock.advance(1)
        with pytest.raises(TaskFailed):
            await job.result()
        assert await shop.tasks.job(f"{job.id}.0").state() is State.CANCELLED


async def test_cancelling_a_workflow_cancels_its_open_members(shop: Shop, sums: Sums) -> None:
    async with shop.serve():
        job = await (group(sums.stuck.s(1), sums.stuck.s(2)) | sums.xsum.step()).send()
        await shop.clock.settle()
        assert await job.cancel("no more")
        await shop.clock.settle()
        with pytest.raises(TaskCancelled):
            await job.result()
        assert await shop.tasks.job(f"{job.id}.1").state() is State.SKIPPED
    assert "xsum" not in sums.runs


async def test_a_task_can_be_replaced_by_a_workflow(shop: Shop, sums: Sums) -> None:
    @shop.tasks.task()
    async def spread(ctx: TaskContext, size: int) -> int:
        return ctx.replace(group(sums.add.s(n, n) for n in range(size)) | sums.xsum.step())

    async with shop.serve():
        job = await (group(spread.s(3), sums.add.s(0, 1)) | sums.xsum.step()).send()
        assert await job.result() == 6 + 1


async def test_a_task_that_replaces_itself_again_and_again_ends(shop: Shop) -> None:
    @shop.tasks.task(name="again", retry=RetryPolicy(1))
    async def again(ctx: TaskContext) -> int:
        return ctx.replace(again.s())

    async with shop.serve():
        job = await again.send()
        with pytest.raises(TaskFailed, match="nests too deep"):
            await job.result()


async def test_a_large_group_is_sent_in_batches_and_completes(shop: Shop, sums: Sums) -> None:
    async with shop.serve(concurrency=100):
        calls = (sums.add.s(number, 0) for number in range(1_200))
        job = await (group(calls) | sums.xsum.step()).send()
        await shop.clock.advance(1)
        assert await job.result() == sum(range(1_200))
    assert sums.runs.count("xsum") == 1


async def test_what_cannot_be_a_workflow_is_refused(shop: Shop, sums: Sums) -> None:
    with pytest.raises(ConfigurationError, match=r"group\(\[\], tasks=tasks\)"):
        group()
    with pytest.raises(ConfigurationError, match="not a value of type int"):
        group(sums.add.s(1, 2), 3)  # type: ignore[call-overload]  # that is what is tested
