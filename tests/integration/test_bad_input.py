"""Bad input ends in a typed error or in a dead letter of the right reason.

Every bad input here carries a secret, and no error, no record of a death and no line of the log may
repeat it.
"""

import asyncio
import functools
import logging
import math
import pickle
import traceback
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

import mqcore.sync
from mqcore import (
    App,
    BackendNotFound,
    Broker,
    ConfigurationError,
    Context,
    DeadLetter,
    MessageTooLarge,
    MqcoreError,
    Queue,
    QueueNotFound,
    Receipt,
    Retry,
    RetryPolicy,
    Router,
    Settings,
    UnsupportedFeature,
    ValidationError,
    Worker,
    fixed,
)
from mqcore.spi import Delivery, Message, Outgoing, Stored, new_id
from mqcore.testing import VirtualClock, memory_url

Dead = Callable[[Queue[Any] | str], Awaitable[list[DeadLetter]]]
SECRET = "hunter2" + "canary"
JSON = "application/json"


class Order(BaseModel):
    number: int
    total: float = 0.0
    note: Any = None


orders = Queue("orders", Order)
anything = Queue("anything", TypeAdapter(Any))
words = Queue("words", str)
raw = Queue("raw")
topic = Router("shop", Order).bind(orders, "order.*")
by_header = Router("by-header", Order, kind="headers").bind(orders, headers={"a": "b"})


def shown(error: BaseException) -> str:
    """Return all that anybody could print of an error: its text, its repr, its causes."""
    return f"{error!r} {error} {''.join(traceback.format_exception(error))}"


@pytest.fixture(autouse=True)
def nothing_secret_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    for record in caplog.get_records("call"):
        assert SECRET not in logging.Formatter().format(record)
        assert SECRET not in repr(vars(record))


async def stored(broker: Broker, queue: Queue[Any], message: Message) -> None:
    """Store what a plain client of the broker may send, past all checks of this library."""
    await broker.declare(queue)
    assert await broker._session.connection.backend.publish(
        [Outgoing(queue.name, message)], timeout=5
    ) == [Stored()]


async def between_neighbours(
    broker: Broker, serve: Any, clock: VirtualClock, bad: Callable[[], Awaitable[Any]]
) -> None:
    """Do something bad between two healthy publishes; both are handled, and nothing is left."""
    handled: list[int] = []

    async def handler(order: Order) -> None:
        handled.append(order.number)

    await broker.publish(orders, Order(number=1))
    await bad()
    await broker.publish(orders, Order(number=2))
    async with serve(orders, handler, concurrency=1):
        await clock.settle()
    assert handled == [1, 2]
    (counts,) = await broker.counts(orders)
    assert (counts.ready, counts.leased, counts.delayed) == (0, 0, 0)


# What comes over the wire


def order(text: bytes) -> bytes:
    return b'{"number": 3, "note": "' + SECRET.encode() + b'", "total": ' + text + b"}"


def nested(depth: int, open_: bytes = b"[", close: bytes = b"]") -> bytes:
    return open_ * depth + b'"' + SECRET.encode() + b'"' + close * depth


