"""G1: a publish has three endings, and G17: what is published is a copy."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from support.faulty import (
    Broken,
    Faults,
    WrongPassword,
    dropped_answer,
    failed,
    hung,
    lost,
    lost_answer,
    plugin_for,
    raised,
    slow,
)
from support.waiting import eventually

from mqcore import (
    Blocked,
    Broker,
    BrokerError,
    ConnectionLost,
    Limits,
    MessageTooLarge,
    PublishFailed,
    PublishUnknown,
    Queue,
    QueueFull,
    QueueNotFound,
    Receipt,
    Router,
    Settings,
    TopologyMismatch,
    Unroutable,
    UnsupportedFeature,
    ValidationError,
)
from mqcore.config.plugins import Plugins
from mqcore.rules.capabilities import Capability
from mqcore.spi import ErrorKind
from mqcore.testing import VirtualClock

numbers = Queue("numbers", int)
letters = Queue("letters", str)


async def ready(broker: Broker, queue: Queue[int] | str = numbers) -> int:
    return (await broker.counts(queue))[0].ready


async def test_a_receipt_names_id_and_queue(broker: Broker) -> None:
    receipt = await broker.publish(numbers, 1, id="mine")
    assert receipt == Receipt("mine", ("numbers",), duplicate=False)
    assert await ready(broker) == 1


async def test_one_copy_by_id_and_the_receipt_says_so(broker: Broker) -> None:
    await broker.publish(numbers, 1, id="a")
    assert (await broker.publish(numbers, 1, id="a")).duplicate
    assert await ready(broker) == 1


async def test_one_copy_by_id_after_the_ack(broker: Broker) -> None:
    await broker.publish(numbers, 1, id="a")
    async with broker.consume(numbers) as deliveries:
        await (await anext(deliveries)).ack()
        assert (await broker.publish(numbers, 1, id="a")).duplicate
        assert await deliveries.get(timeout=0) is None


async def test_the_dedup_window_ends(broker: Broker, clock: VirtualClock) -> None:
    await broker.publish(numbers, 1, id="a")
    await clock.advance(601)
    assert not (await broker.publish(numbers, 1, id="a")).duplicate


async def test_the_same_id_in_two_queues_is_two_messages(broker: Broker) -> None:
    await broker.publish(numbers, 1, id="a")
    assert not (await broker.publish(Queue("others", int), 1, id="a")).duplicate


async def test_a_bare_name_never_declares(broker: Broker) -> None:
    with pytest.raises(QueueNotFound, match="'nowhere'") as caught:
        await broker.publish("nowhere", b"x", id="a")
    assert caught.value.id == "a"
    with pytest.raises(QueueNotFound):
        await broker.counts("nowhere")


async def test_a_bare_name_reaches_an_existing_queue(broker: Broker) -> None:
    await broker.declare(numbers)
    await broker.publish("numbers", 7)
    async with broker.consume(numbers) as deliveries:
        assert (await anext(deliveries)).value == 7


async def test_no_binding_is_unroutable(broker: Broker) -> None:
    router = Router("r", int).bind(numbers, "a.*")
    with pytest.raises(Unroutable, match=r"a\.\*"):
        await broker.publish(router, 1, key="b.c")
    assert await ready(broker) == 0
    assert broker.events.counts["publish.failed"] == 1


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"priority": 11}, ValidationError),
        ({"priority": -1}, ValidationError),
        ({"priority": True}, ValidationError),
        ({"ttl": 0}, ValidationError),
        ({"ttl": -1}, ValidationError),
        ({"ttl": float("nan")}, ValidationError),
        ({"ttl": "soon"}, ValidationError),
        ({"delay": -1}, ValidationError),
        ({"delay": float("inf")}, ValidationError),
        ({"delay": "later"}, ValidationError),
        ({"delay": 10, "ttl": 10}, ValidationError),
        ({"delay": 1e12}, ValidationError),
        ({"timeout": "never"}, ValidationError),
        ({"timeout": float("nan")}, ValidationError),
        ({"id": ""}, ValidationError),
        ({"id": "with space"}, ValidationError),
        ({"headers": {"mq-attempt": "9"}}, ValidationError),
        ({"headers": {"X-Death": "1"}}, ValidationError),
        ({"headers": {"name": "a\r\nb"}}, ValidationError),
        ({"headers": {"näme": "a"}}, ValidationError),
        ({"headers": {"name": "x" * 5000}}, MessageTooLarge),
        ({"headers": {f"name{i}": "x" for i in range(65)}}, MessageTooLarge),
        ({"key": "k"}, ValidationError),
    ],
    ids=repr,
)
async def test_what_cannot_be_kept_is_refused_before_anything_is_sent(
    faulty: Broker, faults: Faults, options: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        await faulty.publish(numbers, 1, **options)  # type: ignore[arg-type]  # wrong on purpose
    assert faults.calls["publish"] == 0


@pytest.mark.parametrize("payload", ["5", 5.5, None, {"a": 1}, [1]], ids=repr)
async def test_a_wrong_payload_is_refused(faulty: Broker, faults: Faults, payload: object) -> None:
    with pytest.raises(ValidationError, match="numbers"):
        await faulty.publish(numbers, payload)  # type: ignore[arg-type]  # wrong on purpose
    assert faults.calls["publish"] == 0


async def test_too_large_names_both_numbers(clock: VirtualClock, url: str) -> None:
    limits = Limits(payload=10)
    async with Broker.connect(url, clock=clock, settings=Settings(), limits=limits) as broker:
        with pytest.raises(MessageTooLarge, match=r"11 bytes, 10 are"):
            await broker.publish(letters, "x" * 11)


async def test_a_full_queue_refuses(broker: Broker) -> None:
    small = Queue("small", int, max_length=2)
    await broker.publish_many(small, [1, 2])
    with pytest.raises(QueueFull):
        await broker.publish(small, 3)


async def test_the_driver_fails_for_certain(faulty: Broker, faults: Faults) -> None:
    cause = WrongPassword("the driver's own, which it knows")
    faults.next("publish", raised(cause))
    with pytest.raises(PublishFailed) as caught:
        await faulty.publish(numbers, 1)
    assert caught.value.__cause__ is cause
    assert await ready(faulty) == 0


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (ErrorKind.TRANSIENT, Blocked),
        (ErrorKind.PERMANENT, PublishFailed),
        (ErrorKind.NOT_FOUND, QueueNotFound),
        (ErrorKind.TOO_LARGE, MessageTooLarge),
        (ErrorKind.FULL, QueueFull),
        (ErrorKind.DENIED, PublishFailed),
    ],
)
async def test_each_kind_of_refusal_has_its_error(
    faulty: Broker, faults: Faults, kind: ErrorKind, error: type[PublishFailed]
) -> None:
    faults.next(
        "publish", failed(kind), failed(kind)
    )  # a queue that is missing is declared again, and tried once more
    with pytest.raises(error) as caught:
        await faulty.publish(numbers, 1, id="a")
    assert type(caught.value) is error
    assert caught.value.id == "a"


async def test_an_answer_that_never_comes_is_unknown_at_the_deadline(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    await faulty.declare(numbers)
    faults.next("publish", slow(60))
    publishing = asyncio.create_task(faulty.publish(numbers, 1, id="a", timeout=3))
    await clock.advance(2.9)
    assert not publishing.done()
    await clock.advance(0.1)
    with pytest.raises(PublishUnknown) as caught:
        await publishing
    assert caught.value.id == "a"
    await clock.advance(60)
    assert (await faulty.publish(numbers, 1, id="a")).duplicate  # it had been stored, later


async def test_a_deadline_does_not_cancel_the_others_share_of_the_call(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    await faulty.declare(numbers)
    faults.next("publish", slow(0.5))
    faults.next("publish", slow(5))
    first = asyncio.create_task(faulty.publish(numbers, 0))  # alone, so the others share a call
    await asyncio.sleep(0)
    hasty = asyncio.create_task(faulty.publish(numbers, 1, timeout=1))
    patient = asyncio.create_task(faulty.publish(numbers, 2, timeout=10))
    await clock.advance(6)
    assert isinstance(hasty.exception(), PublishUnknown)
    assert patient.result().queues == first.result().queues == ("numbers",)
    assert faults.calls["publish"] == 2


async def test_an_unknown_can_be_published_again(
    faulty: Broker, faults: Faults, broker: Broker
) -> None:
    faults.next("publish", dropped_answer())
    with pytest.raises(PublishUnknown) as caught:
        await faulty.publish(numbers, 1)
    assert (await faulty.publish(numbers, 1, id=caught.value.id)).duplicate
    assert await ready(broker) == 1


async def test_a_loss_before_sending_is_waited_out(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    await faulty.declare(numbers)
    faults.next("publish", lost())
    publishing = asyncio.create_task(faulty.publish(numbers, 1))
    await clock.advance(2)
    assert not publishing.result().duplicate
    assert await ready(faulty) == 1


async def test_a_loss_after_sending_is_unknown(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    await faulty.declare(numbers)
    faults.next("publish", lost_answer())
    with pytest.raises(PublishUnknown):
        await faulty.publish(numbers, 1, id="a")
    await clock.advance(2)
    assert (await faulty.publish(numbers, 1, id="a")).duplicate


@pytest.fixture
async def down(faulty: Broker, faults: Faults, clock: VirtualClock) -> Broker:
    """A broker that does not come back for long."""
    await faulty.declare(numbers)
    faults.next("open", *[raised(Broken("down"))] * 100)
    faults.lose()
    await clock.advance(1)
    return faulty


@pytest.mark.parametrize(
    "to",
    [numbers, "numbers", Queue("new", int), Router("r", int).bind(numbers, "k")],
    ids=["known", "name", "new", "router"],
)
async def test_while_disconnected_a_publish_fails_at_its_deadline(
    down: Broker, clock: VirtualClock, to: Queue[int] | Router[int] | str
) -> None:
    options = {"key": "k"} if isinstance(to, Router) else {}
    publishing = asyncio.create_task(down.publish(to, 1, timeout=3, **options))
    many = asyncio.create_task(down.publish_many(to, [1, 2], timeout=3, **options))
    await clock.advance(2.9)
    assert not publishing.done()
    assert not many.done()
    await clock.advance(0.2)
    assert isinstance(publishing.exception(), PublishFailed)
    assert all(isinstance(ending, PublishFailed) for ending in many.result())


async def test_who_was_told_that_it_failed_is_not_sent_later(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    await faulty.declare(numbers)
    faults.next("open", *[raised(Broken("down"))] * 6)
    faults.lose()
    hasty = asyncio.create_task(faulty.publish(numbers, 1, timeout=0.01))
    patient = asyncio.create_task(faulty.publish(numbers, 2, timeout=60))
    await clock.advance(30)
    assert isinstance(hasty.exception(), PublishFailed)
    assert patient.result().queues == ("numbers",)
    assert [entry.message.body for entry in await faulty.peek(numbers)] == [b"2"]


async def test_closing_answers_everybody_who_waits(down: Broker, clock: VirtualClock) -> None:
    hasty = asyncio.create_task(down.publish(numbers, 1, timeout=1))
    patient = asyncio.create_task(down.publish(numbers, 2, timeout=60))
    await clock.advance(2)
    assert isinstance(hasty.exception(), PublishFailed)
    await down.close()
    with pytest.raises(PublishFailed, match="closed"):
        await patient


async def test_closing_does_not_wait_for_a_driver_that_hangs(
    faulty: Broker, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqcore.connection.sender._LAST_ANSWER", 0.01)
    await faulty.declare(numbers)
    faults.next("publish", hung())
    publishing = asyncio.create_task(faulty.publish(numbers, 1))
    await eventually(lambda: faults.calls["publish"])
    async with asyncio.timeout(3):
        await faulty.close()
    with pytest.raises(PublishUnknown):
        await publishing


@pytest.mark.parametrize(
    "to", [numbers, "numbers", Queue("new", int)], ids=["known", "name", "new"]
)
async def test_a_closed_broker_publishes_no_more(broker: Broker, to: Queue[int] | str) -> None:
    await broker.declare(numbers)
    await broker.close()
    with pytest.raises(PublishFailed, match="closed"):
        await broker.publish(to, 1)


async def test_a_closed_broker_says_so_everywhere(broker: Broker) -> None:
    await broker.close()
    calls: list[Callable[[], object]] = [
        lambda: broker.declare(numbers),
        broker.counts,
        lambda: broker.peek("numbers"),
        lambda: broker.consume(numbers).get(timeout=0),
        lambda: broker.request(numbers, 1),
        broker.open,
    ]
    for call in calls:
        with pytest.raises(BrokerError, match="closed"):
            await call()  # type: ignore[misc]  # each is a coroutine
    await broker.close()
    assert not broker.health().ok


async def test_before_open_nothing_works_and_nothing_hangs(clock: VirtualClock, url: str) -> None:
    broker = Broker.connect(url, clock=clock, settings=Settings())
    for to in (numbers, "numbers"):
        publishing = asyncio.create_task(broker.publish(to, 1))
        await clock.advance(11)
        assert isinstance(publishing.exception(), ConnectionLost | PublishFailed)
    assert not broker.health().connected
    await broker.close()


async def test_an_unsupported_wish_is_refused(
    faulty: Broker, faults: Faults, clock: VirtualClock, url: str
) -> None:
    faults.without = {
        Capability.DELAY,
        Capability.PRIORITY,
        Capability.ROUTING,
        Capability.MAX_LENGTH,
    }
    plugins = Plugins()
    plugins.register(plugin_for(faults))
    where = url.replace("memory", "faulty")
    async with Broker.connect(where, clock=clock, settings=Settings(), plugins=plugins) as poor:
        await poor.publish(numbers, 1)
        calls = faults.calls["publish"]
        for work in (
            lambda: poor.publish(numbers, 1, delay=1),
            lambda: poor.publish(numbers, 1, priority=6),
            lambda: poor.publish(Router("r", int).bind(numbers), 1),
            lambda: poor.publish(Queue("bounded", int, max_length=1), 1),
        ):
            with pytest.raises(UnsupportedFeature, match="faulty"):
                await work()
        assert faults.calls["publish"] == calls


async def test_a_declared_queue_with_other_settings_is_a_mismatch(
    broker: Broker, other: Broker
) -> None:
    await broker.declare(numbers)
    with pytest.raises(TopologyMismatch, match="ttl"):
        await other.publish(Queue("numbers", int, ttl=5), 1)


async def test_payloads_are_copied(broker: Broker) -> None:
    things = Queue("things", list[dict[str, int]])
    payload = [{"a": 1}]
    headers = {"k": "v"}
    await broker.publish(things, payload, headers=headers)
    payload[0]["a"] = 2
    headers["k"] = "w"
    async with broker.consume(things) as deliveries:
        first = await anext(deliveries)
        assert first.value == [{"a": 1}]
        assert first.headers == {"k": "v"}
        first.value[0]["a"] = 3
        await first.release()
        assert (await anext(deliveries)).value == [{"a": 1}]


@pytest.mark.parametrize(
    "error", [RuntimeError("attached to a different loop"), ValueError("a driver's bug")]
)
async def test_an_error_that_the_driver_does_not_know_leaves_the_ending_open(
    faulty: Broker, faults: Faults, error: Exception
) -> None:
    """It was stored before the driver failed: to call that failed would be a lie (G1)."""

    async def stored_and_raised(
        _backend: object, do: Callable[..., Awaitable[object]], batch: object
    ) -> object:
        await do(batch)
        raise error

    faults.next("publish", stored_and_raised, stored_and_raised)

    with pytest.raises(PublishUnknown) as caught:
        await faulty.publish(numbers, 1, id="a")
    assert caught.value.__cause__ is error
    assert await ready(faulty) == 1

    assert [type(ending) for ending in await faulty.publish_many(numbers, [2, 3])] == [
        PublishUnknown
    ] * 2
    assert (await faulty.publish(numbers, 1, id="a")).duplicate, "so it can be published again (G1)"
