"""A broker with a fallback: what is published while the broker is away is stored, in order."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

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
    unclear,
)

import mqcore.sync
from mqcore import (
    Blocked,
    Broker,
    BrokerError,
    ConfigurationError,
    Fallback,
    MessageTooLarge,
    MqcoreError,
    PublishFailed,
    Queue,
    QueueFull,
    QueueNotFound,
    Receipt,
    Router,
    Settings,
    UnsupportedFeature,
    ValidationError,
)
from mqcore.cli import main
from mqcore.config.plugins import Plugins
from mqcore.publishing.spool import DEAD, lane_name
from mqcore.rules.capabilities import Capability
from mqcore.spi import ErrorKind
from mqcore.testing import VirtualClock, memory_url

numbers = Queue("numbers", int)
AWAY = 10_000

Connect = Callable[..., Broker]


@pytest.fixture(params=["memory", "sqlite"])
def spool(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return memory_url() if request.param == "memory" else f"sqlite:///{tmp_path}/spool.db"


@pytest.fixture
def connect(clock: VirtualClock, url: str, faults: Faults, spool: str) -> Connect:
    """Make an application's broker: its server fails as the test says, and it has a fallback."""
    plugins = Plugins()
    plugins.register(plugin_for(faults))

    def connect(fallback: str | Fallback = spool, **options: Any) -> Broker:
        where = url.replace("memory://", "faulty://")
        given = {"settings": Settings(), **options}
        return Broker.connect(where, clock=clock, plugins=plugins, fallback=fallback, **given)

    return connect


def is_away(faults: Faults) -> None:
    """The server is away until `is_back`, for new connections too."""
    faults.next("open", *[raised(Broken("no server"))] * AWAY)
    faults.lose()


def is_back(faults: Faults) -> None:
    faults.forget("open")


async def until(clock: VirtualClock, condition: Callable[[], object], within: float = 60.0) -> None:
    """Advance until the condition holds."""
    end = clock.monotonic() + within
    while not condition():
        assert clock.monotonic() < end, "it did not happen in time"
        await clock.advance(0.1)


async def ended(clock: VirtualClock, call: Any) -> Any:
    """Return what a call returns, and move the clock until then."""
    task = asyncio.ensure_future(call)
    while not task.done():
        await clock.advance(0.1)
    return await task


async def numbers_in(broker: Broker, queue: str = "numbers") -> list[int]:
    return [int(entry.message.body) for entry in await broker.peek(queue, limit=10_000)]


@asynccontextmanager
async def opened(broker: Broker, clock: VirtualClock) -> AsyncIterator[Broker]:
    await broker.open()
    try:
        yield broker
    finally:
        await ended(clock, broker.close())


def depth(app: Broker) -> int:
    health = app.health().spool
    assert health is not None
    return health.depth


async def test_nothing_is_spooled_while_the_broker_is_there(
    connect: Connect, broker: Broker, clock: VirtualClock
) -> None:
    async with opened(connect(), clock) as app:
        receipt = await app.publish(numbers, 1, id="a")
        assert receipt == Receipt("a", ("numbers",))
        health = app.health()
        assert (health.ok, health.degraded) == (True, False)
        assert await numbers_in(broker) == [1]


@pytest.mark.parametrize(
    "fault",
    [lost(), lost_answer(), dropped_answer(), hung(), failed(ErrorKind.TRANSIENT)],
    ids=["lost", "lost-answer", "no-answer", "hung", "transient"],
)
async def test_a_publish_without_an_answer_is_spooled_and_arrives_once(
    connect: Connect, broker: Broker, clock: VirtualClock, faults: Faults, fault: Any
) -> None:
    async with opened(connect(), clock) as app:
        await app.publish(numbers, 0)
        faults.next("publish", fault)
        receipt = await ended(clock, app.publish(numbers, 1, id="a"))
        assert receipt.id == "a"
        await until(clock, lambda: not app.health().degraded)
        assert await numbers_in(broker) == [0, 1]
        assert app.events.counts["publish.failed"] == app.events.counts["publish.unknown"] == 0


async def test_a_lost_answer_of_a_router_is_spooled(
    connect: Connect, broker: Broker, clock: VirtualClock, faults: Faults
) -> None:
    router = Router("events", int, kind="fanout")
    router.bind(numbers)
    async with opened(connect(routers=[router]), clock) as app:
        faults.next("publish", unclear())
        assert (await ended(clock, app.publish(router, 1))).spooled
        await until(clock, lambda: not app.health().degraded)
        assert await numbers_in(broker) == [1]


