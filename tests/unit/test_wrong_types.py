"""A wrong argument of a public call is refused in words of ours, where it is given.

Every public call gets, for one argument after the other, values of a wrong type. The call must
raise an error of mqcore, or accept the value. `Stranger` is right nowhere, so it must be refused.
"""

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

import mqcore
import mqcore.sync
from mqcore import (
    App,
    Backoff,
    Binding,
    Broker,
    Capability,
    Clock,
    Durability,
    Limits,
    MqcoreError,
    Queue,
    RetryPolicy,
    Router,
    Settings,
    SystemClock,
    Worker,
    exponential,
    fixed,
    linear,
)
from mqcore.config.plugins import Plugins
from mqcore.config.settings import open_backend
from mqcore.testing import memory_url


class Stranger:
    """An object that is right for no argument."""

    def __repr__(self) -> str:
        return "a stranger"


STRANGER = Stranger()
WRONG: list[Any] = [
    *(STRANGER, [STRANGER], {STRANGER: STRANGER}, Stranger, 5, 2.5, True, None),
    *("abc", "", b"abc", [], {}, lambda value: value),
]
NEVER_RIGHT = (STRANGER, [STRANGER])


@dataclass(frozen=True)
class Call:
    """A public call with arguments that are right, and those that may be any object."""

    make: Callable[..., Any]
    arguments: dict[str, Any]
    any_object: tuple[str, ...] = ()


def kind_of(value: object) -> str:
    return type(value).__name__


async def handler(_: str) -> None: ...


def app() -> App:
    described = App("shop")
    described.register(Queue("jobs", str), handler, {})
    return described


async def of_batch(_: list[Any]) -> None: ...


def _backend() -> Any:
    clock = SystemClock()
    return open_backend("memory://", SETTINGS, Plugins(), clock)


