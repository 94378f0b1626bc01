"""Malformed messages of a raw client are handled or dead-lettered, and disturb no others."""

from __future__ import annotations

import gzip
import struct
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pika
import pytest
from support.waiting import eventually

from mqcore import App, Broker, Context, DeadLetter, Queue, Settings, Worker
from mqcore.spi import DONE, Delivery, ErrorKind, Move, Outgoing, QueueSpec, Release

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pika.adapters.blocking_connection import BlockingChannel

    from mqcore_rabbitmq import RabbitBackend

pytestmark = pytest.mark.timeout(120)
GOOD = 20
MILLISECONDS = 1_764_460_800_000
"""A time of the year 2025 where AMQP has seconds: it is in the year 57,880."""


class Raw(pika.BasicProperties):
    """Properties whose bytes the test writes itself."""

    def __init__(self, payload: bytes) -> None:
        super().__init__()
        self._payload = payload

    def encode(self) -> list[bytes]:
        return [self._payload]


def headers(*entries: tuple[bytes, bytes]) -> Raw:
    table = b"".join(bytes((len(name),)) + name + value for name, value in entries)
    return Raw(struct.pack(">HI", pika.BasicProperties.FLAG_HEADERS, len(table)) + table)


def short(name: str, value: bytes = b"\xff\xfe") -> Raw:
    flag = getattr(pika.BasicProperties, f"FLAG_{name.upper()}")
    return Raw(struct.pack(">H", flag) + bytes((len(value),)) + value)


def nested(depth: int) -> bytes:
    value = b""
    for _ in range(depth):
        value = b"A" + struct.pack(">I", len(value)) + value
    return value


HEADERS = {
    "a-time-in-milliseconds": (b"when", b"T" + struct.pack(">Q", MILLISECONDS)),
    "the-last-time": (b"when", b"T" + b"\xff" * 8),
    "a-float": (b"number", b"d" + struct.pack(">d", 1.5)),
    "a-long-decimal": (b"number", b"D\xff\x7f\xff\xff\xff"),
    "nested": (b"deep", nested(5_000)),
    "name-that-is-not-utf-8": (b"\xff\xfe", b"S\x00\x00\x00\x01v"),
    "text-that-is-not-utf-8": (b"text", b"S\x00\x00\x00\x02\xff\xfe"),
    "ours-of-another-type": (b"mq-attempt", b"T" + struct.pack(">Q", MILLISECONDS)),
    "long": (b"long", b"S" + struct.pack(">I", 130_000) + b"v" * 130_000),
}
PROPERTIES = ["content_type", "content_encoding", "correlation_id", "reply_to", "message_id"]


@pytest.fixture
def plain(rabbitmq_url: str) -> Iterator[BlockingChannel]:
    connection = pika.BlockingConnection(pika.URLParameters(f"{rabbitmq_url.rstrip('/')}/%2F"))
    yield connection.channel()
    connection.close()


def connect(app: App, url: str, durability: str | None = None) -> Broker:
    return app.connect(url, settings=Settings(), durability=durability)


async def dead(broker: Broker, queue: str, count: int) -> list[DeadLetter]:
    async def there() -> bool:
        (counts,) = await broker.counts(f"{queue}.dlq")
        return counts.ready >= count

    await eventually(there)
    return await broker.dead_letters(queue).list()


@pytest.mark.parametrize("durability", [None, "machine"])
@pytest.mark.parametrize("entry", HEADERS.values(), ids=HEADERS)
async def test_a_header_that_cannot_be_read_disturbs_nothing(
    rabbitmq_url: str,
    plain: BlockingChannel,
    entry: tuple[bytes, bytes],
    durability: str | None,
    name: str,
) -> None:
    """It is handled without it, dead-lettered, redriven, dead-lettered again, on one connection."""
    app, came, others = App("hostile"), list[str](), list[bytes]()
    queue, other = Queue(name, bytes), Queue(f"{name}.other", bytes)

    @app.consumer(queue)
    async def fail(value: bytes, ctx: Context) -> None:
        came.append(ctx.headers.get("h", ""))
        raise ValueError(value)

    @app.consumer(other)
    async def handle(value: bytes) -> None:
        others.append(value)

    settings = Settings.model_validate({"queues": {name: {"retry": {"max_attempts": 1}}}})
    async with (
        app.connect(rabbitmq_url, settings=settings, durability=durability) as broker,
        Worker(app, broker),
    ):
        plain.basic_publish("", name, b"body", headers((b"h", b"S\x00\x00\x00\x01v"), entry))
        for number in range(GOOD):
            plain.basic_publish("", other.name, b"%d" % number)
        await eventually(lambda: len(others) == GOOD)
        (letter,) = await dead(broker, name, 1)
        assert (letter.body, letter.headers["h"], letter.error) == (
            b"body",
            "v",
            "ValueError: b'body'",
        )
        assert (await broker.dead_letters(name).redrive()).moved == (letter.id,)
        (letter,) = await dead(broker, name, 1)
        assert (letter.message.redriven, letter.headers["h"]) == (1, "v")
        assert came == ["v", "v"]
        assert broker.events.counts["connection.lost"] == 0