async def test_publishes_while_the_broker_is_away_arrive_in_order_when_it_is_back(
    connect: Connect, broker: Broker, clock: VirtualClock, faults: Faults
) -> None:
    async with opened(connect(), clock) as app:
        await app.publish(numbers, 0)
        is_away(faults)
        for each in range(1, 50):
            receipt = await ended(clock, app.publish(numbers, each))
            assert receipt.spooled
        health = app.health()
        assert health.degraded
        assert health.ok
        assert depth(app) == 49
        await clock.advance(30.0)
        assert health.spool is not None
        assert (after := app.health().spool) is not None
        assert after.age >= 30.0

        is_back(faults)
        await until(clock, lambda: not app.health().degraded)
        assert await numbers_in(broker) == list(range(50))
        assert not (await app.publish(numbers, 50)).spooled
        assert app.events.counts["message.spooled"] == 49
        assert app.events.counts["message.relayed"] == 49


async def test_publishes_beside_the_relay_do_not_overtake_it(
    connect: Connect, broker: Broker, clock: VirtualClock, faults: Faults
) -> None:
    """One publish after another, before, during and after the outage and the relaying."""
    async with opened(connect(), clock) as app:
        spooled: list[bool] = []

        async def publish() -> None:
            for each in range(400):
                spooled.append((await app.publish(numbers, each)).spooled)
                await clock.sleep(0.01)

        publishing = asyncio.create_task(publish())
        await clock.advance(0.5)
        is_away(faults)
        await clock.advance(1.0)
        is_back(faults)
        await until(clock, publishing.done)
        await publishing
        await until(clock, lambda: not app.health().degraded)
        assert await numbers_in(broker) == list(range(400))
        assert any(spooled), "some went through the spool"
        assert spooled[-1] is False


async def test_publishes_at_the_same_moment_keep_their_order(
    connect: Connect, broker: Broker, clock: VirtualClock, faults: Faults
) -> None:
    async with opened(connect(), clock) as app:
        await app.publish(numbers, 0)
        faults.next("publish", lost())
        calls = [app.publish(numbers, each) for each in range(1, 30)]
        receipts = await ended(clock, asyncio.gather(*calls))
        assert all(isinstance(receipt, Receipt) for receipt in receipts)
        await until(clock, lambda: not app.health().degraded)
        assert await numbers_in(broker) == list(range(30))


async def test_what_was_in_flight_is_spooled_before_what_came_later(
    connect: Connect, broker: Broker, clock: VirtualClock, faults: Faults
) -> None:
    async with opened(connect(), clock) as app:
        await app.publish(numbers, 0)
        faults.next("publish", hung())
        first = asyncio.create_task(app.publish(numbers, 1))
        await clock.advance(0.2)
        is_away(faults)
        later = [asyncio.create_task(app.publish(numbers, each)) for each in (2, 3)]
        await until(clock, lambda: first.done() and all(each.done() for each in later))
        is_back(faults)
        await until(clock, lambda: not app.health().degraded)
        assert await numbers_in(broker) == [0, 1, 2, 3]


async def test_a_cancelled_publish_holds_up_nothing(
    connect: Connect, broker: Broker, clock: VirtualClock, faults: Faults
) -> None:
    async with opened(connect(), clock) as app:
        await app.publish(numbers, 0)
        faults.next("publish", hung())
        first = asyncio.create_task(app.publish(numbers, 1))
        await clock.advance(0.2)
        is_away(faults)
        second = asyncio.create_task(app.publish(numbers, 2))
        await clock.advance(0.1)
        first.cancel()
        await until(clock, second.done)
        assert (await second).spooled
        is_back(faults)
        await until(clock, lambda: not app.health().degraded)
        assert (await numbers_in(broker))[-1] == 2


