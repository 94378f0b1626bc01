"""Profile *core*: publish, receive, settle. Every backend passes all of it."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from mqcore.spi import (
    DONE,
    STORED,
    Ack,
    Backend,
    Capability,
    ConnectionLost,
    Done,
    ErrorKind,
    Failed,
    Outgoing,
    Release,
    Stale,
    Subscription,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.seam.conftest import Seam


# Publish


async def test_a_confirmed_message_is_there_to_be_received(seam: Seam) -> None:
    """G1, G2: `Stored` means that a consumer who comes later gets it."""
    queue = await seam.queue()
    await seam.put(queue, "a")
    (delivery,) = await seam.drain(await seam.subscribe(queue))
    assert (delivery.message.id, delivery.attempt) == ("a", 1)
    assert (delivery.redelivered, delivery.doubtful) == (False, False), "a first delivery should carry no marks"


async def test_an_outcome_comes_for_each_item_in_its_order(seam: Seam) -> None:
    """G1: a queue that is missing fails its own items, with NOT_FOUND, and no others."""
    queue = await seam.queue()
    batch = [Outgoing(to, seam.message(name)) for to, name in [(queue, "a"), ("nowhere", "b"), (queue, "c")]]
    outcomes = await seam.publish(*batch)
    assert [type(outcome) for outcome in outcomes] == [type(STORED), Failed, type(STORED)]
    missing = outcomes[1]
    assert isinstance(missing, Failed)
    assert missing.kind is ErrorKind.NOT_FOUND, f"a missing queue should be NOT_FOUND, not {missing.kind}"
    assert "nowhere" in missing.text, "the text should name the queue"
    assert await seam.contents(queue) == Counter("ac")


async def test_an_empty_batch_has_no_outcomes(seam: Seam) -> None:
    """G1: nothing in, nothing out; also of settle."""
    consumer = await seam.subscribe(await seam.queue())
    assert list(await seam.publish()) == []
    assert list(await seam.settle(consumer)) == []


async def test_messages_of_one_batch_keep_their_order(seam: Seam) -> None:
    """G9: first deliveries come in publish order, inside a batch and from batch to batch."""
    queue = await seam.queue()
    names = [f"{number:03}" for number in range(250)]
    for start in range(0, 250, 50):
        await seam.put(queue, *names[start : start + 50])
    consumer = await seam.subscribe(queue, prefetch=300)
    assert seam.ids(await seam.drain(consumer)) == names


async def test_overlapping_publishes_lose_nothing(seam: Seam) -> None:
    """G2: `publish` calls may overlap; many producers, one of each message."""
    queue = await seam.queue()
    producers = [await seam.open() for _ in range(3)]
    batches = [[Outgoing(queue, seam.message(f"{batch}-{n}")) for n in range(20)] for batch in range(30)]
    calls = [producers[n % 3].publish(batch, timeout=10.0) for n, batch in enumerate(batches)]
    outcomes = await seam.provider.finish(asyncio.gather(*calls), 10.0)
    assert {outcome for call in outcomes for outcome in call} == {STORED}
    assert await seam.contents(queue) == Counter(it.message.id for batch in batches for it in batch)


async def test_queues_do_not_mix(seam: Seam) -> None:
    """G2: a message goes to its own queue and to no other."""
    one, two = await seam.queue(), await seam.queue()
    await seam.publish(*[Outgoing((one, two)[n % 2], seam.message(f"{n}")) for n in range(20)])
    assert await seam.contents(one) == Counter(f"{n}" for n in range(0, 20, 2))
    assert await seam.contents(two) == Counter(f"{n}" for n in range(1, 20, 2))


# Fidelity


@pytest.mark.parametrize(
    "body",
    [b"", b"\x00", bytes(range(256)), "Grüße, 世界".encode(), b"\xff\xfe not UTF-8", b"x" * 1_000_000],
    ids=["empty", "zero", "all-bytes", "utf-8", "no-utf-8", "large"],
)
async def test_a_body_comes_back_byte_for_byte(seam: Seam, body: bytes) -> None:
    """G17: payloads are bytes, and stay what they are."""
    queue = await seam.queue()
    await seam.publish(Outgoing(queue, seam.message("a", body=body)))
    (delivery,) = await seam.drain(await seam.subscribe(queue))
    assert type(delivery.message.body) is bytes
    assert delivery.message.body == body


async def test_every_field_of_a_message_comes_back(seam: Seam) -> None:
    """G17: a consumer gets a message equal to the one that was published."""
    queue = await seam.queue()
    headers = {"plain": "text", "empty": "", "unicode": "Grüße 世界 \t end", "UPPER.lower_-9": "x" * 4_000}
    sent = seam.message(
        "id-with_~special!chars",
        headers=headers,
        content_type="application/json; charset=utf-8",
        priority=8,
        attempt=3,
        hop=4,
        correlation_id="c-1",
        reply_to="somewhere",
        failed_at=1_700_000_000.25,
        redriven=2,
    )
    await seam.publish(Outgoing(queue, sent))
    (delivery,) = await seam.drain(await seam.subscribe(queue))
    assert delivery.message == sent
    assert dict(delivery.message.headers) == headers


async def test_a_message_without_the_optional_fields_gets_none_of_them(seam: Seam) -> None:
    """G17: what was not given is not invented."""
    queue = await seam.queue()
    sent = seam.message("a", published_at=None)
    await seam.publish(Outgoing(queue, sent))
    (delivery,) = await seam.drain(await seam.subscribe(queue))
    assert delivery.message == sent
    assert delivery.expires_in is None


async def test_what_the_publisher_changes_afterwards_changes_nothing(seam: Seam) -> None:
    """G17: payloads are copied on every backend, memory included."""
    queue = await seam.queue()
    headers, body = {"colour": "red"}, bytearray(b"before")
    batch = [Outgoing(queue, seam.message("a", headers=headers, body=body))]
    await seam.backend.publish(batch, timeout=10.0)
    headers["colour"] = "blue"
    body[:] = b"after!"
    batch.clear()
    (delivery,) = await seam.drain(await seam.subscribe(queue))
    assert dict(delivery.message.headers) == {"colour": "red"}
    assert delivery.message.body == b"before"


async def test_what_a_consumer_changes_is_not_seen_by_the_next(seam: Seam) -> None:
    """G17, C51: no delivery shares anything that can be changed with another, or with the broker."""
    queue = await seam.queue()
    await seam.publish(Outgoing(queue, seam.message("a", headers={"colour": "red"})))
    consumer = await seam.subscribe(queue)
    (delivery,) = await seam.drain(consumer)
    with suppress(TypeError):  # that it cannot be done is a good answer
        delivery.message.headers["colour"] = "blue"  # type: ignore[index]  # the point of the case
    await seam.settle(consumer, Release(delivery.receipt))
    (again,) = await seam.drain(consumer)
    assert dict(again.message.headers) == {"colour": "red"}


# Receive


async def test_receive_gives_up_to_the_limit_at_once(seam: Seam) -> None:
    """G12: 1 to `limit` messages as soon as there is one, not when the limit is full."""
    queue = await seam.queue()
    await seam.put(queue, *"abcde")
    consumer = await seam.subscribe(queue)
    assert seam.ids(await seam.receive(consumer, 3)) == ["a", "b", "c"]
    assert seam.ids(await seam.receive(consumer, 3)) == ["d", "e"]


@pytest.mark.parametrize("timeout", [0.0, 0.5])
async def test_receive_from_an_empty_queue_ends_with_nothing_when_its_time_is_over(seam: Seam, timeout: float) -> None:
    """G2, C32: silence is `[]`, not an error, and comes no sooner than asked."""
    consumer = await seam.subscribe(await seam.queue())
    began = seam.now
    assert await seam.receive(consumer, within=timeout) == []
    assert seam.now - began >= timeout - 0.005, "receive ended before its time"


async def test_a_waiting_receive_gets_what_is_published_later(seam: Seam) -> None:
    """G2: a consumer that waits is woken; it does not find the message at its next poll."""
    queue = await seam.queue()
    consumer = await seam.subscribe(queue)
    waiting = asyncio.create_task(consumer.receive(10, 60.0))
    await seam.advance(0.01)
    await seam.put(queue, "a")
    began = seam.now
    assert seam.ids(await seam.provider.finish(waiting, 1.0)) == ["a"]
    assert seam.now - began < 0.5, "the waiting consumer should be woken by the publish"


async def test_one_message_goes_to_one_of_those_who_wait(seam: Seam) -> None:
    """G2: competing consumers share a queue; each message is handed to one of them, and all are handed out."""
    queue = await seam.queue()
    consumers = [await (await seam.open()).subscribe(queue, prefetch=1, lease=30.0) for _ in range(4)]
    waiting = [asyncio.create_task(consumer.receive(1, 60.0)) for consumer in consumers]
    await seam.advance(0.01)
    await seam.put(queue, *"abcd")
    got = await seam.provider.finish(asyncio.gather(*waiting), 1.0)
    assert Counter(name for deliveries in got for name in seam.ids(deliveries)) == Counter("abcd")
    assert [len(deliveries) for deliveries in got] == [1, 1, 1, 1]


async def test_settle_works_while_receive_waits(seam: Seam) -> None:
    """G12: a waiting receive of a full consumer goes on when a settlement makes room."""
    queue = await seam.queue()
    await seam.put(queue, "a", "b")
    consumer = await seam.subscribe(queue, prefetch=1)
    (first,) = await seam.receive(consumer)
    waiting = asyncio.create_task(consumer.receive(10, 60.0))
    await seam.advance(0.01)
    assert not waiting.done(), "the prefetch of 1 is used up"
    await seam.ack(consumer, [first])
    assert seam.ids(await seam.provider.finish(waiting, 1.0)) == ["b"]


@pytest.mark.parametrize("prefetch", [1, 3])
async def test_prefetch_is_an_exact_ceiling(seam: Seam, prefetch: int) -> None:
    """G12: never more than `prefetch` unsettled messages are handed to a consumer, and never fewer if there are more."""
    queue = await seam.queue()
    await seam.put(queue, *(f"{n}" for n in range(10)))
    consumer = await seam.subscribe(queue, prefetch=prefetch)
    held = await seam.drain(consumer)
    assert len(held) == prefetch
    await seam.ack(consumer, held[:1])
    assert len(await seam.drain(consumer)) == 1
    other = await seam.subscribe(queue, prefetch=100)
    assert len(await seam.drain(other)) == 10 - prefetch - 1, "what one may not have is there for another"


async def test_nothing_is_handed_out_twice_while_it_is_held(seam: Seam) -> None:
    """G2: a claimed message is nobody else's."""
    queue = await seam.queue()
    await seam.put(queue, *"abc")
    one, two = await seam.subscribe(queue), await seam.subscribe(queue)
    assert seam.ids(await seam.receive(one, 2)) == ["a", "b"]
    assert seam.ids(await seam.drain(two)) == ["c"]
    assert await seam.drain(one) == []