@pytest.mark.parametrize("durability", [None, "machine"])
@pytest.mark.parametrize("prop", PROPERTIES)
async def test_a_property_that_is_not_utf8_costs_no_place_of_the_prefetch(
    rabbitmq_url: str, plain: BlockingChannel, prop: str, durability: str | None, name: str
) -> None:
    app, handled, prefetch = App("hostile"), list[bytes](), 4

    @app.consumer(Queue(name, bytes), concurrency=1, prefetch=prefetch)
    async def handle(value: bytes) -> None:
        handled.append(value)

    async with connect(app, rabbitmq_url, durability) as broker, Worker(app, broker):
        for _ in range(prefetch + 1):
            plain.basic_publish("", name, b"poison", short(prop))
        plain.basic_publish("", name, b"good")
        await eventually(lambda: handled == [b"good"])
        letters = await dead(broker, name, prefetch + 1)
        assert {(letter.reason, letter.body) for letter in letters} == {("undecodable", b"poison")}
        assert {letter.error for letter in letters} == {f"the AMQP property {prop} is not UTF-8"}
        assert broker.events.counts["connection.lost"] == 0


async def test_a_copy_of_it_without_a_queue_is_returned_and_harms_no_other(
    backend: RabbitBackend, plain: BlockingChannel, name: str
) -> None:
    """A successor, a returned message and a released copy have the same headers."""
    await backend.declare([QueueSpec(name=name)])
    for entry in HEADERS.values():
        plain.basic_publish("", name, b"body", headers(entry))
    consumer = await backend.subscribe(name, prefetch=100, lease=30)

    for turn in range(2):
        deliveries: list[Delivery] = []
        while len(deliveries) < len(HEADERS):
            deliveries += await consumer.receive(100, 10)
        moves = [
            Move(it.receipt, Outgoing(f"{name}.none", it.message.moved(name))) for it in deliveries
        ]
        outcomes = await consumer.settle(moves, timeout=10)
        assert {getattr(outcome, "kind", None) for outcome in outcomes} == {ErrorKind.NOT_FOUND}
        releases = [Release(it.receipt) for it in deliveries]
        assert await consumer.settle(releases, timeout=10) == [DONE] * len(HEADERS)
        assert turn == any(it.redelivered for it in deliveries)

    await consumer.close()


async def test_one_in_the_registry_is_skipped(
    rabbitmq_url: str, plain: BlockingChannel, name: str
) -> None:
    async with Broker.connect(rabbitmq_url, settings=Settings()) as broker:
        await broker.declare(Queue(name, bytes))
    for entry in HEADERS.values():
        plain.basic_publish("", "mq.registry", b"[]", headers(entry))
    async with Broker.connect(rabbitmq_url, settings=Settings()) as broker:
        assert name in {counts.name for counts in await broker.counts()}
        assert broker.events.counts["connection.lost"] == 0


@pytest.mark.parametrize(
    "body",
    [b"[" * 100_000, b'[{"q": 5, "role": "work"}]', b'[{"bind": [1, 2, 3, 4, 5, 6]}]', b"\xff"],
)
async def test_a_record_that_cannot_be_read_stops_nothing_and_is_reported(
    rabbitmq_url: str, plain: BlockingChannel, name: str, body: bytes
) -> None:
    plain.queue_declare(
        "mq.registry", durable=True, passive=False, arguments={"x-queue-type": "classic"}
    )
    plain.basic_publish("", "mq.registry", body)
    queue = Queue(name, bytes)
    async with Broker.connect(rabbitmq_url, settings=Settings()) as broker:
        await broker.declare(queue)
        await broker.publish(name, b"by name")
        assert [counts.ready for counts in await broker.counts() if counts.name == name] == [1]
        (problem,) = await broker._session.connection.backend.diagnose()  # type: ignore[attr-defined]  # SupportsDiagnose
        assert "in queue 'mq.registry' were not written by mqcore" in problem
    plain.queue_purge("mq.registry")