def _positional(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return the call with its one argument named `it`."""

    def called(it: Any) -> Any:
        return call(it)

    return called


jobs = Queue("jobs", str)
shop = Router("shop", str).bind(jobs, "placed")
by_header = Router("by-header", str, kind="headers")
SETTINGS = Settings()
CONNECT: dict[str, Any] = {
    "url": "memory://",
    "settings": SETTINGS,
    "durability": None,
    "clock": SystemClock(),
    "middleware": [],
    "limits": Limits(),
    "plugins": Plugins(),
    "queues": [],
    "routers": [],
}


async def conclude(_: object) -> None: ...


def profile(_: object) -> None: ...


CONSUMER: dict[str, Any] = {
    "retry": RetryPolicy(),
    "concurrency": 1,
    "prefetch": 1,
    "timeout": 1,
    "lease": 30,
    "after_crash": "count",
    "conclusion": conclude,
    "name": "x",
}

MAKING: dict[str, Call] = {
    "App": Call(App, {"name": "a", "routers": [], "middleware": [], "lifespan": None}),
    "App.consumer": Call(
        lambda **options: App("a").consumer(**options)(handler),
        {
            "queue": jobs,
            **CONSUMER,
            "process": False,
            "ack_first": False,
            "profile": profile,
            "modes": {},
        },
    ),
    "App.consumer batch": Call(
        lambda **options: App("a").consumer(**options)(of_batch),
        {"queue": jobs, **CONSUMER, "batch": 1, "linger": 1},
    ),
    "App.register": Call(
        lambda **options: App("a").register(**options),
        {"queue": jobs, "handler": handler, "options": {}},
    ),
    "App.connect": Call(lambda **options: app().connect(**options), CONNECT),
    "Broker": Call(Broker, CONNECT),
    "Broker.connect": Call(Broker.connect, CONNECT),
    "Broker make_backend": Call(Broker, {"settings": SETTINGS, "make_backend": _backend}),
    "Queue": Call(
        Queue,
        {
            "name": "a",
            "payload": str,
            "ttl": 1,
            "max_length": 1,
            "overflow": "reject",
            "dead_letter": "b",
            "retention": 2,
            "retry": RetryPolicy(),
            "codec": "json",
            "declare": True,
        },
    ),
    "Router": Call(Router, {"name": "a", "payload": str, "kind": "topic"}),
    "Router.bind": Call(Router("a", str).bind, {"queue": jobs, "pattern": "x"}),
    "Router.bind headers": Call(
        by_header.bind, {"queue": jobs, "headers": {"a": "b"}, "match": "all"}
    ),
    "Router.binding": Call(
        by_header.binding, {"queue": jobs, "headers": {"a": "b"}, "match": "all"}
    ),
    "Binding": Call(
        Binding,
        {
            "router": "a",
            "kind": "topic",
            "queue": "q",
            "pattern": "x",
            "headers": (),
            "match": "all",
        },
    ),
    "Worker": Call(
        Worker,
        {
            "app": app(),
            "broker": app().connect("memory://", settings=SETTINGS),
            "queues": ["jobs"],
            "concurrency": 1,
            "grace": 1,
            "health_file": "x",
            "max_messages": 1,
            "max_memory": 1,
        },
    ),
    "Settings": Call(
        Settings,
        {
            "url": "memory://",
            "durability": None,
            "publish_timeout": 1.0,
            "codecs": ("json",),
            "queues": {},
            "routers": {},
            "backends": {},
        },
    ),
    "Settings.load": Call(Settings.load, {"directory": None, "url": "memory://"}),
    "Limits": Call(Limits, {"payload": 1, "headers": 1, "header_bytes": 1, "header_value": 1}),
    "RetryPolicy": Call(
        RetryPolicy,
        {
            "max_attempts": 1,
            "backoff": fixed(1),
            "max_age": 1,
            "retry_on": (OSError,),
            "give_up_on": (),
        },
    ),
    "Backoff": Call(
        Backoff, {"base": 1.0, "step": 0.0, "factor": 1.0, "cap": 1.0, "jitter": False}
    ),
    "fixed": Call(fixed, {"delay": 1, "jitter": False}),
    "linear": Call(linear, {"step": 1, "cap": 2, "jitter": False}),
    "exponential": Call(exponential, {"base": 1, "cap": 2, "factor": 2.0, "jitter": False}),
    "Durability.parse": Call(Durability.parse, {"word": "memory"}),
}


PUBLISH: dict[str, Any] = {
    "priority": 1,
    "ttl": 9,
    "delay": 0,
    "headers": {"a": "b"},
    "timeout": 1,
}
USING: dict[str, Callable[[Broker], Call]] = {
    "publish": lambda broker: Call(
        broker.publish, {"to": jobs, "payload": "x", **PUBLISH, "id": "x"}
    ),
    "publish by a router": lambda broker: Call(
        broker.publish, {"to": shop, "payload": "x", "key": "placed"}
    ),
    "publish_many": lambda broker: Call(
        broker.publish_many, {"to": jobs, "payloads": ["x"], **PUBLISH}
    ),
    "producer": lambda broker: Call(broker.producer, {"to": shop, **PUBLISH, "key": "placed"}),
    "Producer.publish": lambda broker: Call(
        broker.producer(jobs).publish, {"payload": "x", **PUBLISH}
    ),
    "Producer.publish_many": lambda broker: Call(
        broker.producer(jobs).publish_many, {"payloads": ["x"], **PUBLISH}
    ),
    "consume": lambda broker: Call(
        broker.consume,
        {"queue": jobs, "prefetch": 1, "retry": None, "lease": 30, "after_crash": "count"},
    ),
    "declare": lambda broker: Call(_positional(broker.declare), {"it": jobs}),
    "unbind": lambda broker: Call(_positional(broker.unbind), {"it": shop.binding(jobs, "other")}),
    "bindings": lambda broker: Call(broker.bindings, {"router": "shop"}),
    "delete": lambda broker: Call(broker.delete, {"queue": Queue("gone"), "if_empty": True}),
    "alter": lambda broker: Call(
        broker.alter, {"queue": jobs, "ttl": 1, "max_length": 5, "overflow": "reject"}
    ),
    "purge": lambda broker: Call(broker.purge, {"queue": jobs}),
    "peek": lambda broker: Call(broker.peek, {"queue": jobs, "limit": 1, "after": None}),
    "counts": lambda broker: Call(_positional(broker.counts), {"it": jobs}),
    "dead_letters": lambda broker: Call(broker.dead_letters, {"queue": jobs}),
    "DeadLetters.list": lambda broker: Call(
        broker.dead_letters(jobs).list,
        {
            "limit": 1,
            "ids": ["a"],
            "reason": "rejected",
            "queue": "a",
            "error": "x",
            "before": 1.0,
            "after": 1.0,
        },
    ),
    "DeadLetters.get": lambda broker: Call(broker.dead_letters(jobs).get, {"id": "x"}),
    "DeadLetters.redrive": lambda broker: Call(
        broker.dead_letters(jobs).redrive,
        {"to": "jobs", "limit": 1, "force": False, "ids": ["a"]},
    ),
    "DeadLetters.purge": lambda broker: Call(broker.dead_letters(jobs).purge, {"ids": ["a"]}),
    "unwrap": lambda broker: Call(_unwrapped(broker), {"kind": int}),
    "Worker.drain": lambda broker: Call(Worker(app(), broker).drain, {"grace": 0}),
    "Capabilities": lambda broker: Call(
        broker.capabilities.__getitem__, {"capability": Capability.DELAY}
    ),
    "Capabilities.has": lambda broker: Call(
        broker.capabilities.has, {"capability": Capability.DELAY}
    ),
    "Capabilities.require_durability": lambda broker: Call(
        broker.capabilities.require_durability, {"wanted": "memory"}
    ),
    "Events.listen": lambda broker: Call(broker.events.listen, {"listener": lambda _: None}),
}


def _unwrapped(broker: Broker) -> Callable[[Any], object]:
    def unwrap(kind: Any) -> object:
        return None if kind is int else broker.unwrap(kind)  # memory has no client at all

    return unwrap


NOT_FOR_USERS = {
    "Backoff": {"wait"},
    "Binding": {"takes"},
    "BlockingContext": {"lose_lease", "open_session", "publish"},  # `publish` is `Broker.publish`
    "Broker": {"request"},  # below: it waits for a reply
    "Capabilities": {"require"},
    "Clock": {"busy", "monotonic", "now", "sleep", "timeout"},
    "Consumer": {"close", "get", "resize"},  # below: while it consumes
    "Context": {"blocking", "lose_lease", "open_session", "publish"},
    "DeadLetter": {"matches"},
    "DeliveryInfo": {"lose_lease", "open_session"},
    "Limits": {"check"},
    "Message": {"copy", "moved"},
    "Middleware": {"handle", "incoming", "on_event", "outgoing"},
    "Queue": {"configured", "specs"},
    "Worker": {"add", "remove", "resize"},  # tests/integration/test_resize.py: while it runs
    "Conclusion": {"lose_lease", "postpone"},  # tests/integration/test_conclusions.py
    # below: they need a message
    "Received": {"finish", "lose_lease", "open_session", "postpone", "reject", "retry"},
    "RetryPolicy": {"retries"},
    "Settings": {
        "model_post_init",
        "queue_options",
        "retry_policy",
        "router_bindings",
        "source_of",
    },
    "SystemClock": {"busy", "monotonic", "now", "sleep", "timeout"},
}
"""Methods that core calls, with what it has checked; and those that are tested elsewhere."""


def wrong_values() -> Iterator[Any]:
    for name, call in MAKING.items():
        for argument in call.arguments:
            yield pytest.param(name, argument, id=f"{name}-{argument}")


async def refused(call: Call, argument: str) -> None:
    """Give one argument every wrong value."""
    for value in WRONG:
        try:
            result = call.make(**{**call.arguments, argument: value})
            if inspect.isawaitable(result):
                await result
        except MqcoreError as error:
            text = str(error)
        else:
            text = "accepted"
            may_be = value not in NEVER_RIGHT or argument in call.any_object
            assert may_be, f"{value!r} is accepted"
        assert text
        assert "object has no attribute" not in text


@pytest.mark.parametrize(("name", "argument"), [*wrong_values()])
async def test_what_is_made_with_a_wrong_argument(name: str, argument: str) -> None:
    await refused(MAKING[name], argument)


@pytest.fixture
async def broker() -> AsyncIterator[Broker]:
    async with Broker.connect(memory_url(), settings=SETTINGS) as connected:
        await connected.declare(jobs, shop, Queue("gone"))
        yield connected


@pytest.mark.parametrize("name", USING)
async def test_what_is_called_with_a_wrong_argument(broker: Broker, name: str) -> None:
    call = USING[name](broker)
    for argument in call.arguments:
        await refused(call, argument)


@pytest.mark.parametrize("value", [STRANGER, 5, None, [], lambda value: value], ids=kind_of)
async def test_a_request_with_a_wrong_argument(broker: Broker, value: Any) -> None:
    for options in ({"to": value}, {"timeout": value}, {"priority": value, "timeout": 0.01}):
        with pytest.raises(MqcoreError):
            await broker.request(**{"to": jobs, "payload": "x", "timeout": 0.01, **options})
    if value is not None:
        with pytest.raises(MqcoreError):
            await broker.request(jobs, "x", result=value, timeout=0.01)


@pytest.mark.parametrize("value", [STRANGER, 5, "abc", []], ids=kind_of)
async def test_a_message_settled_with_a_wrong_argument(broker: Broker, value: Any) -> None:
    await broker.publish(jobs, "x")
    async with broker.consume(jobs) as deliveries:
        received = await anext(deliveries)
        with pytest.raises(MqcoreError, match="error="):
            await received.retry(error=value)
        if value != "abc":
            with pytest.raises(MqcoreError, match="reason="):
                await received.reject(value)
        if value != 5:
            with pytest.raises(MqcoreError, match="delay="):
                await received.postpone(value)  # type: ignore[arg-type]  # what is tested
        await received.ack()


@pytest.mark.parametrize("value", [0, -1, 1.5, "10", None, True], ids=repr)
async def test_a_consumer_resized_with_a_wrong_prefetch(broker: Broker, value: Any) -> None:
    async with broker.consume(jobs) as deliveries:
        with pytest.raises(MqcoreError, match="prefetch"):
            await deliveries.resize(value)


def test_no_public_call_is_left_out() -> None:
    swept = {name.split(" ")[0] for name in MAKING} | {
        name if "." in name else f"Broker.{name}" for name in (key.split(" ")[0] for key in USING)
    }
    left_out = []

    for name in mqcore.__all__:
        thing = getattr(mqcore, name)
        if not isinstance(thing, type) or issubclass(thing, BaseException):
            continue
        for method, value in vars(thing).items():
            if method.startswith("_") or not _takes_arguments(value):
                continue
            if f"{name}.{method}" not in swept and method not in NOT_FOR_USERS.get(name, ()):
                left_out.append(f"{name}.{method}")

    assert not left_out


def _takes_arguments(value: object) -> bool:
    function = value.__func__ if isinstance(value, (classmethod, staticmethod)) else value
    return inspect.isfunction(function) and len(inspect.signature(function).parameters) > 1


async def test_what_is_plainly_meant_is_accepted(broker: Broker) -> None:
    assert Queue("a", str, dead_letter=False).dead_letter is None
    assert Queue("a", str, dead_letter=False).specs() == Queue("a", str, dead_letter=None).specs()
    assert await broker.bindings(shop) == await broker.bindings("shop")
    assert (await broker.dead_letters(jobs).redrive(to=jobs)).moved == ()
    broker.capabilities.require_durability("memory")


def test_a_clock_is_an_instance() -> None:
    assert isinstance(SystemClock(), Clock)
    with pytest.raises(MqcoreError, match="not the class SystemClock"):
        Broker("memory://", clock=SystemClock)  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("one", ["abc", b"abc", {"a": 1}, bytearray(b"abc")], ids=kind_of)
async def test_one_payload_is_not_a_batch(broker: Broker, one: Any) -> None:
    untyped: Queue[Any] = Queue("untyped", object)
    for publishing in (
        lambda: broker.publish_many(untyped, one),
        lambda: broker.producer(untyped).publish_many(one),
    ):
        publish: Callable[[], Awaitable[Any]] = publishing
        with pytest.raises(MqcoreError, match=r"list of payloads.*publish, or put it into a list"):
            await publish()


def test_a_blocking_broker_refuses_one_payload_as_a_batch() -> None:
    with (
        mqcore.sync.Broker.connect(memory_url(), settings=SETTINGS) as blocking,
        pytest.raises(MqcoreError, match="list of payloads"),
    ):
        blocking.publish_many(jobs, "abc")


async def test_a_producer_takes_no_id(broker: Broker) -> None:
    with pytest.raises(MqcoreError, match="takes no id"):
        broker.producer(jobs, id="one")


class Plain:
    def __init__(self, number: int) -> None: ...


@pytest.mark.parametrize("payload", [Plain, list[Plain]])
def test_a_payload_that_cannot_be_checked_names_its_queue_and_a_cure(payload: Any) -> None:
    for make in (Queue, Router):
        with pytest.raises(MqcoreError, match=r"'a': the payload type .*Plain.*dataclass") as error:
            make("a", payload)
        assert "arbitrary_types_allowed" not in str(error.value)


async def test_the_grace_of_a_worker_may_be_a_timedelta(broker: Broker) -> None:
    worker = Worker(app(), broker, grace=timedelta(seconds=5))
    await worker.start()
    await worker.drain()
    await worker.drain(timedelta(0))