UNREADABLE: list[tuple[str, bytes, str | None, str]] = [
    ("empty", b"", JSON, "undecodable"),
    ("truncated", order(b"1")[:-1], JSON, "undecodable"),
    ("two values", order(b"1") * 2, JSON, "undecodable"),
    ("a python dict", repr({"number": SECRET}).encode(), JSON, "undecodable"),
    ("not utf-8", order(b'"\xff"'), JSON, "undecodable"),
    ("latin-1", order('"ü"'.encode("latin-1")), JSON, "undecodable"),
    ("utf-16", order(b"1").decode().encode("utf-16"), JSON, "undecodable"),
    ("utf-16 without a mark", order(b"1").decode().encode("utf-16-le"), JSON, "undecodable"),
    (
        "utf-16 that says utf-32",
        order(b"1").decode().encode("utf-16"),
        f"{JSON}; charset=utf-32",
        "undecodable",
    ),
    ("a byte order mark", b"\xef\xbb\xbf" + order(b"1"), JSON, "undecodable"),
    ("a lone surrogate", order(b'"\\ud800"'), JSON, "undecodable"),
    ("a lone surrogate in bytes", order(b'"\xed\xa0\x80"'), JSON, "undecodable"),
    ("a nul", order(b"1") + b"\0", JSON, "undecodable"),
    ("a whole number of 5,000 digits", order(b"9" * 5_000), JSON, "undecodable"),
    ("nested 1,000 deep", order(nested(1_000)), JSON, "undecodable"),
    ("nested 100,000 deep", order(nested(100_000)), JSON, "undecodable"),
    ("nested 100,000 deep in objects", nested(100_000, b'{"a":', b"}"), JSON, "undecodable"),
    ("nested 100,000 deep and never closed", order(b"[" * 100_000), JSON, "undecodable"),
    ("compressed", b"\x1f\x8b\x08\x00" + SECRET.encode(), JSON, "undecodable"),
    ("random bytes", bytes(range(256)) + SECRET.encode(), None, "undecodable"),
    ("no json, no content type", SECRET.encode(), None, "undecodable"),
    ("an unknown content type", order(b"1"), "application/x-unknown", "undecodable"),
    ("a content type of 100,000 characters", order(b"1"), "x" * 100_000, "undecodable"),
    (
        "a content type with line breaks",
        order(b"1"),
        f"text/x\r\nSet-Cookie: a={'b' * 10}",
        "undecodable",
    ),
    ("a content type that is none", order(b"1"), "\0", "undecodable"),
    ("html", b"<html>" + SECRET.encode(), "text/html", "undecodable"),
    ("NaN", order(b"NaN"), JSON, "invalid"),
    ("Infinity", order(b"Infinity"), JSON, "invalid"),
    ("-Infinity", order(b"-Infinity"), JSON, "invalid"),
    ("1e400", order(b"1e400"), JSON, "invalid"),
    ("NaN as text", order(b'"NaN"'), JSON, "invalid"),
    ("NaN where anything may be", b'{"number": 3, "note": [NaN]}', JSON, "invalid"),
    ("more digits than a float has", order(b"9" * 400), JSON, "invalid"),
    ("null", b"null", JSON, "invalid"),
    ("a list", b'["' + SECRET.encode() + b'"]', JSON, "invalid"),
    ("a missing field", b'{"note": "' + SECRET.encode() + b'"}', JSON, "invalid"),
    ("a field of another type", b'{"number": "' + SECRET.encode() + b'"}', JSON, "invalid"),
    ("text for a model", SECRET.encode(), "text/plain", "invalid"),
    ("bytes for a model", SECRET.encode(), "application/octet-stream", "invalid"),
]


@pytest.mark.parametrize(
    ("body", "content_type", "reason"),
    [case[1:] for case in UNREADABLE],
    ids=[case[0] for case in UNREADABLE],
)
async def test_what_cannot_be_read_is_dead_lettered_as_it_came(
    broker: Broker,
    serve: Any,
    dead: Dead,
    clock: VirtualClock,
    body: bytes,
    content_type: str | None,
    reason: str,
) -> None:
    message = Message(
        id=new_id(), body=body, content_type=content_type, headers={"from": "elsewhere"}, priority=5
    )
    await between_neighbours(broker, serve, clock, lambda: stored(broker, orders, message))
    (letter,) = await dead(orders)
    assert (letter.reason, letter.attempts, letter.id) == (reason, 0, message.id)
    assert (letter.body, letter.message.content_type, letter.headers) == (
        body,
        content_type,
        {"from": "elsewhere"},
    )
    assert letter.error
    assert SECRET not in letter.error + letter.death.traceback
    assert len(letter.error) < 500


READABLE: list[tuple[str, Queue[Any], bytes, str | None]] = [
    ("nested 10 deep", anything, nested(10), JSON),
    ("nested 100 deep", anything, nested(100), JSON),
    ("a key given twice", orders, b'{"number": 1, "number": 2}', JSON),
    ("a whole number of 4,000 digits", anything, b"9" * 4_000, JSON),
    ("two megabytes from a plain client", words, b"x" * 2_000_000, "text/plain"),
    ("a nul in a text", words, b"a\0b", "text/plain"),
    ("any bytes", raw, bytes(range(256)), "application/x-unknown"),
]


@pytest.mark.parametrize(
    ("queue", "body", "content_type"),
    [case[1:] for case in READABLE],
    ids=[case[0] for case in READABLE],
)
async def test_what_is_odd_and_can_be_read_is_handled(
    broker: Broker,
    serve: Any,
    dead: Dead,
    clock: VirtualClock,
    queue: Queue[Any],
    body: bytes,
    content_type: str | None,
) -> None:
    handled: list[Any] = []

    async def handler(payload: Any) -> None:
        handled.append(payload)

    await stored(broker, queue, Message(id="odd", body=body, content_type=content_type))
    async with serve(queue, handler):
        await clock.settle()
    assert len(handled) == 1
    assert await dead(queue) == []