async def test_a_plain_client_gets_its_reply_and_no_other_queue_does(
    rabbitmq_url: str, plain: BlockingChannel, name: str
) -> None:
    """Replies to a queue that the broker named, and direct replies, as in tutorials (G17)."""
    app = App("hostile")

    @app.consumer(Queue(name, bytes))
    async def double(value: bytes) -> bytes:
        return value * 2

    own = plain.queue_declare("", exclusive=True).method.queue
    direct: list[bytes] = []
    plain.basic_consume(
        "amq.rabbitmq.reply-to",
        lambda _channel, _method, _properties, body: direct.append(body),
        auto_ack=True,
    )
    async with connect(app, rabbitmq_url) as broker, Worker(app, broker):
        for reply_to in (own, "amq.rabbitmq.reply-to", "mq.registry", name):
            plain.basic_publish(
                "", name, b"ab", pika.BasicProperties(reply_to=reply_to, correlation_id="c")
            )
        await eventually(lambda: broker.events.counts["message.done"] == 4)

        def got() -> bool:
            plain.connection.process_data_events(0.01)
            return bool(direct)

        await eventually(got)
        _, properties, body = plain.basic_get(own, auto_ack=True)
        assert (properties.correlation_id, body, direct) == ("c", b"abab", [b"abab"])
        assert broker.events.counts["reply.failed"] == 2
        assert await broker._session.connection.backend.diagnose() == []  # type: ignore[attr-defined]  # SupportsDiagnose


@pytest.mark.parametrize("durability", [None, "machine"])
async def test_native_properties_come_through_every_move(
    rabbitmq_url: str, plain: BlockingChannel, durability: str | None, name: str
) -> None:
    """After retry, dead letter and redrive, a plain client sees the same message (G17)."""
    app, came, elsewhere = App("hostile"), list[object](), f"{name}.elsewhere"

    @app.consumer(Queue(name, dict[str, int]))
    async def fail(value: dict[str, int], ctx: Context) -> None:
        came.append((value, ctx.encoding, ctx.attempt))
        raise ValueError

    sent = pika.BasicProperties(
        content_type="application/json; charset=utf-16",
        content_encoding="gzip",
        headers={
            "text": "v",
            "count": 3,
            "when": datetime(2026, 1, 2, tzinfo=UTC),
            "table": {"deep": [1, None]},
        },
        priority=7,
        correlation_id="c",
        reply_to="somewhere",
        message_id="m",
        timestamp=1_700_000_000,
        type="order.placed",
        user_id="guest",
        app_id="shop",
    )
    body = gzip.compress('{"n": 1}'.encode("utf-16"))
    settings = Settings.model_validate(
        {"queues": {name: {"retry": {"max_attempts": 2, "backoff": "fixed", "base": 0.1}}}}
    )
    plain.queue_declare(elsewhere, durable=True)
    async with (
        app.connect(rabbitmq_url, settings=settings, durability=durability) as broker,
        Worker(app, broker),
    ):
        plain.basic_publish("", name, body, sent)
        (letter,) = await dead(broker, name, 1)
        assert (letter.body, letter.message.encoding) == (body, "gzip")
        assert came == [({"n": 1}, "gzip", 1), ({"n": 1}, "gzip", 2)]
        assert (await broker.dead_letters(name).redrive(to=elsewhere)).moved == ("m",)
    _, found, got = plain.basic_get(elsewhere, auto_ack=True)
    plain.queue_delete(elsewhere)
    assert got == body
    for prop in (
        "content_type",
        "content_encoding",
        "priority",
        "correlation_id",
        "reply_to",
        "message_id",
    ):
        assert getattr(found, prop) == getattr(sent, prop)
    for prop in ("timestamp", "type", "user_id", "app_id"):
        assert getattr(found, prop) == getattr(sent, prop)
    assert {key: found.headers[key] for key in sent.headers} == sent.headers