# Settle


async def test_what_is_acked_is_gone(seam: Seam) -> None:
    """G2: an ack lets go for good, also when the consumer closes at once."""
    queue = await seam.queue()
    await seam.put(queue, "a", "b")
    consumer = await seam.subscribe(queue)
    await seam.ack(consumer, await seam.drain(consumer))
    await consumer.close()
    assert await seam.contents(queue) == Counter()


async def test_an_outcome_comes_for_each_settlement_in_its_order(seam: Seam) -> None:
    """G2: one bad item does not spoil the others."""
    queue = await seam.queue()
    await seam.put(queue, "a", "b", "c")
    consumer = await seam.subscribe(queue)
    a, b, c = await seam.drain(consumer)
    settled = await seam.settle(
        consumer, Ack(a.receipt), seam.successor(b, "nowhere"), Ack(b"no receipt of ours"), Release(c.receipt)
    )
    assert [type(it) for it in settled] == [Done, Failed, Stale, Done]
    assert seam.ids(await seam.drain(consumer)) == ["c"], "the failed Move should have kept its source leased"


async def test_a_second_settlement_is_stale_and_changes_nothing(seam: Seam) -> None:
    """G5, C41: ack twice, release after ack, ack after release."""
    queue = await seam.queue()
    await seam.put(queue, "a", "b")
    consumer = await seam.subscribe(queue)
    a, b = await seam.drain(consumer)
    assert list(await seam.settle(consumer, Ack(a.receipt), Ack(a.receipt), Release(a.receipt)))[1:] == [
        Stale(),
        Stale(),
    ]
    assert list(await seam.settle(consumer, Release(b.receipt), Ack(b.receipt)))[1:] == [Stale()]
    assert seam.ids(await seam.drain(consumer)) == ["b"], "the late ack of a released message should have had no effect"