@pytest.mark.parametrize("turns", range(12))
async def test_a_publish_that_is_cancelled_at_any_moment_harms_no_other(
    connect: Connect, broker: Broker, clock: VirtualClock, faults: Faults, turns: int
) -> None:
    async with opened(connect(), clock) as app:
        await app.publish(numbers, 0)
        is_away(faults)
        victim = asyncio.create_task(app.publish(numbers, 1))
        for _ in range(turns):
            await asyncio.sleep(0)
        victim.cancel()
        receipt = await ended(clock, app.publish(numbers, 2))
        assert receipt.spooled
        is_back(faults)
        await until(clock, lambda: not app.health().degraded)
        assert [each for each in await numbers_in(broker) if each != 1] == [0, 2]


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (ErrorKind.FULL, QueueFull),
        (ErrorKind.NOT_FOUND, QueueNotFound),
        (ErrorKind.TOO_LARGE, MessageTooLarge),
        (ErrorKind.DENIED, PublishFailed),
        (ErrorKind.PERMANENT, PublishFailed),
    ],
)
async def test_what_the_broker_refuses_is_reported(
    connect: Connect,
    clock: VirtualClock,
    faults: Faults,
    kind: ErrorKind,
    error: type[PublishFailed],
) -> None:
    async with opened(connect(), clock) as app:
        await app.publish(numbers, 0)
        faults.next("publish", failed(kind), failed(kind))
        with pytest.raises(error):
            await app.publish(numbers, 1)
        assert not app.health().degraded
        assert app.events.counts["publish.failed"] == 1
        assert app.events.counts["message.spooled"] == 0


async def test_wrong_values_are_refused_while_the_broker_is_away(
    connect: Connect, clock: VirtualClock, faults: Faults
) -> None:
    async with opened(connect(), clock) as app:
        is_away(faults)
        for options in ({"ttl": -1.0}, {"key": "a"}, {"priority": 99}, {"delay": 5.0, "ttl": 1.0}):
            with pytest.raises(ValidationError):
                await app.publish(numbers, 1, **options)
        with pytest.raises(ValidationError):
            await app.publish(numbers, "text")  # type: ignore[arg-type]  # the wrong type
        assert depth(app) == 0


async def test_a_batch_is_spooled_in_order(
    connect: Connect, broker: Broker, clock: VirtualClock, faults: Faults
) -> None:
    async with opened(connect(), clock) as app:
        await app.publish_many(numbers, [0, 1])
        is_away(faults)
        results = await ended(clock, app.publish_many(numbers, range(2, 1500)))
        assert all(isinstance(each, Receipt) and each.spooled for each in results)
        assert await app.publish_many(numbers, []) == []
        is_back(faults)
        await until(clock, lambda: not app.health().degraded)
        assert await numbers_in(broker) == list(range(1500))


async def test_priorities_delay_and_ttl_survive_the_spool(
    connect: Connect, broker: Broker, clock: VirtualClock, faults: Faults
) -> None:
    async with opened(connect(), clock) as app:
        await app.declare(numbers)
        is_away(faults)
        await ended(clock, app.publish(numbers, 1, priority=2))
        await ended(clock, app.publish(numbers, 2, priority=9, headers={"a": "b"}))
        await ended(clock, app.publish(numbers, 3, delay=600.0, ttl=1200.0))
        await clock.advance(100.0)
        is_back(faults)
        await until(clock, lambda: not app.health().degraded)
        high, low, delayed = await broker.peek("numbers")
        assert (high.message.body, low.message.body) == (b"2", b"1")
        assert (high.message.priority, dict(high.message.headers)) == (9, {"a": "b"})
        assert 480 < delayed.due_in < 500


async def test_a_queue_s_own_ttl_counts_from_the_publish(
    connect: Connect, broker: Broker, clock: VirtualClock, faults: Faults
) -> None:
    short = Queue("short", int, ttl=60.0)
    async with opened(connect(), clock) as app:
        await app.declare(short)
        is_away(faults)
        await ended(clock, app.publish(short, 1))
        await clock.advance(90.0)
        is_back(faults)
        await until(clock, lambda: not app.health().degraded)
        await clock.advance(1.0)
        async with broker.consume(short) as deliveries:
            assert await deliveries.get(timeout=0) is None
        (letter,) = await broker.dead_letters(short).list()
        assert letter.reason == "expired"


async def test_a_spool_that_is_full_refuses(
    connect: Connect, clock: VirtualClock, faults: Faults, spool: str
) -> None:
    async with opened(connect(Fallback(url=spool, max_length=2)), clock) as app:  # type: ignore[arg-type]  # a text is a URL
        is_away(faults)
        for each in range(2):
            await ended(clock, app.publish(numbers, each))
        with pytest.raises(
            QueueFull, match=r"the broker does not take it .* spool .* is full|max_length=2"
        ):
            await ended(clock, app.publish(numbers, 2))
        await ended(clock, app.publish("others", b"1"))
        assert app.events.counts["publish.failed"] == 1