EXECUTING = [
    "application/x-python-serialize",
    "Application/X-Python-Serialize; charset=utf-8",
    "application/python-pickle",
    "application/x-python-pickle",
    "application/x-pickle",
    "application/pickle",
    "application/pickle+json;q=1,application/pickle",
    "application/vnd.python.pickle",
    "application/cloudpickle",
    "application/x-cloudpickle",
    "application/dill",
    "application/x-marshal",
    "application/x-yaml",
    "application/yaml",
    "text/yaml",
    "application/x-java-serialized-object",
    " application/x-pickle ",
    "application/x-pickle\0",
    "pickle",
    "PICKLE",
    "\napplication/pickle",
]


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize(
    "content_type", [*EXECUTING, JSON, "text/plain", "application/octet-stream", "", None]
)
@pytest.mark.parametrize("queue", [orders, anything, words], ids=lambda queue: queue.name)
async def test_nothing_that_a_message_says_is_executed(
    broker: Broker,
    serve: Any,
    dead: Dead,
    clock: VirtualClock,
    tmp_path: Path,
    queue: Queue[Any],
    content_type: str | None,
) -> None:
    flag = tmp_path / "executed"
    body = pickle.dumps(Bomb(flag))
    await stored(broker, queue, Message(id="bomb", body=body, content_type=content_type))
    handled: list[Any] = []
    async with serve(queue, lambda payload: handled.append(payload)):  # noqa: PLW0108 - a function of this module
        await clock.settle()
    assert not flag.exists()
    if (queue, content_type) == (anything, "application/octet-stream"):
        assert handled == [body]  # bytes are anything, too; they are handed over as they are
        return
    assert handled == []
    assert [letter.reason for letter in await dead(queue)] in (["undecodable"], ["invalid"])
    if content_type in EXECUTING:
        assert [letter.reason for letter in await dead(queue)] == ["undecodable"]


async def test_foreign_headers_change_no_rule_and_survive_every_move(
    broker: Broker, serve: Any, dead: Dead, clock: VirtualClock
) -> None:
    odd = {
        "mq-attempt": "99",
        "X-Death": "7",
        "": "",
        "Ключ": "значение",
        "a\r\nb": "\0",
        "big": "x" * 100_000,
    }
    seen: list[tuple[int, Any]] = []

    async def handler(_: Order, ctx: Context) -> None:
        seen.append((ctx.attempt, ctx.headers))
        raise Retry(delay=1)

    await stored(broker, orders, Message(id="odd", body=b'{"number": 1}', headers=odd))
    async with serve(orders, handler, retry=RetryPolicy(2, fixed(1))):
        await clock.advance(5)
        (letter,) = await dead(orders)
        assert (letter.reason, letter.headers) == ("retries_exhausted", odd)
        assert (await broker.dead_letters(orders).redrive()).moved == ("odd",)
        await clock.advance(5)
    assert seen == [(1, odd), (2, odd)] * 2


# What is asked for at a publish

