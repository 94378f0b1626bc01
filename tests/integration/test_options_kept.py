"""No option is ever ignored: it is kept, or refused before anything is sent."""

import logging
from dataclasses import replace
from typing import Any

import pytest

from mqcore import (
    App,
    Broker,
    ConfigurationError,
    Queue,
    QueueNotFound,
    Reject,
    Settings,
    TopologyMismatch,
    Worker,
)
from mqcore.config.settings import QueueSettings
from mqcore.spi import QueueSpec
from mqcore.testing import VirtualClock, memory_url
from mqcore_memory import MemoryBackend, MemoryOptions


@pytest.fixture
async def made(broker: Broker) -> Broker:
    """A queue with every setting, and one without the queues that mqcore adds."""
    await broker.declare(
        Queue("ours", str, ttl=60, max_length=5, overflow="dead_letter", retention=600)
    )
    await broker._session.connection.backend.declare(
        [QueueSpec(name="theirs"), QueueSpec(name="grave", role="dead_letter")]
    )
    return broker


async def reject(broker: Broker, queue: Queue[str] | str) -> None:
    """Reject the next message of a queue."""
    async with broker.consume(queue) as deliveries:
        received = await deliveries.get(timeout=1)
        assert received is not None
        await received.reject("no good")


async def test_a_named_dead_letter_queue_of_an_adopted_queue_is_used(made: Broker) -> None:
    adopted = Queue("theirs", str, declare=False, dead_letter="grave")
    await made.publish(adopted, "x")

    await reject(made, adopted)

    assert (await made.counts("grave"))[0].ready == 1
    assert [letter.reason for letter in await made.dead_letters(adopted).list()] == ["rejected"]


async def test_one_that_does_not_exist_is_refused_at_connect(
    made: Broker, url: str, clock: VirtualClock
) -> None:
    adopted = Queue("theirs", str, declare=False, dead_letter="nowhere")

    with pytest.raises(QueueNotFound, match=r"'nowhere'.*'theirs'"):
        await Broker.connect(url, clock=clock, settings=Settings(), queues=[adopted]).open()
    with pytest.raises(QueueNotFound, match="nowhere"):
        await made.consume(adopted).__aenter__()


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"ttl": 61}, "ttl"),
        ({"max_length": 6}, "max_length"),
        ({"max_length": 5, "overflow": "reject"}, "overflow"),
        ({"retention": 601}, "retention"),
        ({"dead_letter": "grave"}, "dead_letter"),
        ({"dead_letter": None}, "dead_letter"),
    ],
)
async def test_an_adopted_queue_with_other_settings_is_a_mismatch(
    made: Broker, options: dict[str, Any], setting: str
) -> None:
    with pytest.raises(TopologyMismatch, match=setting):
        await made.declare(Queue("ours", str, declare=False, **options))


@pytest.mark.parametrize(
    "options", [{"ttl": 60}, {"max_length": 5, "overflow": "dead_letter"}, {"retention": 600}]
)
async def test_the_same_settings_are_fine(made: Broker, options: dict[str, Any]) -> None:
    await made.declare(Queue("ours", str, declare=False, **options))
    await made.publish(Queue("ours", str, declare=False, dead_letter="ours.dlq"), "x")


async def test_configuration_is_held_to_as_code_is(
    made: Broker, url: str, clock: VirtualClock
) -> None:
    settings = Settings(queues={"ours": QueueSettings(ttl=5.0)})
    async with Broker.connect(url, clock=clock, settings=settings) as other:
        with pytest.raises(TopologyMismatch, match="ttl"):
            await other.consume("ours").__aenter__()

    settings = Settings(queues={"theirs": QueueSettings(dead_letter="grave")})
    async with Broker.connect(url, clock=clock, settings=settings) as other:
        await other.publish("theirs", b"x")
        await reject(other, "theirs")
        assert (await other.counts("grave"))[0].ready == 1


async def test_what_can_neither_be_set_nor_checked_is_refused() -> None:
    class CannotTell(MemoryBackend):
        """A broker whose queue mqcore did not declare says nothing of its settings."""

        async def count(self, queues: Any = None) -> Any:
            return [replace(counts, spec=None) for counts in await super().count(queues)]

    broker = Broker.connect(
        make_backend=lambda: CannotTell(memory_url(), MemoryOptions()), settings=Settings()
    )
    async with broker:
        await broker._session.connection.backend.declare([QueueSpec(name="theirs")])
        with pytest.raises(ConfigurationError, match=r"ttl=5.*declare=False"):
            await broker.declare(Queue("theirs", str, declare=False, ttl=5))


async def test_adopting_without_a_dead_letter_queue_warns_once(
    made: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "mqcore")
    for _ in range(2):
        async with made.consume("theirs"), made.consume(Queue("theirs", str, declare=False)):
            pass

    warned = [
        record.getMessage()
        for record in caplog.records
        if "dead-letter queue" in record.getMessage()
    ]
    assert len(warned) == 1
    assert "'theirs'" in warned[0]
    assert "dropped" in warned[0]


@pytest.mark.parametrize(
    "queue", [Queue("theirs", str, declare=False, dead_letter=None), "ours", "ours.dlq"]
)
async def test_and_not_where_it_was_asked_for_or_is_there(
    made: Broker, caplog: pytest.LogCaptureFixture, queue: Queue[str] | str
) -> None:
    caplog.set_level(logging.WARNING, "mqcore")
    async with made.consume(queue):
        pass
    assert not caplog.records


async def test_the_dead_letters_of_an_adopted_queue_are_where_the_broker_puts_them(
    broker: Broker,
) -> None:
    await broker.declare(Queue("shop", str, dead_letter="shared"))
    adopted = Queue("shop", str, declare=False)
    await broker.publish(adopted, "x")

    await reject(broker, adopted)

    assert len(await broker.dead_letters(adopted).list()) == 1


async def test_an_overflow_without_a_bound_is_refused(broker: Broker) -> None:
    with pytest.raises(ConfigurationError, match=r"overflow='dead_letter'.*max_length"):
        await broker.declare(Queue("jobs", str, overflow="dead_letter"))

    settings = Settings(queues={"jobs": QueueSettings(max_length=5)})
    async with Broker.connect(memory_url(), settings=settings) as other:
        await other.declare(Queue("jobs", str, overflow="dead_letter"))


async def test_a_retention_without_a_dead_letter_queue_is_refused(broker: Broker) -> None:
    with pytest.raises(ConfigurationError, match=r"retention=60.*dead-letter queue"):
        await broker.declare(Queue("jobs", str, dead_letter=None, retention=60))


async def test_a_url_beside_a_backend_that_was_made_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="make_backend"):
        Broker.connect(
            memory_url(), make_backend=lambda: MemoryBackend(memory_url(), MemoryOptions())
        )


def test_a_linger_without_a_batch_is_refused() -> None:
    async def handle(job: str) -> None: ...

    with pytest.raises(ConfigurationError, match=r"linger=.*batch"):
        App("app").register(Queue("jobs", str), handle, {"linger": 1.0})


async def test_a_worker_on_an_adopted_queue_dead_letters_where_it_was_told(
    made: Broker, clock: VirtualClock
) -> None:
    app = App("adopting")

    @app.consumer(Queue("theirs", str, declare=False, dead_letter="grave"))
    async def fail(_: str) -> None:
        raise Reject("no good")

    async with Worker(app, made):
        await made.publish("theirs", b"x")
        await clock.advance(1)

    assert (await made.counts("grave"))[0].ready == 1
