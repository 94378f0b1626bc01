"""G11: what is dead-lettered and why, what its record keeps, and how it comes back."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic import BaseModel
from support.faulty import Faults, FaultyBackend, dropped_answer

from mqcore import (
    Broker,
    ConfigurationError,
    DeadLetter,
    Queue,
    QueueNotFound,
    Reject,
    RetryPolicy,
    Router,
    fixed,
)
from mqcore.spi import Ack, Death, Message, Outgoing, Reason
from mqcore.testing import VirtualClock
from mqcore_memory import MemoryBackend

Dead = Callable[[Queue[Any] | str], Awaitable[list[DeadLetter]]]
ONCE = RetryPolicy(1)


class Order(BaseModel):
    number: int


orders = Queue("orders", Order)
raw = Queue("raw")
words = Queue("words", str)


async def kill(broker: Broker, queue: Queue[str], *bodies: str, reason: str = "no") -> None:
    """Publish these and reject each."""
    await broker.publish_many(queue, bodies)
    async with broker.consume(queue) as deliveries:
        for _ in bodies:
            await (await anext(deliveries)).reject(reason)


async def refuse(_: object) -> None:
    raise ValueError("broken")


async def forever(_: object) -> None:
    await asyncio.Event().wait()


async def stored(broker: Broker, queue: str, body: bytes, content_type: str | None) -> None:
    """Store what a publisher of this library never would."""
    message = Message(id="foreign", body=body, content_type=content_type)
    await broker._session.connection.publish([Outgoing(queue, message)], 1)


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [
        (b"{", "application/json", "undecodable"),
        (b"\xff", "text/plain", "undecodable"),
        (b"{}", "application/x-python-pickle", "undecodable"),
        (b"{}", "application/json; charset=klingon", "undecodable"),
        (b"[" * 100_000, "application/json", "undecodable"),
        (b"{}", "application/json", "invalid"),
        (b'{"number": "x"}', None, "invalid"),
        (b'{"number": 1e999}', "application/json", "invalid"),
        (b"null", "application/json", "invalid"),
    ],
)
async def test_what_cannot_be_read_is_kept_byte_for_byte(
    broker: Broker,
    serve: Any,
    dead: Dead,
    clock: VirtualClock,
    body: bytes,
    content_type: str | None,
    reason: str,
) -> None:
    started: list[Order] = []

    async def handler(order: Order) -> None:
        started.append(order)

    await broker.declare(orders)
    await stored(broker, "orders", body, content_type)
    async with serve(orders, handler):
        await clock.settle()
    (letter,) = await dead(orders)
    assert (letter.reason, letter.body, letter.message.content_type) == (reason, body, content_type)
    assert letter.attempts == 0
    assert not started


async def test_the_pull_api_never_sees_what_cannot_be_read(broker: Broker, dead: Dead) -> None:
    await broker.declare(orders)
    await stored(broker, "orders", b"{", "application/json")
    await broker.publish(orders, Order(number=1))
    async with broker.consume(orders) as deliveries:
        assert (await anext(deliveries)).value == Order(number=1)
    assert [letter.reason for letter in await dead(orders)] == ["undecodable"]


async def test_a_foreign_message_is_a_first_attempt_of_default_priority(broker: Broker) -> None:
    await broker.declare(orders)
    await stored(broker, "orders", b'{"number": 7}', None)
    async with broker.consume(orders) as deliveries:
        delivery = await anext(deliveries)
    assert (delivery.value, delivery.attempt, delivery.priority) == (Order(number=7), 1, 5)


async def test_a_timeout_is_its_own_reason(
    broker: Broker, serve: Any, dead: Dead, clock: VirtualClock
) -> None:
    await broker.publish(words, "x")
    async with serve(words, forever, timeout=30, retry=RetryPolicy(2, fixed(1))):
        await clock.advance(61)
    (letter,) = await dead(words)
    assert (letter.reason, letter.attempts) == ("timeout", 2)
    assert letter.death.error_type == "mqcore.errors.HandlerTimeout"


async def test_overflow_takes_the_oldest_of_the_lowest_priority(broker: Broker, dead: Dead) -> None:
    small = Queue("small", str, max_length=2, overflow="dead_letter")
    await broker.publish(small, "old", priority=3)
    await broker.publish(small, "older but higher", priority=8)
    await broker.publish(small, "new", priority=3)
    (letter,) = await dead(small)
    assert (letter.reason, letter.body, letter.attempts) == ("overflow", b"old", 0)
    assert (await broker.counts(small))[0].ready == 2


async def test_the_record(broker: Broker, serve: Any, dead: Dead, clock: VirtualClock) -> None:
    body = bytes(range(256))
    began = clock.now()
    await broker.publish(raw, body, id="me", priority=9, headers={"tenant": "t", "note": "ümläut"})
    async with serve(raw, refuse, retry=RetryPolicy(3, fixed(10))):
        await clock.advance(30)
    (letter,) = await dead(raw)
    assert (letter.id, letter.body, letter.message.priority) == ("me", body, 9)
    assert dict(letter.headers) == {"tenant": "t", "note": "ümläut"}
    assert (letter.reason, letter.queue, letter.attempts) == ("retries_exhausted", "raw", 3)
    assert (letter.death.first_at, letter.death.last_at) == (began, began + 20)
    assert letter.error == "ValueError: broken"
    assert "in refuse" in letter.death.traceback


async def test_without_a_dead_letter_queue_it_is_dropped_and_counted(
    broker: Broker, serve: Any, clock: VirtualClock
) -> None:
    loose = Queue("loose", str, dead_letter=None)
    await broker.publish(loose, "x")
    async with serve(loose, refuse, retry=ONCE):
        await clock.settle()
    assert broker.events.counts["message.dropped"] == 1
    assert (await broker.counts(loose))[0].ready == 0
    with pytest.raises(QueueNotFound):
        await broker.dead_letters(loose).list()


async def test_filters(broker: Broker, clock: VirtualClock) -> None:
    await kill(broker, words, "a", reason="first reason")
    await clock.advance(100)
    await kill(broker, words, "b", "c", reason="second reason")
    letters = broker.dead_letters(words)

    async def bodies(**wanted: Any) -> list[bytes]:
        return [letter.body for letter in await letters.list(**wanted)]

    then = clock.now() - 50
    ids = [letter.id for letter in await letters.list()]
    assert await bodies() == [b"a", b"b", b"c"]
    assert await bodies(limit=2) == [b"a", b"b"]
    assert await bodies(reason="rejected") == [b"a", b"b", b"c"]
    assert await bodies(reason="expired") == []
    assert await bodies(queue="words", error="second") == [b"b", b"c"]
    assert await bodies(queue="other") == []
    assert await bodies(before=then) == [b"a"]
    assert await bodies(after=then) == [b"b", b"c"]
    assert await bodies(ids=[ids[2], ids[0]]) == [b"a", b"c"]
    found = await letters.get(ids[1])
    assert found is not None
    assert found.body == b"b"
    assert await letters.get("nobody") is None


@pytest.mark.parametrize("wanted", [{"reason": "bored"}, {"colour": "red"}])
async def test_an_unknown_filter_is_an_error(broker: Broker, wanted: dict[str, Any]) -> None:
    await broker.declare(words)
    with pytest.raises(ConfigurationError):
        await broker.dead_letters(words).list(**wanted)
    with pytest.raises(ConfigurationError):
        await broker.dead_letters(words).purge(**wanted)


async def test_redrive_all_begins_anew(
    broker: Broker, serve: Any, dead: Dead, clock: VirtualClock
) -> None:
    await broker.publish(words, "x", id="me", priority=8, headers={"k": "v"}, ttl=5)
    async with serve(words, refuse, retry=ONCE):
        await clock.settle()
    await clock.advance(1000)  # long past its ttl
    done = await broker.dead_letters(words).redrive()
    assert (done.moved, dict(done.left)) == (("me",), {})
    assert await dead(words) == []
    async with broker.consume(words) as deliveries:
        again = await anext(deliveries)
    assert (again.id, again.value, again.attempt, again.priority) == ("me", "x", 1, 8)
    assert (dict(again.headers), again.redriven) == ({"k": "v"}, 1)


async def test_redrive_one_some_and_elsewhere(broker: Broker, dead: Dead) -> None:
    await kill(broker, words, "a", "b", "c", "d")
    other = Queue("other", str)
    await broker.declare(other)
    letters = broker.dead_letters(words)
    ids = [letter.id for letter in await letters.list()]
    assert (await letters.redrive(ids=[ids[1]])).moved == (ids[1],)
    assert (await letters.redrive(to="other", limit=1)).moved == (ids[0],)
    assert (await letters.redrive(reason="expired")).moved == ()
    assert [letter.body for letter in await dead(words)] == [b"c", b"d"]
    assert [entry.message.body for entry in await broker.peek(other)] == [b"a"]
    assert [entry.message.body for entry in await broker.peek(words)] == [b"b"]


async def test_a_redrive_to_a_missing_queue_leaves_it_where_it_is(
    broker: Broker, dead: Dead
) -> None:
    await kill(broker, words, "a")
    done = await broker.dead_letters(words).redrive(to="nowhere")
    assert done.moved == ()
    assert "nowhere" in next(iter(done.left.values()))
    (letter,) = await dead(words)
    assert (letter.reason, letter.message.redriven) == ("rejected", 0)


async def test_a_redrive_loop_is_stopped_unless_forced(broker: Broker, dead: Dead) -> None:
    await kill(broker, words, "a")
    letters = broker.dead_letters(words)
    async with broker.consume(words) as deliveries:
        for _ in range(5):
            assert len((await letters.redrive()).moved) == 1
            await (await anext(deliveries)).reject()
        stopped = await letters.redrive()
        assert stopped.moved == ()
        assert "5 times" in next(iter(stopped.left.values()))
        assert len((await letters.redrive(force=True)).moved) == 1


async def test_concurrent_redrives_move_each_once(
    broker: Broker, other: Broker, dead: Dead
) -> None:
    bodies = [str(n) for n in range(450)]
    await kill(broker, words, *bodies)
    first, second = await asyncio.gather(
        broker.dead_letters(words).redrive(), other.dead_letters("words").redrive()
    )
    assert len(first.moved) + len(second.moved) == len(set(first.moved + second.moved)) == 450
    assert await dead(words) == []
    assert sorted(
        entry.message.body.decode() for entry in await broker.peek(words, 1000)
    ) == sorted(bodies)


async def test_a_redrive_does_not_meet_what_comes_back(
    broker: Broker, serve: Any, dead: Dead, clock: VirtualClock
) -> None:
    await broker.publish_many(words, [str(n) for n in range(300)])
    async with serve(words, refuse, retry=ONCE):
        await clock.settle()
        done = await broker.dead_letters(words).redrive()
        await clock.settle()
    assert len(done.moved) == 300
    assert {letter.message.redriven for letter in await broker.dead_letters(words).list(1000)} == {
        1
    }


async def test_a_routed_message_dies_in_each_of_its_queues(
    broker: Broker, serve: Any, clock: VirtualClock
) -> None:
    """Two queues share a dead-letter queue: neither copy of one id hides the other."""
    one, two = (Queue(name, str, dead_letter="graves") for name in ("one", "two"))
    router = Router("all", str, kind="fanout").bind(one).bind(two)
    await broker.publish(router, "x", id="me")
    async with serve(one, refuse, retry=ONCE), serve(two, refuse, retry=ONCE):
        await clock.settle()
    letters = broker.dead_letters("graves")
    assert sorted(letter.queue for letter in await letters.list()) == ["one", "two"]
    done = await letters.redrive()
    assert done.moved == ("me", "me")
    assert [(await broker.counts(queue))[0].ready for queue in (one, two)] == [1, 1]


async def test_of_a_shared_dead_letter_queue_each_queue_sees_its_own(broker: Broker) -> None:
    one, two = (Queue(name, str, dead_letter="graves") for name in ("one", "two"))
    await kill(broker, one, "a", "b")
    await kill(broker, two, "c")
    assert [letter.body for letter in await broker.dead_letters(two).list()] == [b"c"]
    assert len(await broker.dead_letters("graves").list()) == 3
    assert await broker.dead_letters(two).purge() == 1
    await broker.dead_letters("graves").redrive()
    assert [(await broker.counts(queue))[0].ready for queue in (one, two)] == [2, 0]


async def test_copies_of_one_routed_message_stay_two_wherever_they_meet(broker: Broker) -> None:
    one, two = (Queue(name, str, dead_letter="graves") for name in ("one", "two"))
    both = Router("both", str, kind="fanout").bind(one).bind(two)
    await broker.declare(both, Queue("manual", str))
    receipt = await broker.publish(both, "a")
    for queue in (one, two):
        async with broker.consume(queue) as deliveries:
            async for delivery in deliveries:
                await delivery.reject()
                break
    moved = await broker.dead_letters("graves").redrive(to="manual")
    assert moved.moved == (receipt.id, receipt.id)
    assert (await broker.counts("manual"))[0].ready == 2, (
        "G3: each Move stored a successor before its source went"
    )


async def test_what_a_consumer_of_dead_letters_fails_goes_to_its_end(
    broker: Broker, serve: Any, clock: VirtualClock
) -> None:
    await kill(broker, words, "a", "b", reason="first death")
    seen: list[str] = []

    async def handler(word: str) -> None:
        seen.append(word)
        raise Reject("the second death")

    async with serve(
        Queue("words.dlq", str, declare=False), handler, concurrency=1, prefetch=1, run={"grace": 0}
    ):
        await clock.settle()
        assert seen == ["a", "b"], "what has failed waits before it comes round again"
        await clock.advance(2.5)
    assert seen == ["a", "b"] * 3
    letters = await broker.dead_letters(words).list()
    assert sorted(letter.body for letter in letters) == [b"a", b"b"]
    assert {letter.death.error for letter in letters} == {"first death"}


async def test_a_consumer_of_dead_letters_can_finish_them(
    broker: Broker, serve: Any, clock: VirtualClock
) -> None:
    await kill(broker, words, "a")

    async def handler(word: str) -> None:
        return

    async with serve("words.dlq", handler):
        await clock.settle()
    assert await broker.dead_letters(words).list() == []


async def test_purge_all_and_filtered(broker: Broker, dead: Dead) -> None:
    await kill(broker, words, "a", "b", reason="x")
    await kill(broker, words, "c", reason="y")
    assert await broker.dead_letters(words).purge(error="x") == 2
    assert [letter.body for letter in await dead(words)] == [b"c"]
    assert await broker.dead_letters(words).purge() == 1
    assert await dead(words) == []


async def test_retention_lets_dead_letters_go(
    broker: Broker, dead: Dead, clock: VirtualClock
) -> None:
    brief = Queue("brief", str, retention=100)
    await kill(broker, brief, "a")
    await clock.advance(60)
    await kill(broker, brief, "b")
    await clock.advance(50)
    assert [letter.body for letter in await dead(brief)] == [b"b"]
    await clock.advance(60)
    assert await dead(brief) == []


async def test_looking_changes_nothing(broker: Broker, dead: Dead) -> None:
    await kill(broker, words, "a", "b", "c")
    before = await broker.counts("words.dlq")
    first = await broker.peek("words.dlq", 2)
    rest = await broker.peek("words.dlq", 2, after=first[-1].key)
    assert [entry.message.body for entry in [*first, *rest]] == [b"a", b"b", b"c"]
    await dead(words)
    assert await broker.counts("words.dlq") == before
    async with broker.consume("words.dlq") as deliveries:
        delivery = await anext(deliveries)
        assert (delivery.value, delivery.redelivered) == (b"a", False)


async def test_by_name_alone(broker: Broker, other: Broker) -> None:
    await kill(broker, words, "a")
    for name in ("words", "words.dlq"):
        assert [letter.body for letter in await other.dead_letters(name).list()] == [b"a"]
    with pytest.raises(QueueNotFound):
        await other.dead_letters("nowhere").list()


async def test_what_somebody_put_there_by_hand_is_told_as_such(broker: Broker) -> None:
    await broker.declare(words)
    await broker.publish("words.dlq", "by hand")
    letters = broker.dead_letters(words)
    (letter,) = await letters.list()
    assert "published directly" in letter.error
    assert (await letters.redrive()).moved == ()
    assert len((await letters.redrive(to="words")).moved) == 1


async def test_what_was_forged_into_a_record_changes_no_rule(broker: Broker) -> None:
    await broker.declare(words)
    death = Death(
        reason=Reason.CRASHED, queue="nowhere", attempts=10**6, first_at=-1, last_at=float("nan")
    )
    message = Message(id="forged", body=b"x", death=death)
    await broker._session.connection.publish([Outgoing("words.dlq", message)], 1)
    letters = broker.dead_letters(words)
    assert [letter.queue for letter in await letters.list()] == ["nowhere"]
    assert "nowhere" in (await letters.redrive()).left["forged"]


@pytest.mark.parametrize("point", ["take", "settle"])
async def test_an_interrupted_redrive_releases_what_it_holds_at_once(
    faulty: Broker, faults: Faults, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Otherwise its messages would be out of reach until their lease ends."""
    await kill(faulty, words, *"abc")
    began = asyncio.Event()
    take = FaultyBackend.take

    async def slow(self: FaultyBackend, *args: Any) -> Any:
        taken = await take(self, *args)
        began.set()
        await asyncio.sleep(0.05)
        return taken

    async def never(*_: Any) -> Any:
        began.set()
        await asyncio.Event().wait()

    if point == "take":
        monkeypatch.setattr(FaultyBackend, "take", slow)
    else:
        faults.next("settle", never)
    redrive = asyncio.create_task(faulty.dead_letters(words).redrive())
    await began.wait()
    redrive.cancel()
    with pytest.raises(asyncio.CancelledError):
        await redrive
    (counts,) = await faulty.counts("words.dlq")
    assert (counts.ready, counts.leased) == (3, 0)
    done = await faulty.dead_letters(words).redrive()
    assert (len(done.moved), dict(done.left)) == (3, {})