async def test_the_limit_of_a_spool_may_change(
    connect: Connect, broker: Broker, clock: VirtualClock, faults: Faults, spool: str
) -> None:
    is_away(faults)
    for limit in (2, 3):
        async with opened(connect(Fallback(url=spool, max_length=limit)), clock) as app:  # type: ignore[arg-type]  # a text is a URL
            for each in range(limit - depth(app)):
                await ended(clock, app.publish(numbers, each))
            with pytest.raises(QueueFull, match=f"max_length={limit}"):
                await ended(clock, app.publish(numbers, 9))


async def test_the_application_starts_while_the_broker_is_away(
    connect: Connect, broker: Broker, clock: VirtualClock, faults: Faults
) -> None:
    own = Queue("own", int, ttl=600.0)
    is_away(faults)
    async with opened(connect(queues=[own]), clock) as app:
        assert not app.health().connected
        await app.declare(Queue("declared", int))
        await ended(clock, app.publish(own, 1))
        await ended(clock, app.publish(numbers, 2))
        is_back(faults)
        await until(clock, lambda: not app.health().degraded)
        assert await numbers_in(broker, "own") == [1]
        assert await numbers_in(broker) == [2]
        names = {counts.name for counts in await broker.counts()}
        assert {"declared", "own", "own.dlq", "numbers.dlq"} <= names


async def test_a_wrong_password_is_not_an_outage(
    connect: Connect, clock: VirtualClock, faults: Faults
) -> None:
    faults.next("open", raised(WrongPassword("no")))
    with pytest.raises(BrokerError, match="WrongPassword"):
        await connect().open()


async def test_routes_are_resolved_when_the_broker_is_back(
    connect: Connect, broker: Broker, clock: VirtualClock, faults: Faults
) -> None:
    router = Router("events", int, kind="topic")
    router.bind(numbers, "order.*")
    is_away(faults)
    async with opened(connect(), clock) as app:
        receipt = await ended(clock, app.publish(router, 1, key="order.new"))
        assert (receipt.queues, receipt.spooled) == (("events",), True)
        is_back(faults)
        await until(clock, lambda: not app.health().degraded)
        assert await numbers_in(broker) == [1]


async def test_what_a_crashed_application_left_is_relayed_by_the_next_one(
    connect: Connect, broker: Broker, clock: VirtualClock, faults: Faults
) -> None:
    is_away(faults)
    async with opened(connect(), clock) as app:
        for each in range(3):
            await ended(clock, app.publish(numbers, each))
    async with opened(connect(), clock) as app:
        assert depth(app) == 3
        assert (await ended(clock, app.publish(numbers, 3))).spooled
        is_back(faults)
        await until(clock, lambda: not app.health().degraded)
        assert await numbers_in(broker) == [0, 1, 2, 3]


async def test_what_waits_is_relayed_as_soon_as_the_application_has_started(
    connect: Connect, broker: Broker, clock: VirtualClock, faults: Faults
) -> None:
    is_away(faults)
    async with opened(connect(), clock) as app:
        await app.declare(numbers)
        await ended(clock, app.publish(numbers, 1))
    is_back(faults)
    began = clock.monotonic()
    async with opened(connect(), clock) as app:
        await until(clock, lambda: app.events.counts["message.relayed"] == 1)
        assert clock.monotonic() - began < 2.0


async def test_what_another_process_left_is_found(
    connect: Connect, broker: Broker, clock: VirtualClock, faults: Faults
) -> None:
    async with opened(connect(), clock) as app:
        await app.declare(numbers)
        is_away(faults)
        async with opened(connect(), clock) as other:
            await ended(clock, other.publish(numbers, 1))
        is_back(faults)
        await until(clock, lambda: app.events.counts["message.relayed"] == 1)
        assert await numbers_in(broker) == [1]


async def test_what_the_broker_refuses_later_is_a_dead_letter_of_the_spool(
    connect: Connect, clock: VirtualClock, faults: Faults, spool: str, broker: Broker
) -> None:
    async with opened(connect(), clock) as app:
        is_away(faults)
        await ended(clock, app.publish("nowhere", b"1"))
        await ended(clock, app.publish(numbers, 2))
        is_back(faults)
        await until(clock, lambda: not app.health().degraded)
        assert await numbers_in(broker) == [2]
    async with Broker.connect(spool, clock=clock, settings=Settings()) as store:
        (letter,) = await store.dead_letters(DEAD).list()
        assert letter.reason == "unroutable"
        assert letter.queue == lane_name("nowhere", is_router=False)