async def test_a_released_message_comes_again_as_it_was(seam: Seam) -> None:
    """G4, G9: release is no attempt and raises no doubt; the message says that it was handed out before."""
    queue = await seam.queue()
    await seam.put(queue, "a")
    consumer = await seam.subscribe(queue)
    (first,) = await seam.drain(consumer)
    assert await seam.settle(consumer, Release(first.receipt)) == [DONE]
    (second,) = await seam.drain(consumer)
    assert second.message == first.message
    assert (second.attempt, second.redelivered, second.doubtful) == (1, True, False)
    assert second.receipt != first.receipt, "each claim should have a receipt of its own"


async def test_a_release_takes_a_doubt_away(seam: Seam) -> None:
    """G4: whoever releases knows that nothing has started, whatever happened before."""
    queue = await seam.queue()
    await seam.put(queue, "a")
    consumer = await seam.subscribe(queue)
    await seam.drain(consumer)
    await consumer.close()
    consumer = await seam.subscribe(queue)
    (delivery,) = await seam.receive(consumer, within=1.0)
    assert delivery.doubtful
    await seam.settle(consumer, Release(delivery.receipt))
    (delivery,) = await seam.receive(consumer, within=1.0)
    assert (delivery.redelivered, delivery.doubtful) == (True, False)


