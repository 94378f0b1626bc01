"""G1: a result for each message of a batch, and one round trip for one loop turn."""

import asyncio

import pytest
from support.faulty import Faults, answered, first_failed

from mqcore import Broker, PublishUnknown, Queue, QueueFull, Receipt, Router, ValidationError
from mqcore.spi import ErrorKind, Unknown

numbers = Queue("numbers", int)


async def test_many_have_an_ending_each(faulty: Broker, faults: Faults) -> None:
    faults.next("publish", first_failed(ErrorKind.FULL))
    first, *rest = await faulty.publish_many(numbers, [1, 2, 3])
    assert isinstance(first, QueueFull)
    assert [ending.queues for ending in rest if isinstance(ending, Receipt)] == [("numbers",)] * 2
    assert [entry.message.body for entry in await faulty.peek(numbers)] == [b"2", b"3"]


async def test_many_to_a_bounded_queue_fill_it_and_no_more(broker: Broker) -> None:
    small = Queue("small", int, max_length=3)
    endings = await broker.publish_many(small, range(5))
    assert [type(ending) for ending in endings] == [Receipt] * 3 + [QueueFull] * 2


async def test_of_many_one_wrong_payload_stops_all(faulty: Broker, faults: Faults) -> None:
    with pytest.raises(ValidationError):
        await faulty.publish_many(numbers, [1, "2", 3])  # type: ignore[list-item]  # wrong on purpose
    assert faults.calls["publish"] == 0


async def test_many_of_none_is_none(broker: Broker) -> None:
    assert await broker.publish_many(numbers, []) == []


async def test_concurrent_publishes_share_one_call(faulty: Broker, faults: Faults) -> None:
    await faulty.declare(numbers)
    receipts = await asyncio.gather(*(faulty.publish(numbers, n) for n in range(100)))
    assert len({receipt.id for receipt in receipts}) == 100
    assert faults.calls["publish"] == 1
    assert [int(entry.message.body) for entry in await faulty.peek(numbers, 200)] == list(
        range(100)
    )


async def test_a_routed_publish_of_which_half_failed_is_unknown_with_outcomes(
    faulty: Broker, faults: Faults
) -> None:
    router = Router("all", int, kind="fanout").bind(numbers).bind(Queue("second", int))
    faults.next("publish", first_failed(ErrorKind.FULL))
    with pytest.raises(PublishUnknown) as caught:
        await faulty.publish(router, 1)
    assert caught.value.outcomes == {
        "numbers": "not stored (refused by the test)",
        "second": "stored",
    }


async def test_answers_that_are_unknown_for_all_carry_the_id(
    faulty: Broker, faults: Faults
) -> None:
    faults.next("publish", answered(Unknown("alarm")))
    endings = await faulty.publish_many(numbers, [1, 2])
    assert all(
        isinstance(ending, PublishUnknown) and ending.id in str(ending) for ending in endings
    )


async def test_a_thousand_cancelled_publishes_leave_all_usable(broker: Broker) -> None:
    for turn in range(300):
        tasks = [
            asyncio.create_task(broker.publish(Queue(f"q{turn % 7}", int), n)) for n in range(4)
        ]
        for _ in range(turn % 9):
            await asyncio.sleep(0)
        tasks[turn % 4].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(task.result(), Receipt) for task in tasks if not task.cancelled())
    assert (await broker.publish(numbers, 1)).queues == ("numbers",)
