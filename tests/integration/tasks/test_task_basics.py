"""A task is sent, runs in a worker, and its result comes back; it is retried, and it fails."""

import pytest
from pydantic import BaseModel

from mqcore import RetryPolicy, ValidationError, fixed
from mqcore.tasks import State, TaskContext, TaskFailed, UnknownTask

from .conftest import Shop, letters


class Invoice(BaseModel):
    order: int
    lines: list[str]


async def test_the_result_of_a_task_has_its_own_type(shop: Shop) -> None:
    @shop.tasks.task()
    async def bill(order: int, lines: list[str]) -> Invoice:
        return Invoice(order=order, lines=lines)

    async with shop.serve():
        job = await bill.send(7, lines=["a"])
        assert await job.result() == Invoice(order=7, lines=["a"])
        assert await job.state() is State.SUCCEEDED


async def test_a_blocking_task_takes_models_and_its_context(shop: Shop) -> None:
    @shop.tasks.task()
    def total(ctx: TaskContext, *invoices: Invoice, factor: int = 1) -> tuple[str, int]:
        return ctx.id, factor * sum(invoice.order for invoice in invoices)

    async with shop.serve():
        job = await total.send(Invoice(order=1, lines=[]), Invoice(order=2, lines=[]), factor=10)
        assert await job.result() == (job.id, 30)


async def test_wrong_arguments_are_refused_before_anything_is_stored(shop: Shop) -> None:
    @shop.tasks.task()
    async def add(x: int, y: int) -> int:
        return x + y

    async with shop.open():
        with pytest.raises(ValidationError, match="missing a required argument: 'y'"):
            await add.send(1)  # type: ignore[call-arg]  # that is what is tested
        with pytest.raises(ValidationError, match="x: Input should be a valid integer"):
            await add.send("1", 2)  # type: ignore[arg-type]  # that is what is tested
        assert await shop.tasks.connected().store.suspects(float("inf")) == []


async def test_a_failing_task_is_retried_by_its_policy_and_keeps_its_id(shop: Shop) -> None:
    attempts: list[tuple[str, int]] = []

    @shop.tasks.task(retry=RetryPolicy(3, fixed(10)))
    async def flaky(ctx: TaskContext) -> str:
        attempts.append((ctx.id, ctx.attempt))
        if ctx.attempt < 3:
            raise OSError("not yet")
        return "at last"

    async with shop.serve():
        job = await flaky.send()
        await shop.clock.advance(5)
        assert await job.state() is State.RETRYING
        await shop.clock.advance(20)
        assert await job.result() == "at last"
    assert attempts == [(job.id, 1), (job.id, 2), (job.id, 3)]


async def test_a_task_that_fails_for_good_raises_its_error_for_the_caller(shop: Shop) -> None:
    @shop.tasks.task(retry=RetryPolicy(2, fixed(1)))
    def broken(what: str) -> None:
        raise ValueError(f"no: {what}")

    async with shop.serve() as worker:
        job = await broken.send("that")
        await shop.clock.advance(2)
        with pytest.raises(TaskFailed) as caught:
            await job.result()
        dead = await letters(worker.broker)
    error = caught.value
    assert (error.reason, error.type, error.text) == ("retries_exhausted", "ValueError", "no: that")
    assert [(letter.reason, letter.error.partition(":")[0]) for letter in dead] == [
        ("retries_exhausted", "ValueError")
    ]


async def test_an_id_that_the_store_does_not_know_is_an_error(shop: Shop) -> None:
    async with shop.open():
        with pytest.raises(UnknownTask, match="is not in the store"):
            await shop.tasks.job("nonsense").state()