DEEP: Any = functools.reduce(lambda inner, _: [inner], range(1_000), [SECRET])
REFUSED: list[tuple[str, Queue[Any] | Router[Any], Any, dict[str, Any], type[MqcoreError]]] = [
    ("a dict for a model", orders, {"number": SECRET}, {}, ValidationError),
    ("another type", orders, SECRET, {}, ValidationError),
    ("none", orders, None, {}, ValidationError),
    ("NaN", orders, Order(number=1, total=math.nan, note=SECRET), {}, ValidationError),
    ("Infinity", orders, Order(number=1, total=-math.inf, note=SECRET), {}, ValidationError),
    ("NaN deep inside", orders, Order(number=1, note=[{SECRET: math.nan}]), {}, ValidationError),
    ("a lone surrogate", words, f"{SECRET}\ud800", {}, ValidationError),
    (
        "a lone surrogate in a model",
        orders,
        Order(number=1, note=f"{SECRET}\ud800"),
        {},
        ValidationError,
    ),
    ("nested 1,000 deep", anything, DEEP, {}, ValidationError),
    ("an object", anything, object(), {}, ValidationError),
    ("a model made invalid", orders, Order.model_construct(number=SECRET), {}, ValidationError),
    ("a whole number of 5,000 digits", anything, 10**5_000, {}, ValidationError),
    ("more than 1 MiB", words, SECRET * 100_000, {}, MessageTooLarge),
    ("text for bytes", raw, SECRET, {}, ValidationError),
    *[
        (f"priority {priority!r}", orders, Order(number=3), {"priority": priority}, ValidationError)
        for priority in (-1, 11, 5.5, True, "8", None, math.nan, 10**30)
    ],
    *[
        (f"ttl {ttl!r}", orders, Order(number=3), {"ttl": ttl}, ValidationError)
        for ttl in (
            0,
            -1,
            -math.inf,
            math.inf,
            math.nan,
            timedelta(0),
            timedelta(seconds=-1),
            "soon",
        )
    ],
    *[
        (f"delay {delay!r}", orders, Order(number=3), {"delay": delay}, ValidationError)
        for delay in (-1, math.inf, math.nan, timedelta(seconds=-1), None, "later", 1e15)
    ],
    (
        "a delay as long as the ttl",
        orders,
        Order(number=3),
        {"delay": 60, "ttl": 60},
        ValidationError,
    ),
    (
        "a delay beyond the expiry",
        orders,
        Order(number=3),
        {"delay": 61, "ttl": timedelta(minutes=1)},
        ValidationError,
    ),
    (
        "a delay beyond the queue's ttl",
        Queue("short", int, ttl=5),
        1,
        {"delay": 6},
        ValidationError,
    ),
    *[
        (f"id {id_!r:.20}", orders, Order(number=3), {"id": id_}, ValidationError)
        for id_ in ("", " ", "a b", "a\nb", "ü", "x" * 129, 5, None, b"id", "\0")
    ],
    *[
        (f"headers {name}", orders, Order(number=3), {"headers": headers}, ValidationError)
        for name, headers in {
            "reserved": {"mq-attempt": SECRET},
            "a broker's": {"X-Death": SECRET},
            "non-ascii name": {"schlüssel": SECRET},
            "empty name": {"": SECRET},
            "cr lf in a name": {"a\r\nb": SECRET},
            "cr lf in a value": {"a": f"{SECRET}\r\nb: c"},
            "nul": {"a": f"{SECRET}\0"},
            "surrogate": {"a": f"{SECRET}\ud800"},
            "number": {"a": 5},
            "none": {"a": None},
            "bytes": {"a": SECRET.encode()},
            "list": {"a": [SECRET]},
            "pairs": [("a", SECRET)],
        }.items()
    ],
    (
        "65 headers",
        orders,
        Order(number=3),
        {"headers": {f"h{i}": SECRET for i in range(65)}},
        MessageTooLarge,
    ),
    ("a huge header", orders, Order(number=3), {"headers": {"a": SECRET * 1_000}}, MessageTooLarge),
    (
        "many large headers",
        orders,
        Order(number=3),
        {"headers": {f"h{i}": SECRET * 50 for i in range(60)}},
        MessageTooLarge,
    ),
    ("a key for a queue", orders, Order(number=3), {"key": "order.new"}, ValidationError),
    *[
        (f"key {name}", topic, Order(number=3), {"key": key}, ValidationError)
        for name, key in {
            "long": "x" * 256,
            "none": None,
            "number": 5,
            "surrogate": "order.\ud800",
        }.items()
    ],
    ("a typo", orders, Order(number=3), {"dealy": 30}, ConfigurationError),
    (
        "a keyword of another library",
        orders,
        Order(number=3),
        {"countdown": 30},
        ConfigurationError,
    ),
]


async def by_publish_many(broker: Broker, to: Any, payload: Any, options: Any) -> None:
    endings = await broker.publish_many(to, [payload], **options)
    raise endings[0] if isinstance(endings[0], MqcoreError) else AssertionError(endings)


def by_context(broker: Broker, to: Any, payload: Any, options: Any) -> Awaitable[Receipt]:
    delivery = Delivery(Message(id="handled", body=b""), b"")
    return Context("orders", delivery, broker._session.publisher).publish(to, payload, **options)


WAYS: dict[str, Callable[[Broker, Any, Any, dict[str, Any]], Awaitable[Any]]] = {
    "publish": lambda broker, to, payload, options: broker.publish(to, payload, **options),
    "publish_many": by_publish_many,
    "producer": lambda broker, to, payload, options: broker.producer(to).publish(
        payload, **options
    ),
    "ctx.publish": by_context,
    "request": lambda broker, to, payload, options: broker.request(to, payload, **options),
}


@pytest.mark.parametrize(
    ("to", "payload", "options", "error"),
    [case[1:] for case in REFUSED],
    ids=[case[0] for case in REFUSED],
)
@pytest.mark.parametrize("way", WAYS)
async def test_what_cannot_be_sent_is_refused_and_sends_nothing(
    broker: Broker,
    serve: Any,
    clock: VirtualClock,
    to: Queue[Any] | Router[Any],
    payload: Any,
    options: dict[str, Any],
    error: type[MqcoreError],
    way: str,
) -> None:
    async def bad() -> None:
        with pytest.raises(error) as caught:
            await WAYS[way](broker, to, payload, options)
        assert SECRET not in shown(caught.value)
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 600

    await between_neighbours(broker, serve, clock, bad)
    assert broker.events.counts["message.published"] == 2


def test_a_producers_defaults_are_looked_at_when_it_is_made() -> None:
    broker = Broker.connect(memory_url(), settings=Settings())
    with pytest.raises(ConfigurationError, match="'priority'"):
        broker.producer(orders, piority=8)  # type: ignore[call-arg]  # a typo, on purpose