async def test_an_interrupted_redrive_does_not_release_what_it_is_moving(
    faulty: Broker, faults: Faults
) -> None:
    """Otherwise, where a Move takes two steps, the message would be in two queues (G3)."""
    await kill(faulty, words, *"abc")
    began = asyncio.Event()

    async def two_steps(backend: FaultyBackend, do: Any, batch: Any) -> Any:
        await MemoryBackend.publish(backend, [item.to for item in batch], timeout=1)
        began.set()
        await asyncio.sleep(0.05)
        return await do([Ack(item.receipt) for item in batch])

    faults.next("settle", two_steps)
    redrive = asyncio.create_task(faulty.dead_letters(words).redrive())
    await began.wait()
    redrive.cancel()
    with pytest.raises(asyncio.CancelledError):
        await redrive
    assert await faulty.dead_letters(words).list() == []
    assert sorted(entry.message.body for entry in await faulty.peek(words)) == [b"a", b"b", b"c"]


async def test_a_letter_without_an_answer_is_not_said_to_have_stayed(
    faulty: Broker, faults: Faults
) -> None:
    await kill(faulty, words, "a")
    faults.next("settle", dropped_answer())
    (why,) = (await faulty.dead_letters(words).redrive()).left.values()
    assert why.startswith("it may or may not have been moved")


async def test_a_letter_that_another_consumer_keeps_is_left_and_said_so(
    broker: Broker, other: Broker
) -> None:
    await kill(broker, words, "a", "b")
    subscription = await other._session.connection.backend.subscribe(
        "words.dlq", prefetch=1, lease=30
    )
    dead_letters = broker.dead_letters(words)
    chosen = [letter.id for letter in await dead_letters.list()]
    redrive = dead_letters.redrive

    plain = dead_letters.list

    async def then_taken(*args: Any, **wanted: Any) -> Any:
        letters = await plain(*args, **wanted)
        assert len(await subscription.receive(1, 1)) == 1
        return letters

    dead_letters.list = then_taken  # type: ignore[method-assign]  # somebody else is quicker
    done = await redrive()
    assert done.moved == (chosen[1],)
    assert "another consumer of 'words.dlq' holds it" in done.left[chosen[0]]
