"""`unroutable="drop"`: a message that no binding takes is dropped, counted, and not logged."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from mqcore import Broker, Queue, Receipt, Router, Unroutable, ValidationError

events = Router("events", dict)
watched = Queue("watched", dict)


async def test_a_producer_drops_what_nobody_watches(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mqcore")
    producer = broker.producer(events, unroutable="drop")
    receipt = await producer.publish({"a": 1}, key="task.sent", id="one")
    assert receipt == Receipt("one", ())

    await broker.declare(Router("events", dict).bind(watched, "task.#"))
    results = await producer.publish_many([{"a": 1}, {"a": 2}], key="worker.online")
    assert [each.queues for each in results if isinstance(each, Receipt)] == [(), ()]
    stored = await producer.publish({"a": 3}, key="task.sent")
    assert stored.queues == ("watched",)
    assert broker.events.counts["message.unrouted"] == 3
    assert not [line for line in caplog.messages if "unrouted" in line or "failed" in line]


async def test_the_default_still_raises(broker: Broker) -> None:
    for options in ({}, {"unroutable": "raise"}):
        with pytest.raises(Unroutable):
            await broker.publish(events, {"a": 1}, key="x", **options)  # type: ignore[arg-type]  # a mapping of options


@pytest.mark.parametrize(
    ("to", "options", "text"),
    [
        (events, {"unroutable": "ignore"}, r"""give "raise" or "drop\""""),
        (events, {"unroutable": None}, r"""unroutable=None is not valid"""),
        (watched, {"unroutable": "drop"}, "unroutable= is for routers, and 'watched' is a queue"),
        (events, {"unroutable": "drop", "session": object()}, "with session= takes no unroutable="),
    ],
    ids=["word", "none", "queue", "session"],
)
async def test_where_it_is_refused(
    broker: Broker, to: Any, options: dict[str, Any], text: str
) -> None:
    with pytest.raises(ValidationError, match=text):
        await broker.publish(to, {"a": 1}, **options)


def test_a_producer_refuses_a_wrong_value(broker: Broker) -> None:
    with pytest.raises(ValidationError, match="unroutable='ignore' is not valid"):
        broker.producer(events, unroutable="ignore")  # type: ignore[typeddict-item]  # what is tested
