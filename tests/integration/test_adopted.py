"""A queue that another program made is taken as it is: `declare=False` (G2, G17)."""

from __future__ import annotations

import pytest

from mqcore import App, Broker, Context, Queue, RetryPolicy, Worker, fixed
from mqcore.spi import QueueSpec
from mqcore.testing import VirtualClock


@pytest.fixture
async def theirs(broker: Broker) -> Queue[str]:
    """One that lacks what mqcore declares beside its own."""
    await broker._session.connection.backend.declare([QueueSpec(name="theirs")])
    return Queue("theirs", str, declare=False, retry=RetryPolicy(max_attempts=2, backoff=fixed(5)))


async def test_it_is_published_to_and_consumed(broker: Broker, theirs: Queue[str]) -> None:
    await broker.publish(theirs, "hello")
    async with broker.consume(theirs) as deliveries:
        delivery = await deliveries.get(timeout=1)
        assert delivery is not None
        assert delivery.value == "hello"
        await delivery.ack()
    async with broker.consume("theirs"):
        pass
    assert [counts.name for counts in await broker.counts()] == [
        "theirs"
    ]  # nothing was made beside it


async def test_what_fails_there_is_tried_again_and_then_dropped_and_counted(
    broker: Broker, clock: VirtualClock, theirs: Queue[str]
) -> None:
    app, attempts = App("adopting"), []

    @app.consumer(theirs)
    async def fail(value: str, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        raise ValueError(value)

    async with Worker(app, broker):
        await broker.publish(theirs, "hello")
        await clock.advance(5)
        assert attempts == [1, 2]
        [counts] = await broker.counts(theirs)
        assert (counts.ready, counts.leased, counts.delayed) == (0, 0, 0)
        assert broker.health().counts["message.dropped"] == 1