async def test_a_request_says_at_once_that_it_cannot_read_the_answer(broker: Broker) -> None:
    with pytest.raises(ConfigurationError, match="cannot be checked"):
        await broker.request(orders, Order(number=1), result=5)  # type: ignore[call-overload]  # no type, on purpose
    assert broker.events.counts["message.published"] == 0


NOWHERE: dict[str, Callable[[Broker], Awaitable[Any]]] = {
    "publish": lambda broker: broker.publish("nowhere", SECRET),
    "request": lambda broker: broker.request("nowhere", SECRET),
    "consume": lambda broker: broker.consume("nowhere").get(),
    "adopt": lambda broker: broker.declare(Queue("nowhere", declare=False)),
    "peek": lambda broker: broker.peek("nowhere"),
    "purge": lambda broker: broker.purge("nowhere"),
    "counts": lambda broker: broker.counts("nowhere"),
    "delete": lambda broker: broker.delete("nowhere"),
    "dead letters": lambda broker: broker.dead_letters("nowhere").list(),
    "redrive": lambda broker: broker.dead_letters("nowhere").redrive(),
}


@pytest.mark.parametrize("doing", NOWHERE)
async def test_an_unknown_queue_is_named(
    broker: Broker, serve: Any, clock: VirtualClock, doing: str
) -> None:
    async def bad() -> None:
        with pytest.raises(QueueNotFound, match="nowhere") as caught:
            await NOWHERE[doing](broker)
        assert SECRET not in shown(caught.value)

    await between_neighbours(broker, serve, clock, bad)


# What is configured

