"""`broker.alter`: other settings for a queue that exists, and its messages stay."""

from typing import Any

import pytest
from support.faulty import Faults, plugin_for

from mqcore import (
    App,
    Broker,
    ConfigurationError,
    Queue,
    QueueFull,
    QueueNotFound,
    Settings,
    TopologyMismatch,
    UnsupportedFeature,
    Worker,
)
from mqcore.config.plugins import Plugins
from mqcore.config.settings import QueueSettings
from mqcore.rules.capabilities import Capability
from mqcore.testing import VirtualClock

old = Queue("orders", str, ttl=60, max_length=2, retention=600)


async def spec(broker: Broker, name: str = "orders") -> Any:
    return (await broker.counts(name))[0].spec


@pytest.mark.parametrize(
    ("options", "queue", "option"),
    [
        ({"ttl": 120}, "orders", "--ttl 120"),
        ({"max_length": None}, "orders", "--max-length none"),
        ({"max_length": 5, "overflow": "dead_letter"}, "orders", "--max-length 5"),
        ({"retention": 700}, "orders.dlq", "--retention 700"),
    ],
)
async def test_a_mismatch_says_what_to_do_and_that_ends_it(
    broker: Broker, other: Broker, options: dict[str, Any], queue: str, option: str
) -> None:
    await broker.publish(old, "kept")
    changed = Queue("orders", str, **{**old.options, **options})

    with pytest.raises(TopologyMismatch) as caught:
        await other.declare(changed)
    assert f'"mqcore queues alter {queue} {option}"' in str(caught.value)
    assert "broker.alter" in str(caught.value)
    assert "declare=False" in str(caught.value)

    await other.alter(changed)
    await other.declare(changed)
    assert (await other.counts("orders"))[0].ready == 1
    with pytest.raises(TopologyMismatch):
        await other.declare(old)


async def test_a_dead_letter_queue_cannot_be_altered_and_the_error_says_so(
    broker: Broker, other: Broker
) -> None:
    await broker.declare(old)
    with pytest.raises(
        TopologyMismatch, match=r'fixes dead_letter.*"mqcore queues delete orders".*declare=False'
    ):
        await other.declare(Queue("orders", str, ttl=60, max_length=2, dead_letter="grave"))


@pytest.mark.parametrize("dead_letter", ["grave", None])
async def test_another_dead_letter_queue_is_not_ignored(
    broker: Broker, dead_letter: str | None
) -> None:
    await broker.declare(old)

    with pytest.raises(TopologyMismatch, match=r"dead_letter='orders.dlq'.*cannot be altered"):
        await broker.alter(Queue("orders", str, ttl=7, dead_letter=dead_letter))

    assert (await spec(broker)).ttl != 7


async def test_by_its_name_and_what_is_left_out_stays(broker: Broker) -> None:
    await broker.declare(old)

    await broker.alter("orders", ttl=5, retention=None)

    found = await spec(broker)
    assert (found.ttl, found.max_length, found.overflow) == (5.0, 2, "reject")
    assert (await spec(broker, "orders.dlq")).retention is None

    await broker.alter("orders.dlq", retention=7)
    assert (await spec(broker, "orders.dlq")).retention == 7.0


async def test_configuration_wins_here_too(broker: Broker, url: str, clock: VirtualClock) -> None:
    await broker.declare(old)
    settings = Settings(queues={"orders": QueueSettings(max_length=3)})
    async with Broker.connect(url, clock=clock, settings=settings) as configured:
        await configured.alter(old)
        await configured.publish_many(old, ["a", "b", "c"])
        with pytest.raises(QueueFull):
            await configured.publish(old, "d")


async def test_a_process_that_runs_with_the_old_settings_comes_back_after_a_loss(
    faulty: Broker, faults: Faults, broker: Broker, clock: VirtualClock
) -> None:
    """The queue is there.

    That somebody has altered it must not keep a worker away for ever (G14).
    """
    seen: list[str] = []
    app = App("shop")

    @app.consumer(old)
    async def handle(order: str) -> None:
        seen.append(order)

    async with Worker(app, faulty):
        await broker.alter("orders", ttl=120)
        faults.lose()
        await clock.advance(3)
        assert faulty.health().ok
        assert faulty.events.counts["queue.altered"] == 1

        await broker.publish("orders", b"x")
        await clock.advance(1)

    assert seen == ["x"]


async def test_the_process_that_alters_keeps_to_it_after_a_loss(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    await faulty.declare(old)
    await faulty.alter("orders", ttl=120)
    faults.lose()
    await clock.advance(3)

    assert faulty.health().ok
    assert faulty.events.counts["queue.altered"] == 0
    assert (await spec(faulty)).ttl == 120.0


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("orders", {}, "nothing to change"),
        ("orders", {"ttl": 0}, "ttl"),
        ("orders", {"max_length": 0}, "max_length"),
        ("orders", {"overflow": "drop"}, "overflow"),
        ("orders", {"tll": 5}, "did you mean 'ttl'"),
        ("orders.dlq", {"ttl": 5}, "dead-letter queue"),
        ("orders.quarantine", {"ttl": 5}, "quarantine"),
        ("bare", {"retention": 5}, "no dead-letter queue"),
        ("bare", {"overflow": "dead_letter"}, "no dead-letter queue"),
    ],
)
async def test_what_cannot_be_kept_is_refused(
    broker: Broker, name: str, options: Any, match: str
) -> None:
    await broker.declare(old, Queue("bare", dead_letter=None))
    before = await spec(broker)
    with pytest.raises(ConfigurationError, match=match):
        await broker.alter(name, **options)
    assert await spec(broker) == before


async def test_a_missing_queue(broker: Broker) -> None:
    with pytest.raises(QueueNotFound, match="'nowhere'"):
        await broker.alter("nowhere", ttl=5)


async def test_a_missing_capability(url: str, clock: VirtualClock, broker: Broker) -> None:
    await broker.declare(Queue("orders", str))
    faults, plugins = Faults(), Plugins()
    faults.without = {Capability.EXPIRY, Capability.MAX_LENGTH}
    plugins.register(plugin_for(faults))
    where = url.replace("memory://", "faulty://")

    async with Broker.connect(where, clock=clock, settings=Settings(), plugins=plugins) as poor:
        for options in ({"ttl": 5}, {"max_length": 5}):
            with pytest.raises(UnsupportedFeature):
                await poor.alter("orders", **options)