async def test_the_same_id_is_one_message(
    connect: Connect, broker: Broker, clock: VirtualClock, faults: Faults
) -> None:
    async with opened(connect(), clock) as app:
        await app.publish(numbers, 0, id="a")
        is_away(faults)
        await ended(clock, app.publish(numbers, 0, id="a"))
        again = await ended(clock, app.publish(numbers, 0, id="a"))
        assert again.duplicate
        assert again.spooled
        is_back(faults)
        await until(clock, lambda: not app.health().degraded)
        assert await numbers_in(broker) == [0]


async def test_the_broker_switched_off_leaves_the_application_on_the_spool(
    connect: Connect, broker: Broker, clock: VirtualClock, faults: Faults
) -> None:
    async with opened(connect(settings=Settings(enabled=False)), clock) as app:
        for each in range(3):
            assert (await ended(clock, app.publish(numbers, each))).spooled
        await clock.advance(60.0)
        assert faults.calls["open"] == 0
        assert "switched off" in app.health().error
    async with opened(connect(), clock) as app:
        await until(clock, lambda: not app.health().degraded)
        assert await numbers_in(broker) == [0, 1, 2]


def test_the_broker_switched_off_needs_a_fallback(url: str) -> None:
    with pytest.raises(ConfigurationError, match="enabled=false leaves the application running on"):
        Broker.connect(url, settings=Settings(enabled=False))


async def test_a_spool_that_cannot_be_opened_leaves_the_broker_as_it_is(
    connect: Connect, clock: VirtualClock, faults: Faults, tmp_path: Path
) -> None:
    (tmp_path / "bad.db").write_bytes(b"this is not a database" * 100)
    async with opened(connect(f"sqlite:///{tmp_path}/bad.db"), clock) as app:
        assert not (await app.publish(numbers, 1)).spooled
        health = app.health()
        assert health.ok
        assert health.degraded
        assert health.spool is not None
        assert "not an SQLite database" in health.spool.error
        assert app.events.counts["spool.failed"] == 1

        is_away(faults)
        with pytest.raises(Blocked, match=r"the spool of the fallback cannot be used: .*SQLite"):
            await ended(clock, app.publish(numbers, 2, timeout=3.0))


async def test_a_spool_that_comes_back_is_used_again(
    connect: Connect, broker: Broker, clock: VirtualClock, faults: Faults, tmp_path: Path
) -> None:
    where = tmp_path / "bad.db"
    where.write_bytes(b"this is not a database" * 100)
    async with opened(connect(f"sqlite:///{where}"), clock) as app:
        is_away(faults)
        where.unlink()
        await clock.advance(6.0)
        assert (await ended(clock, app.publish(numbers, 1))).spooled


async def test_both_away_is_an_error_at_start(
    connect: Connect, clock: VirtualClock, faults: Faults, tmp_path: Path
) -> None:
    is_away(faults)
    with pytest.raises(MqcoreError, match="cannot connect"):
        await connect(f"sqlite:///{tmp_path}/missing/spool.db").open()


async def test_close_beside_the_relay_loses_nothing(
    connect: Connect, broker: Broker, clock: VirtualClock, faults: Faults
) -> None:
    is_away(faults)
    async with opened(connect(), clock) as app:
        await ended(clock, app.publish_many(numbers, range(1000)))
    is_back(faults)
    for _ in range(40):
        async with opened(connect(), clock) as app:
            for _ in range(5):
                await asyncio.sleep(0)
    async with opened(connect(), clock) as app:
        await until(clock, lambda: not app.health().degraded)
    assert await numbers_in(broker) == list(range(1000))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"url": "nonsense"}, "url"),
        ({"url": "memory://", "after": 0}, "after"),
        ({"url": "memory://", "max_length": 0}, "max_length"),
        ({"url": "memory://", "limit": 1}, "limit"),
        ({}, "url"),
    ],
    ids=repr,
)
def test_a_wrong_option_of_a_fallback_is_named(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"Fallback\(\.\.\.\): {text}: "):
        Fallback(**options)


@pytest.mark.parametrize("value", [7, ["sqlite:///a.db"], {"url": "memory://"}], ids=repr)
def test_a_fallback_that_is_none_is_refused(url: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match="fallback= takes the URL of a spool"):
        Broker.connect(url, fallback=value)