URLS = [
    "",
    " ",
    SECRET,
    f"user:{SECRET}@host",
    f"redis:/user:{SECRET}@host",
    f"redis:user:{SECRET}@host",
    f"://user:{SECRET}@host",
    f"//user:{SECRET}@host",
    f"1redis://user:{SECRET}@host",
    f"re dis://user:{SECRET}@host",
    f"redis ://user:{SECRET}@host",
    f" redis://user:{SECRET}@host",
    f"redis://user:{SECRET}@host ",
    f"redis://user:{SECRET}@host\n",
    f"redis://user:{SECRET}@host\r\nFLUSHALL",
    f"redis://user:{SECRET}@host%0d%0aFLUSHALL",
    f"redis://user:{SECRET}@ho\0st",
    f"redis://user:{SECRET}@host:0",
    f"redis://user:{SECRET}@host:-1",
    f"redis://user:{SECRET}@host:65536",
    f"redis://user:{SECRET}@host:port",
    f"redis://host:{SECRET}",
    f"redis://user:{SECRET}@[::1",
    f"redis://user:{SECRET}@::1]",
    f"redis://user:{SECRET}%@host",
    f"redis://user:{SECRET}%zz@host",
    f"redis://user:{SECRET}#@host",
    f"redis://user:{SECRET}/@host:x",
    f"redis://user:{SECRET}?@host",
    f"redis://user:a@{SECRET}@host:x",
    f"redis://{SECRET}:{SECRET}@{SECRET}@host:x",
    f"redis://host?password={SECRET}&password={SECRET}",
    f"redis://host?password={SECRET}&x",
    f"redis://host?password={SECRET}&a=%ff",
    f"redis://host/0#{SECRET}",
    "redis://" + SECRET * 1_000,
    f"nosuch://user:{SECRET}@host",
    f"redsi://user:{SECRET}@host",
    f"javascript://user:{SECRET}@host",
    f"file://user:{SECRET}@host/etc/passwd",
    f"http://user:{SECRET}@host/?token={SECRET}",
    f"memory://user:{SECRET}@shop",
    f"memory://{SECRET}@shop",
    f"memory://shop?password={SECRET}",
    "memory://shop?dedup_widow=60",
    "memory://shop?dedup_window=long",
    "memory://shop?dedup_window=-1",
    "memory://shop?dedup_size=1.5",
    "memory://shop?clock=real",
    "memory://shop?max_delay=1e999",
]
HOW: dict[str, Callable[[str, Path, pytest.MonkeyPatch], Any]] = {
    "argument": lambda url, *_: Broker.connect(url),
    "sync": lambda url, *_: mqcore.sync.Broker.connect(url),
    "app": lambda url, *_: App("shop").connect(url),
    "environment": lambda url, _, patch: (patch.setenv("MQCORE_URL", url), Broker.connect()),
    "file": lambda url, path, _: (
        (path / "mqcore.toml").write_text(
            f"url = {TypeAdapter(str).dump_json(url).decode()}", "utf-8"
        ),
        Broker.connect(),
    ),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("url", URLS, ids=range(len(URLS)))
def test_a_url_that_is_none_is_refused_in_one_line_without_its_secrets(
    url: str, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "\0" in url and how == "environment":
        return  # the system itself takes no such variable
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MQCORE_URL", raising=False)
    with pytest.raises(ConfigurationError) as caught:
        HOW[how](url, tmp_path, monkeypatch)
    text = str(caught.value)
    assert text.isprintable()
    assert len(text) < 900
    assert SECRET not in shown(caught.value) or url in (
        SECRET,
        "redis://" + SECRET * 1_000,
    )  # no place of a secret
    if url.startswith(("nosuch://user", "redsi", "javascript", "file", "http")):
        assert isinstance(caught.value, BackendNotFound)


@pytest.mark.parametrize("url", [5, b"memory://", ["memory://"], Path("x")], ids=repr)
def test_a_url_is_text(url: Any) -> None:
    with pytest.raises(ConfigurationError, match="text"):
        Broker.connect(url)


async def test_an_open_broker_shows_no_secret() -> None:
    url = f"{memory_url()}?dedup_window=60"
    settings = Settings(
        url=url, backends={"memory": {"dedup_window": 60.0}, "redis": {"password": SECRET}}
    )
    async with Broker.connect(settings=settings) as broker:
        assert SECRET not in repr(broker) + repr(settings) + repr(broker.health()) + repr(
            broker.capabilities
        )


TYPOS: dict[str, tuple[Callable[[], Any], str]] = {
    "queue": (lambda: Queue("orders", Order, tll=3), "'ttl'"),  # type: ignore[call-overload]  # typos, on purpose
    "queue, far off": (lambda: Queue("orders", Order, durable=True), "There are: codec"),  # type: ignore[call-overload]
    "queue.configured": (lambda: orders.configured(max_lenght=3), "'max_length'"),  # type: ignore[call-arg]
    "consumer": (lambda: App("a").consumer(orders, concurency=3)(print), "'concurrency'"),  # type: ignore[call-overload]
    "register": (lambda: App("a").register(orders, print, {"retries": 3}), "'retry'"),  # type: ignore[typeddict-unknown-key]
    "connect": (lambda: Broker.connect("memory://", durabilty="x"), "'durability'"),  # type: ignore[call-arg]
    "app.connect": (lambda: App("a").connect("memory://", clok=1), "'clock'"),  # type: ignore[call-arg]
    "worker": (lambda: Worker(App("a"), Broker("memory://"), queue=["q"]), "'queues'"),  # type: ignore[call-arg]
}


@pytest.mark.parametrize("name", TYPOS)
def test_an_option_that_there_is_not_is_refused(name: str) -> None:
    call, meant = TYPOS[name]
    with pytest.raises(ConfigurationError, match="no such option") as caught:
        call()
    assert meant in str(caught.value)


FILES = [
    ("uurl = 'memory://'", "'url'"),
    ("[queue.orders]\nttl = 3", "'queues'"),
    ("[queues.orders]\ntll = 3", "'ttl'"),
    ("[queues.orders.retry]\nmax_attemps = 3", "'max_attempts'"),
    ("[queues.orders]\nttl = 'hunter2canary'", "queues.orders.ttl"),
    ("[queues.orders]\nttl = -1", "queues.orders.ttl"),
    ("[queues.orders]\nmax_length = 0", "queues.orders.max_length"),
    ("[backends.memory]\ndedup_widow = 3", "'dedup_window'"),
    ("[backends.memory]\npassword = 'hunter2canary'", "password"),
    ("durability = 'hunter2canary'", "memory, process, machine, replicated"),
    ("codecs = ['pickle']", "pickle"),
    ("url = 'redis://user:hunter2canary@host:port'", "not usable"),
    ("url = hunter2canary", "cannot be read"),
]


@pytest.mark.parametrize(("text", "told"), FILES, ids=[text for text, _ in FILES])
def test_a_mistake_in_the_file_is_told_in_one_line(
    text: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mqcore.toml").write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        Broker.connect()
    assert told in str(caught.value)
    assert str(caught.value).isprintable()
    assert SECRET not in shown(caught.value)


# Names, numbers and handlers

NAMES: list[Any] = [
    "*",
    "#",
    "",
    " ",
    "x" * 201,
    "ü",
    "очередь",
    "队列",
    "a b",
    "a/b",
    "a\\b",
    "a\nb",
    "a\0b",
    "\ud800",
    ".",
    "..",
    ".orders",
    "-orders",
    "../../etc/passwd",
    "orders;DROP TABLE orders",
    "'; DROP TABLE orders; --",
    '" OR 1=1',
    "$(touch x)",
    "`touch x`",
    "a|b",
    "a&b",
    "{orders}",
    "%s%n",
    "<b>",
    None,
    5,
    b"orders",
    ["orders"],
]
NAMED: dict[str, Callable[[Any], Any]] = {
    "queue": Queue,
    "adopted": lambda name: Queue(name, declare=False),
    "router": Router,
    "dead letters": lambda name: Queue("orders", dead_letter=name),
    "consume": lambda name: Broker.connect(memory_url(), settings=Settings()).consume(name),
}


@pytest.mark.parametrize("place", NAMED)
@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_that_some_broker_would_misread_is_refused(name: Any, place: str) -> None:
    if (place == "consume" and not isinstance(name, str)) or (
        place == "dead letters" and name is None
    ):
        return  # no name: an object, which is mypy's to refuse, or none, which is allowed there
    with pytest.raises(ConfigurationError, match=r"name .* is not usable") as caught:
        NAMED[place](name)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["orders.dlq", "orders.quarantine", "mq.orders", "amq.orders"])
def test_the_names_that_are_made_by_mqcore_and_brokers_are_not_for_users(name: str) -> None:
    with pytest.raises(ConfigurationError, match="reserved for mqcore and the brokers"):
        Queue(name)
    assert Queue(name, declare=False).name == name


@pytest.mark.parametrize("name", ["mq.events", "amq.topic"])
def test_no_router_takes_a_brokers_own_name(name: str) -> None:
    with pytest.raises(ConfigurationError, match="reserved for mqcore and the brokers"):
        Router(name)


@pytest.mark.parametrize("name", [name for name in NAMES if isinstance(name, str)], ids=ascii)
async def test_a_bare_name_that_is_odd_is_just_not_there(broker: Broker, name: str) -> None:
    for call in (
        broker.publish(name, 1),
        broker.counts(name),
        broker.purge(name),
        broker.delete(name),
    ):
        with pytest.raises((QueueNotFound, ConfigurationError)):
            await call


NUMBERS: list[tuple[str, list[Any]]] = [
    ("concurrency", [0, -1, 2.5, math.nan, "3", None, True]),
    ("prefetch", [0, -1, 2.5, math.nan, "3", None]),
    ("batch", [0, -1, 2.5, "3", None]),
    ("linger", [-1, math.nan, math.inf, "1"]),
    ("lease", [0, -1, math.nan, math.inf, "30", None]),
    ("timeout", [0, -1, math.nan, math.inf, "30", timedelta(0)]),
    ("retry", [3, "often"]),
]


@pytest.mark.parametrize(
    ("option", "value"), [(name, value) for name, values in NUMBERS for value in values], ids=repr
)
def test_a_number_that_means_nothing_is_refused_where_a_handler_is_registered(
    option: str, value: Any
) -> None:
    with pytest.raises(ConfigurationError, match=f"{option}="):
        App("a").register(orders, lambda payload: payload, {option: value})  # type: ignore[misc]  # wrong on purpose


@pytest.mark.parametrize(
    "options",
    [
        *({"ttl": value} for value in (0, -1, math.nan, math.inf, "60", timedelta(0), True, [])),
        *({"retention": value} for value in (0, -1, math.nan, "60")),
        *({"max_length": value} for value in (0, -1, 2.5, math.nan, "3", True)),
        *({"overflow": value} for value in ("drop", None, [], 5)),
        *({"retry": value} for value in (3, "often")),
        {"dead_letter": "orders"},
        {"dead_letter": None, "overflow": "dead_letter"},
    ],
    ids=repr,
)
def test_a_setting_that_means_nothing_is_refused_where_a_queue_is_described(
    options: dict[str, Any],
) -> None:
    with pytest.raises(ConfigurationError, match="orders"):
        Queue("orders", Order, **options)


@pytest.mark.parametrize(
    "options",
    [
        *({"prefetch": value} for value in (0, -1, 2.5, "3")),
        *({"lease": value} for value in (0, -1, math.nan, "30")),
    ],
    ids=repr,
)
def test_a_pull_consumer_that_would_never_get_anything_is_refused(
    broker: Broker, options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match="orders"):
        broker.consume(orders, **options)


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"grace": -1},
        {"grace": math.nan},
        {"max_messages": 0},
        {"max_memory": "1G"},
        {"queues": ["x"]},
    ],
    ids=repr,
)
def test_a_worker_that_could_not_work_is_refused(broker: Broker, options: dict[str, Any]) -> None:
    app = App("shop")
    app.consumer(orders)(lambda _: None)
    with pytest.raises(ConfigurationError, match="shop"):
        Worker(app, broker, **options)


