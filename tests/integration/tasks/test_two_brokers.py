"""Two brokers of one application in one event loop: what follows from a message stays there."""

from mqcore import Settings, Worker
from mqcore.tasks import Failure, State
from mqcore.testing import memory_url

from .conftest import Shop


async def test_what_follows_from_an_expired_message_goes_to_its_own_broker(shop: Shop) -> None:
    told: list[Failure] = []

    @shop.tasks.task(expires=5)
    async def work() -> None: ...

    @shop.tasks.task()
    async def tell(failure: Failure) -> None:
        told.append(failure)

    async with shop.open() as first:
        job = await work.s().on_error(tell.step()).send()
        await shop.clock.advance(10)
        second = shop.app.connect(memory_url(), clock=shop.clock, settings=Settings())
        async with second, Worker(shop.app, first, grace=0):
            await shop.clock.advance(10)
            assert await shop.tasks.job(job.id).state() is State.EXPIRED
            (counts,) = await second.counts(shop.tasks.queue("default"))
            assert (counts.ready, counts.leased) == (0, 0), "nothing is sent to the other broker"
    assert [failure.node for failure in told] == [job.id]
