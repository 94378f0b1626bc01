"""`Unique(policy="postpone")`: tasks of one key run one after the other (T9)."""

import pytest

from mqcore import Retry, RetryPolicy
from mqcore.tasks import Slots, State, TaskContext, Unique

from .conftest import Shop

POSTPONE = Unique(by=("user",), policy="postpone")


class Log:
    def __init__(self, shop: Shop) -> None:
        self.shop, self.began = shop, shop.clock.now()
        self.starts: list[tuple[float, object]] = []

    def start(self, what: object) -> None:
        self.starts.append((round(self.shop.clock.now() - self.began, 1), what))


async def test_tasks_of_one_key_run_one_after_the_other(shop: Shop) -> None:
    log = Log(shop)

    @shop.tasks.task(unique=POSTPONE, retry=RetryPolicy(2))
    async def work(ctx: TaskContext, user: str, number: int) -> int:
        log.start((user, number))
        await shop.clock.sleep(10)
        if ctx.attempt == 1 and number == 1:
            raise Retry(delay=5)
        return number

    async with shop.serve(concurrency=10) as worker:
        jobs = []
        for number in range(4):
            jobs.append(await work.send("anna", number))
            await shop.clock.advance(0.1)
        jobs.append(await work.send("bert", 0))
        await shop.clock.settle()
        assert [await job.state() for job in jobs[1:]] == [*[State.QUEUED] * 3, State.RUNNING]
        (counts,) = await worker.broker.counts("default")
        assert (counts.ready, counts.delayed) == (0, 0), "what waits has no message"
        await jobs[2].cancel()
        await shop.clock.advance(60)
        assert await jobs[3].result() == 3
    anna = [(time, number) for time, (user, number) in log.starts if user == "anna"]
    assert anna == [(0, 0), (10, 1), (25, 1), (35, 3)]


async def test_one_that_waits_may_be_delayed_have_slots_and_outlive_its_workers(
    shop: Shop,
) -> None:
    log = Log(shop)

    @shop.tasks.task(unique=POSTPONE, slots=Slots(1))
    async def work(user: str, number: int) -> None:
        log.start(number)
        await shop.clock.sleep(10)

    async with shop.open():
        first = await work.send("anna", 0)
        later = await work.using(delay=30).send("anna", 1)
        assert later.id != first.id
    async with shop.serve():
        await shop.clock.advance(60)
        assert [await job.state() for job in (first, later)] == [State.SUCCEEDED] * 2
    assert log.starts == [(0, 0), (30, 1)]


@pytest.mark.parametrize("expires", [5, 100])
async def test_one_that_waits_longer_than_its_expiry_never_starts(
    shop: Shop, expires: float
) -> None:
    log = Log(shop)

    @shop.tasks.task(unique=POSTPONE)
    async def work(user: str, number: int) -> None:
        log.start(number)
        await shop.clock.sleep(20)

    async with shop.serve():
        await work.send("anna", 0)
        job = await work.using(expires=expires).send("anna", 1)
        last = await work.send("anna", 2)
        await shop.clock.advance(90)
        assert await last.state() is State.SUCCEEDED
        state = await job.state()
    assert state is (State.EXPIRED if expires < 20 else State.SUCCEEDED)
    assert [number for _, number in log.starts] == ([0, 2] if expires < 20 else [0, 1, 2])


async def test_eager_mode_has_no_line(shop: Shop) -> None:
    @shop.tasks.task(unique=POSTPONE)
    async def work(user: str) -> str:
        return user

    async with shop.tasks.eager():
        assert [await (await work.send("anna")).result() for _ in range(2)] == ["anna"] * 2