@pytest.mark.parametrize("match", ["some", None, ["all"]], ids=repr)
def test_a_binding_that_no_broker_knows_is_refused(match: Any) -> None:
    with pytest.raises(ConfigurationError, match="match="):
        by_header.binding(orders, headers={"a": "b"}, match=match)


@pytest.mark.parametrize("pattern", ["x" * 256, 5, None, "\ud800"], ids=ascii)
def test_a_pattern_that_no_broker_takes_is_refused(pattern: Any) -> None:
    with pytest.raises(ConfigurationError, match="routing key"):
        Router("shop", Order, kind="direct").bind(orders, pattern)


@pytest.mark.parametrize("to", [None, 5, b"orders", ["orders"], Queue], ids=repr)
async def test_one_publishes_to_a_queue_a_router_or_a_name(broker: Broker, to: Any) -> None:
    with pytest.raises(ConfigurationError, match="publish to a Queue"):
        await broker.publish(to, 1)


@pytest.mark.parametrize("thing", [None, 5, "orders", Queue], ids=repr)
async def test_one_declares_queues_and_routers(broker: Broker, thing: Any) -> None:
    with pytest.raises(ConfigurationError, match="declare takes"):
        await broker.declare(thing)


def nothing() -> None: ...
def one(_a: Any) -> None: ...
def three(_a: Order, _b: Any, _c: Any) -> None: ...
def keyword_only(_a: Order, *, b: Any) -> None: ...
def only_keywords(*, a: Order) -> None: ...
def any_number(*_: Any) -> None: ...
def generator(a: Order) -> Iterator[Order]:
    yield a


