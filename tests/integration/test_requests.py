"""Request and reply: one answer at the final outcome, typed, and in time."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter
from support.faulty import Broken, Faults, raised
from support.waiting import eventually

from mqcore import (
    Broker,
    MessageError,
    PublishFailed,
    Queue,
    QueueNotFound,
    Reject,
    RemoteError,
    RequestTimeout,
    Retry,
    RetryPolicy,
    ValidationError,
    fixed,
)
from mqcore.spi import Message, Outgoing
from mqcore.testing import VirtualClock


class Sum(BaseModel):
    total: int


numbers = Queue("numbers", list[int])
TWICE = RetryPolicy(2, fixed(10))


async def add(values: list[int]) -> Sum:
    return Sum(total=sum(values))


def add_blocking(values: list[int]) -> Sum:
    return Sum(total=sum(values))


async def fail(_: object) -> None:
    raise KeyError("secret place")


@pytest.mark.parametrize("handler", [add, add_blocking])
async def test_the_return_value_is_the_reply(broker: Broker, serve: Any, handler: Any) -> None:
    async with serve(numbers, handler):
        assert await broker.request(numbers, [1, 2], result=Sum) == Sum(total=3)
        assert await broker.request(numbers, [1, 2]) == {"total": 3}
        assert await broker.request(numbers, [1, 2], result=TypeAdapter(dict[str, int])) == {
            "total": 3
        }
    assert (await broker.counts(numbers))[0].ready == 0


@pytest.mark.parametrize("value", [None, "text", b"\x00\xff", 5, [1, None], {"a": 1.5}], ids=repr)
async def test_any_value_can_be_a_reply(broker: Broker, serve: Any, value: Any) -> None:
    async def handler(_: list[int]) -> Any:
        return value

    async with serve(numbers, handler):
        kind = type(value) if value is not None else type(None)
        assert await broker.request(numbers, [], result=kind) == value
        assert await broker.request(numbers, []) == value


async def test_a_reply_of_the_wrong_type_is_told(broker: Broker, serve: Any) -> None:
    async with serve(numbers, add):
        with pytest.raises(MessageError):
            await broker.request(numbers, [1], result=int)


async def test_a_reply_that_cannot_be_sent_is_a_failure(broker: Broker, serve: Any) -> None:
    async def handler(_: list[int]) -> Any:
        return object()

    async with serve(numbers, handler, retry=RetryPolicy(1)):
        with pytest.raises(RemoteError) as caught:
            await broker.request(numbers, [1])
    assert caught.value.type == "mqcore.errors.ValidationError"


async def test_only_the_final_outcome_is_told(
    broker: Broker, serve: Any, clock: VirtualClock
) -> None:
    async with serve(numbers, fail, retry=TWICE):
        asking = asyncio.create_task(broker.request(numbers, [1]))
        await clock.advance(9)
        assert not asking.done(), "it failed once, and will be tried again"
        await clock.advance(1)
        with pytest.raises(RemoteError) as caught:
            await asking
    error = caught.value
    assert (error.reason, error.type, error.text) == (
        "retries_exhausted",
        "KeyError",
        "'secret place'",
    )


async def test_a_retry_can_still_succeed(broker: Broker, serve: Any, clock: VirtualClock) -> None:
    tries: list[int] = []

    async def handler(_: list[int]) -> int:
        tries.append(1)
        if len(tries) == 1:
            raise Retry(delay=3)
        return 7

    async with serve(numbers, handler):
        asking = asyncio.create_task(broker.request(numbers, [1], result=int))
        await clock.advance(3)
        assert await asking == 7


@pytest.mark.parametrize(
    ("payload", "reason"), [([1], "rejected"), ([2], "timeout")], ids=["reject", "timeout"]
)
async def test_each_final_reason(
    broker: Broker, serve: Any, clock: VirtualClock, payload: list[int], reason: str
) -> None:
    async def handler(values: list[int]) -> None:
        if values == [1]:
            raise Reject("no")
        await asyncio.Event().wait()

    async with serve(numbers, handler, timeout=5, retry=RetryPolicy(1)):
        asking = asyncio.create_task(broker.request(numbers, payload))
        await clock.advance(6)
        with pytest.raises(RemoteError) as caught:
            await asking
    assert caught.value.reason == reason


async def test_invalid_requests_are_told(broker: Broker, serve: Any) -> None:
    async with serve(numbers, add):
        with pytest.raises(RemoteError) as caught:
            await broker.request("numbers", {"not": "a list"})
    assert caught.value.reason == "invalid"


async def test_no_answer_in_time(broker: Broker, clock: VirtualClock) -> None:
    await broker.declare(numbers)
    asking = asyncio.create_task(broker.request(numbers, [1], timeout=5))
    await clock.advance(4.9)
    assert not asking.done()
    await clock.advance(0.2)
    with pytest.raises(RequestTimeout, match="numbers"):
        await asking
    with pytest.raises(TimeoutError):
        await asking


async def test_a_request_nobody_waits_for_any_more_is_not_started(
    broker: Broker, clock: VirtualClock, serve: Any, held: Any
) -> None:
    await broker.declare(numbers)
    asking = asyncio.create_task(broker.request(numbers, [1], timeout=5))
    await clock.advance(5)
    with pytest.raises(RequestTimeout):
        await asking
    async with serve(numbers, held):
        await clock.settle()
    assert held.began == []
    assert broker.events.counts["reply.failed"] == 0


async def test_a_late_reply_disturbs_nobody(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    async def handler(values: list[int]) -> int:
        await clock.sleep(values[0])
        return values[0]

    async with serve(numbers, handler):
        late = asyncio.create_task(broker.request(numbers, [10], timeout=5))
        await clock.advance(5)
        with pytest.raises(RequestTimeout):
            await late
        other = asyncio.create_task(broker.request(numbers, [7], timeout=9))
        await clock.advance(10)
        assert await other == 7


async def test_a_missing_reply_queue_is_counted_and_holds_up_nothing(
    broker: Broker, other: Broker, clock: VirtualClock, serve: Any
) -> None:
    async with serve(numbers, add):
        go = asyncio.create_task(other.request(numbers, [1]))
        await eventually(lambda: other.events.counts["message.published"])
        await other._session.connection.backend.close()
        go.cancel()
        await clock.advance(20)
        assert (await broker.counts(numbers))[0].leased == 0
    assert broker.events.counts["message.done"] == 1


async def test_a_reply_to_nowhere_is_counted(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    await broker._session.publisher.publish_message(
        numbers, [1], lambda m: replace(m, reply_to="mq.reply.gone"), {}
    )
    async with serve(numbers, add):
        await clock.settle()
    assert broker.events.counts["reply.failed"] == 1
    assert broker.events.counts["message.done"] == 1


async def test_many_at_once_each_get_their_own(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    async def handler(values: list[int]) -> int:
        await clock.sleep((values[0] * 7919) % 13 / 10)
        return values[0] * 2

    async with serve(numbers, handler, concurrency=50):
        asking = [asyncio.create_task(broker.request(numbers, [n], result=int)) for n in range(200)]
        await clock.advance(29)
        assert [await one for one in asking] == [n * 2 for n in range(200)]


async def test_two_brokers_get_their_own(broker: Broker, other: Broker, serve: Any) -> None:
    async def handler(values: list[int]) -> int:
        return values[0]

    async with serve(numbers, handler):
        results = await asyncio.gather(
            *(one.request(numbers, [n]) for n in range(20) for one in (broker, other))
        )
    assert results == [n for n in range(20) for _ in (0, 1)]


async def test_a_cancelled_request_leaves_nothing(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    async with serve(numbers, add):
        for turn in range(60):
            asking = asyncio.create_task(broker.request(numbers, [turn]))
            for _ in range(turn):
                await asyncio.sleep(0)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        assert await broker.request(numbers, [2], result=Sum) == Sum(total=2)
    assert broker._session.requests._waiting == {}


async def test_while_disconnected_a_request_ends_at_its_deadline(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    faults.next("open", *[raised(Broken("down"))] * 100)
    faults.lose()
    asking = asyncio.create_task(faulty.request(numbers, [1], timeout=5))
    await clock.advance(5.1)
    assert isinstance(asking.exception(), RequestTimeout | PublishFailed)


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda broker: broker.request("nowhere", b"x"), QueueNotFound),
        (lambda broker: broker.request(numbers, "wrong"), ValidationError),
        (lambda broker: broker.request(numbers, [1], timeout="soon"), ValidationError),
        (lambda broker: broker.request(numbers, [1], timeout=0), ValidationError),
    ],
    ids=["nowhere", "payload", "no duration", "no time"],
)
async def test_what_publish_refuses_is_refused(
    broker: Broker,
    clock: VirtualClock,
    ask: Callable[[Broker], Awaitable[Any]],
    error: type[Exception],
) -> None:
    with pytest.raises(error):
        await ask(broker)


async def test_the_reply_queue_goes_with_its_owner(
    broker: Broker, other: Broker, serve: Any
) -> None:
    async with serve(numbers, add):
        await other.request(numbers, [1])
        name = other._session.requests._queue
        assert [counts.role for counts in await broker.counts(name)] == ["temporary"]
        await other.close()
        with pytest.raises(QueueNotFound):
            await broker.counts(name)
    assert name not in {counts.name for counts in await broker.counts()}


async def test_a_forged_error_reply_is_only_data(broker: Broker, clock: VirtualClock) -> None:
    await broker.declare(numbers)
    for body in (b"{", b"[1]", b'{"reason": {"a": 1}, "type": "os.system"}', b"[" * 10_000):
        asking = asyncio.create_task(broker.request(numbers, [1]))
        await clock.settle()
        correlation = next(iter(broker._session.requests._waiting))
        kind = "application/vnd.mqcore.error+json"
        reply = Message(
            id=f"m{len(body)}", body=body, content_type=kind, correlation_id=correlation
        )
        await broker._session.connection.publish(
            [Outgoing(broker._session.requests._queue, reply)], 1
        )
        with pytest.raises(RemoteError):
            await asking


async def test_a_batch_handler_answers_each(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    async def handler(items: list[Any]) -> None:
        for item in items[1:]:
            await item.ack()

    async with serve(numbers, handler, batch=3, linger=1):
        asking = [asyncio.create_task(broker.request(numbers, [n], timeout=20)) for n in range(3)]
        await clock.advance(21)
        assert [await one for one in asking] == [None, None, None]