def test_the_settings_name_a_fallback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mqcore.toml").write_text('[fallback]\nurl = "memory://a"\nmax_length = 7\n')
    settings = Settings.load(directory=tmp_path)
    assert settings.fallback is not None
    assert (str(settings.fallback.url), settings.fallback.max_length) == ("memory://a", 7)

    monkeypatch.setenv("MQCORE_FALLBACK", "memory://b")
    monkeypatch.setenv("MQCORE_ENABLED", "false")
    settings = Settings.load(directory=tmp_path)
    assert settings.fallback is not None
    assert (str(settings.fallback.url), settings.fallback.max_length) == ("memory://b", 7)
    assert settings.enabled is False

    monkeypatch.setenv("MQCORE_ENABLED", "maybe")
    with pytest.raises(ConfigurationError, match="MQCORE_ENABLED: give true or false"):
        Settings.load(directory=tmp_path)


def test_a_fallback_may_be_a_url_alone(tmp_path: Path) -> None:
    (tmp_path / "mqcore.toml").write_text('fallback = "memory://a"\n')
    settings = Settings.load(directory=tmp_path)
    assert settings.fallback == Fallback(url="memory://a")  # type: ignore[arg-type]  # a text is a URL


async def test_a_disk_without_room_is_a_clear_error(
    connect: Connect, clock: VirtualClock, faults: Faults, tmp_path: Path
) -> None:
    where = f"sqlite:///{tmp_path}/spool.db?reserve={10**18}"
    async with opened(connect(where), clock) as app:
        assert not (await app.publish(numbers, 1)).spooled
        is_away(faults)
        with pytest.raises(QueueFull, match=r"the broker does not take it .*more disk"):
            await ended(clock, app.publish(numbers, 2))
        is_back(faults)
        await until(clock, lambda: app.health().connected)
        await until(clock, lambda: not app.health().degraded)
        assert not (await ended(clock, app.publish(numbers, 3))).spooled


async def test_a_spool_file_that_is_deleted_is_made_again(
    connect: Connect, clock: VirtualClock, faults: Faults, tmp_path: Path
) -> None:
    async with opened(connect(f"sqlite:///{tmp_path}/spool.db"), clock) as app:
        await app.publish(numbers, 0)
        is_away(faults)
        await ended(clock, app.publish(numbers, 1))
        for ending in ("", "-wal", "-shm"):
            (tmp_path / f"spool.db{ending}").unlink()
        await until(clock, lambda: app.events.counts["spool.failed"] == 1)
        await until(clock, lambda: app.health().spool and app.health().spool.usable)
        assert (await ended(clock, app.publish(numbers, 2))).spooled


async def test_a_backend_that_keeps_no_order_is_no_spool(
    clock: VirtualClock, url: str, faults: Faults
) -> None:
    plugins = Plugins()
    plugins.register(plugin_for(faults))
    faults.without.add(Capability.LEASE)
    app = Broker.connect(
        url, clock=clock, plugins=plugins, settings=Settings(), fallback="faulty://spool"
    )
    with pytest.raises(UnsupportedFeature, match=r"a fallback: the backend .* Use sqlite://"):
        await app.open()


def test_the_blocking_api_has_it_too(tmp_path: Path, url: str) -> None:
    where = f"sqlite:///{tmp_path}/spool.db"
    off = Settings(enabled=False)
    with mqcore.sync.Broker.connect(url, fallback=where, settings=off) as app:
        receipt = app.publish(numbers, 1)
        assert receipt.spooled
        health = app.health()
        assert (health.ok, health.degraded) == (True, True)
    with (
        mqcore.sync.Broker.connect(url, fallback=where, settings=Settings()) as app,
        app.consume(numbers) as deliveries,
    ):
        delivery = deliveries.get(timeout=30)
        assert delivery is not None
        assert delivery.value == 1
        delivery.ack()


def test_commands_ask_the_broker_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path}/broker.db"
    with mqcore.sync.Broker.connect(url):
        pass  # a command creates no file
    monkeypatch.setenv("MQCORE_FALLBACK", f"sqlite:///{tmp_path}/spool.db")
    monkeypatch.setenv("MQCORE_ENABLED", "false")
    status = main(["queues", "--url", url])
    assert status == 0, capsys.readouterr()
    assert not (tmp_path / "spool.db").exists()