async def async_generator(a: Order) -> Any:
    yield a


async def unreadable(a: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821 - on purpose


class Streaming:
    def __call__(self, a: Order) -> Iterator[Order]:
        yield a


class Handler:
    def handle(self, _: Order) -> None: ...


SHAPES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no parameter": (nothing, {}, "takes the payload"),
    "three parameters": (three, {}, "takes the payload"),
    "a parameter that is only a keyword": (keyword_only, {}, "takes the payload"),
    "only keywords": (only_keywords, {}, "takes the payload"),
    "any number": (any_number, {}, "takes the payload"),
    "a partial with nothing left": (functools.partial(three, 1, 2, 3), {}, "takes the payload"),
    "a generator": (generator, {}, "generator"),
    "an async generator": (async_generator, {}, "generator"),
    "an object that generates": (Streaming(), {}, "generator"),
    "a partial generator": (functools.partial(generator), {}, "generator"),
    "a class of C": (int, {}, "not a handler"),
    "none": (None, {}, "not a handler"),
    "a name": ("orders.handler", {}, "not a handler"),
    "a number": (5, {}, "not a handler"),
    "a lambda for a process": (lambda a: a, {"process": True}, "top level"),
    "a bound method for a process": (Handler().handle, {"process": True}, "top level"),
    "an object for a process": (functools.partial(three, 1, 2), {"process": True}, "top level"),
    "a builtin for a process": (len, {"process": True}, "top level"),
    "a context for a batch": (lambda items, ctx: None, {"batch": 3}, "takes one list"),
    "a batch in a process": (one, {"batch": 3, "process": True}, "cannot run in a process"),
    "a batch settled first": (lambda items: None, {"batch": 3, "ack_first": True}, "ack_first"),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("queue", [orders, "orders"], ids=["queue", "name"])
def test_a_handler_of_the_wrong_shape_is_refused_at_registration(
    shape: str, queue: Queue[Any] | str
) -> None:
    handler, options, why = SHAPES[shape]
    app = App("shop")
    with pytest.raises(ConfigurationError, match=why) as caught:
        app.register(queue, handler, options)  # type: ignore[arg-type]  # wrong on purpose
    assert "orders" in str(caught.value)
    assert app.handlers == []


def test_an_annotation_that_cannot_be_read_is_named() -> None:
    with pytest.raises(ConfigurationError, match="Nowhere"):
        App("shop").consumer("orders")(unreadable)


async def test_a_codec_that_is_not_allowed_is_told_before_the_first_message(
    broker: Broker, serve: Any
) -> None:
    queue = Queue("packed", int, codec="pickle")
    with pytest.raises(ConfigurationError, match="'pickle' is not installed or not allowed"):
        async with serve(queue, lambda _: None):
            pass
    with pytest.raises(ConfigurationError, match="'pickle'"):
        await broker.consume(queue).get()
    with pytest.raises(ConfigurationError, match="'pickle'"):
        await broker.publish(queue, 1)


async def test_more_durability_than_there_is_and_a_word_that_is_none() -> None:
    with pytest.raises(UnsupportedFeature, match="memory, process, machine, replicated"):
        Broker.connect(memory_url(), durability="forever")
    broker = Broker.connect(memory_url(), durability="machine")
    with pytest.raises(mqcore.DurabilityUnavailable):
        await broker.open()
    await asyncio.wait_for(broker.close(), 5)