async def test_released_messages_return_to_their_old_places(seam: Seam) -> None:
    """G9: where ORDER says `release_in_place`, whatever the order of the releases."""
    if not seam.limit(Capability.ORDER, "release_in_place"):
        pytest.skip("declares no release in place")
    queue = await seam.queue()
    await seam.put(queue, *"abcdef")
    consumer = await seam.subscribe(queue)
    a, b, c, d = await seam.receive(consumer, 4)
    await seam.settle(consumer, Release(c.receipt), Release(a.receipt), Ack(b.receipt), Release(d.receipt))
    assert seam.ids(await seam.drain(consumer)) == ["a", "c", "d", "e", "f"]


async def test_a_message_survives_any_number_of_releases(seam: Seam) -> None:
    """G4, C47: no counter of the broker may dead-letter or drop what is released again and again."""
    queue = await seam.queue()
    await seam.put(queue, "a")
    consumer = await seam.subscribe(queue)
    for _ in range(50):
        (delivery,) = await seam.receive(consumer, within=1.0)
        assert (delivery.attempt, delivery.doubtful) == (1, False)
        await seam.settle(consumer, Release(delivery.receipt))
    assert await seam.contents(queue) == Counter("a")


# Cancellation and close


async def test_a_cancelled_receive_strands_nothing(seam: Seam) -> None:
    """G2, L03: whenever the cancellation comes, each message is handed out once, unmarked, by this call or the next."""
    queue = await seam.queue()
    consumer = await seam.subscribe(queue, prefetch=10)
    seen: Counter[str] = Counter()
    for turn in range(1000):
        waiting = asyncio.create_task(consumer.receive(1, 60.0))
        for _ in range(turn % 3):
            await asyncio.sleep(0)
        if turn % 2:
            waiting.cancel()
        await seam.backend.publish([Outgoing(queue, seam.message(f"{turn}"))], timeout=10.0)
        for _ in range(turn // 6 % 4):
            await asyncio.sleep(0)
        waiting.cancel()
        (got,) = await asyncio.gather(waiting, return_exceptions=True)
        deliveries = [] if isinstance(got, BaseException) else list(got)
        if not deliveries:
            deliveries = await seam.receive(consumer, within=1.0)
        assert seam.ids(deliveries) == [f"{turn}"], f"turn {turn}: published, cancelled, and gone"
        assert not deliveries[0].redelivered, f"turn {turn}: nobody has seen it before"
        seen.update(seam.ids(deliveries))
        await seam.ack(consumer, deliveries)
    assert seen == Counter(f"{turn}" for turn in range(1000))


async def test_a_message_meant_for_a_cancelled_consumer_goes_to_another_who_waits(seam: Seam) -> None:
    """G2: a wake-up dies with nobody."""
    queue = await seam.queue()
    for turn in range(50):
        one, two = await seam.subscribe(queue), await seam.subscribe(queue)
        tasks = [asyncio.create_task(consumer.receive(1, 60.0)) for consumer in (one, two)]
        await seam.advance(0.01)
        await seam.backend.publish([Outgoing(queue, seam.message(f"{turn}"))], timeout=10.0)
        tasks[0].cancel()
        (first,) = await asyncio.gather(tasks[0], return_exceptions=True)
        if isinstance(first, BaseException):
            assert seam.ids(await seam.provider.finish(tasks[1], 1.0)) == [f"{turn}"]
            await seam.ack(two, tasks[1].result())
        await one.close()
        await two.close()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_closing_ends_a_waiting_receive_with_nothing(seam: Seam) -> None:
    """C09: a close never waits for a message."""
    consumer = await seam.subscribe(await seam.queue())
    waiting = asyncio.create_task(consumer.receive(10, 600.0))
    await seam.advance(0.01)
    await seam.provider.finish(consumer.close(), 2.0)
    assert list(await seam.provider.finish(waiting, 1.0)) == []


async def test_what_a_closing_consumer_holds_comes_back_doubtful_in_its_old_place(seam: Seam) -> None:
    """G4, G5: closed without settling is a crash: nobody knows whether a handler had started."""
    queue = await seam.queue()
    await seam.put(queue, *"abc")
    consumer = await seam.subscribe(queue)
    held = await seam.receive(consumer, 2)
    await consumer.close()
    other = await seam.subscribe(queue)
    got = await seam.drain(other, within=1.0)
    assert sorted(seam.ids(got)) == ["a", "b", "c"]
    assert {it.message.id for it in got if it.doubtful} == {"a", "b"}, "what was never handed out is not doubtful"
    assert all(it.redelivered for it in got if it.doubtful)
    assert [it.attempt for it in got] == [1, 1, 1], "core counts attempts, a backend never does"
    if seam.limit(Capability.ORDER, "release_in_place"):
        assert seam.ids(got) == ["a", "b", "c"]
    assert [type(it) for it in await seam.settle(consumer, *[Ack(it.receipt) for it in held])] == [Stale, Stale]


async def test_closing_one_consumer_leaves_alone_what_others_hold(seam: Seam) -> None:
    """G5: only its own messages come back, and nothing is sent to it any more."""
    queue = await seam.queue()
    await seam.put(queue, "a", "b")
    closes, works, waits = [await seam.subscribe(queue, prefetch=1) for _ in range(3)]
    await seam.receive(closes)
    (b,) = await seam.receive(works)
    idle = await seam.subscribe(queue)
    tasks = [asyncio.create_task(consumer.receive(1, 60.0)) for consumer in (idle, waits)]
    await seam.advance(0.01)
    await idle.close()
    await closes.close()
    assert seam.ids(await seam.provider.finish(tasks[1], 1.0)) == ["a"]
    await seam.ack(works, [b])
    await seam.put(queue, "c")
    assert seam.ids(await seam.receive(works, within=1.0)) == ["c"]
    assert list(await tasks[0]) == []


async def test_a_consumer_that_waits_gets_what_another_leaves_behind(seam: Seam) -> None:
    """G5: takeover is not found by polling."""
    queue = await seam.queue()
    await seam.put(queue, "a")
    one, two = await seam.subscribe(queue), await seam.subscribe(queue)
    await seam.receive(one)
    waiting = asyncio.create_task(two.receive(1, 60.0))
    await seam.advance(0.01)
    began = seam.now
    await one.close()
    assert seam.ids(await seam.provider.finish(waiting, 1.0)) == ["a"]
    assert seam.now - began <= 1.0


async def test_consuming_stops_and_starts_again(seam: Seam) -> None:
    """C11, C48: many short consumers in a row lose nothing and keep the order."""
    queue = await seam.queue()
    names = [f"{number:02}" for number in range(30)]
    await seam.put(queue, *names)
    seen: list[str] = []
    for _ in range(10):
        consumer = await seam.subscribe(queue, prefetch=3)
        deliveries = await seam.receive(consumer, 3, within=1.0)
        await seam.ack(consumer, deliveries)
        seen += seam.ids(deliveries)
        await consumer.close()
    assert seen == names


async def test_a_closed_consumer_refuses_to_receive(seam: Seam) -> None:
    """C04: a closed Subscription raises; closing it twice is no error."""
    consumer = await seam.subscribe(await seam.queue())
    await consumer.close()
    await consumer.close()
    with pytest.raises(Exception, match="clos"):
        await consumer.receive(1, 0.0)


async def test_subscribing_to_a_missing_queue_is_not_found(seam: Seam) -> None:
    """G1, C06: it raises at once, classified NOT_FOUND."""
    with pytest.raises(Exception, match="nowhere") as caught:
        await seam.backend.subscribe("nowhere", prefetch=1, lease=30.0)
    assert seam.backend.classify(caught.value) is ErrorKind.NOT_FOUND


# Open and close


async def test_closing_the_backend_brings_back_what_its_consumers_hold(seam: Seam) -> None:
    """G5: as after a crash."""
    queue = await seam.queue()
    await seam.put(queue, "a")
    other = await seam.open()
    consumer = await other.subscribe(queue, prefetch=10, lease=30.0)
    waiting: Subscription = await other.subscribe(await seam.queue(), prefetch=10, lease=30.0)
    task = asyncio.create_task(waiting.receive(1, 600.0))
    assert len(await seam.receive(consumer)) == 1
    await seam.advance(0.01)
    await seam.provider.finish(other.close(), 2.0)
    await seam.provider.finish(asyncio.gather(task, return_exceptions=True), 1.0)
    (delivery,) = await seam.drain(await seam.subscribe(queue), within=1.0)
    assert (delivery.message.id, delivery.doubtful) == ("a", True)


async def test_open_and_close_may_be_called_in_any_order_and_again(seam: Seam) -> None:
    """C03: close before open, twice, and open again: a new generation that works; confirmed messages are still there."""
    queue = await seam.queue()
    await seam.put(queue, "a")
    backend: Backend = seam.provider.make()
    await backend.close()
    for _ in range(3):
        await backend.open(seam.lost.append)
        await backend.close()
        await backend.close()
    await seam.open(backend)
    consumer = await backend.subscribe(queue, prefetch=10, lease=30.0)
    assert seam.ids(await seam.drain(consumer)) == ["a"]


async def test_a_closed_backend_refuses_every_call_in_clear_words(seam: Seam) -> None:
    """C04: the error says that it is closed, and is worth another try after `open`."""
    queue = await seam.queue()
    backend = await seam.open()
    consumer = await backend.subscribe(queue, prefetch=10, lease=30.0)
    await backend.close()
    calls: list[Callable[[], Awaitable[object]]] = [
        lambda: backend.publish([Outgoing(queue, seam.message())], timeout=1.0),
        lambda: backend.subscribe(queue, prefetch=1, lease=30.0),
        lambda: backend.declare([]),
        lambda: consumer.receive(1, 0.0),
    ]
    for call in calls:
        with pytest.raises(ConnectionLost, match="closed") as caught:
            await call()
        assert backend.classify(caught.value) is ErrorKind.TRANSIENT


async def test_classify_takes_any_exception(seam: Seam) -> None:
    """G1: what a driver does not know is PERMANENT or TRANSIENT, and never an error of its own."""
    for error in [ValueError("x"), OSError(111, "refused"), TimeoutError(), RuntimeError(), KeyError("k")]:
        assert isinstance(seam.backend.classify(error), ErrorKind)
