"""A wrong value of an option is refused where it is given."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from mqcore import App, Broker, ConfigurationError, Limits, Queue, Settings, Worker
from mqcore.running.supervisor import Supervisor

NAN, INF = float("nan"), float("inf")
NO_FLAG = ("no", 0, None, [])
NO_TEXT = (True, 7, None, "", b"x", [])
NO_COUNT = (True, 0, 2.5, "3", NAN)
NO_SECONDS = (True, "soon", NAN, INF, -1, [])
NO_PATH = (True, 7, "", [])


async def handler(_: str) -> None: ...


def queue(**options: Any) -> object:
    return Queue("orders", str, **options)


def consumer(**options: Any) -> object:
    return App("shop").register(Queue("orders", str), handler, options)  # type: ignore[arg-type]  # what is tested


def worker(**options: Any) -> object:
    app = App("shop")
    app.consumer(Queue("orders", str))(handler)
    return Worker(app, app.connect("memory://", settings=Settings()), **options)


def supervisor(**options: Any) -> object:
    return Supervisor(["worker"], **{"processes": 1, **options})


def limits(**options: Any) -> object:
    return Limits(**options)


WRONG: list[tuple[Callable[..., object], str, tuple[object, ...]]] = [
    (queue, "declare", NO_FLAG),
    (queue, "temporary", NO_FLAG),
    (queue, "codec", (True, 7, "", b"x", [])),
    (queue, "max_length", NO_COUNT),
    (queue, "ttl", NO_SECONDS),
    (queue, "retention", NO_SECONDS),
    (queue, "retry", (5, "often")),
    (consumer, "process", NO_FLAG),
    (consumer, "ack_first", NO_FLAG),
    (consumer, "name", NO_TEXT),
    (consumer, "concurrency", NO_COUNT),
    (consumer, "prefetch", NO_COUNT),
    (consumer, "batch", NO_COUNT),
    (consumer, "timeout", NO_SECONDS),
    (consumer, "lease", NO_SECONDS),
    (consumer, "linger", NO_SECONDS),
    (consumer, "retry", (5, "often")),
    (worker, "queues", (True, "orders", b"orders", [7], 7)),
    (worker, "health_file", NO_PATH),
    (worker, "grace", NO_SECONDS),
    (worker, "concurrency", NO_COUNT),
    (worker, "max_messages", NO_COUNT),
    (worker, "max_memory", NO_COUNT),
    (supervisor, "processes", NO_COUNT),
    (supervisor, "grace", NO_SECONDS),
    *(
        (limits, name, (True, -1, 2.5, "3", None, NAN))
        for name in ("payload", "headers", "header_bytes", "header_value")
    ),
]


@pytest.mark.parametrize(
    ("make", "option", "value"),
    [
        pytest.param(make, option, value, id=f"{make.__name__}-{option}-{value!r}")
        for make, option, values in WRONG
        for value in values
    ],
)
def test_a_value_that_an_option_cannot_mean_is_refused(
    make: Callable[..., object], option: str, value: object
) -> None:
    with pytest.raises(ConfigurationError, match=option):
        make(**{option: value})


@pytest.mark.parametrize("value", [*NO_SECONDS, object()], ids=lambda value: repr(value)[:20])
async def test_the_pull_api_refuses_what_is_no_duration(value: Any) -> None:
    jobs = Queue("jobs", str)
    async with (
        Broker.connect("memory://", settings=Settings()) as broker,
        broker.consume(jobs) as deliveries,
    ):
        with pytest.raises(ConfigurationError, match="timeout="):
            await deliveries.get(timeout=value)
        await broker.publish(jobs, "a")
        received = await anext(deliveries)
        with pytest.raises(ConfigurationError, match="delay="):
            await received.retry(delay=value)
        await received.retry(delay=timedelta(0))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("limit", value) for value in NO_COUNT),
        *(("ids", value) for value in ("abc", b"abc", 7)),
        *((name, value) for name in ("queue", "error") for value in (True, 7, b"x")),
        *((name, value) for name in ("before", "after") for value in ("soon", True, NAN)),
    ],
    ids=lambda value: repr(value)[:20],
)
async def test_a_list_of_dead_letters_refuses_filters_that_match_nothing(
    name: str, value: Any
) -> None:
    async with Broker.connect("memory://", settings=Settings()) as broker:
        await broker.declare(Queue("jobs", str))
        with pytest.raises(ConfigurationError, match=name):
            await broker.dead_letters("jobs").list(**{name: value})
