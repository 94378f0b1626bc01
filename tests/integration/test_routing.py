"""G15: one message to the queues whose bindings take it."""

import asyncio
import gc
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.faulty import Faults, answered, failed, first_failed

from mqcore import (
    App,
    Broker,
    ConfigurationError,
    PublishFailed,
    PublishUnknown,
    Queue,
    QueueFull,
    Receipt,
    RetryPolicy,
    Router,
    Settings,
    TopologyMismatch,
    Unroutable,
    ValidationError,
    Worker,
    fixed,
)
from mqcore.broker import session_of
from mqcore.spi import ErrorKind, Unknown
from mqcore.testing import VirtualClock
from mqcore_memory.store import IDLE_LIMIT

Ready = Callable[..., Awaitable[dict[str, int]]]
one, two, three = (Queue(name, str) for name in ("one", "two", "three"))


async def ready(broker: Broker) -> dict[str, int]:
    return {counts.name: counts.ready for counts in await broker.counts() if counts.role == "work"}


async def test_direct(broker: Broker) -> None:
    router = Router("r", str, kind="direct").bind(one, "a").bind(two, "b").bind(three, "a")
    receipt = await broker.publish(router, "x", key="a")
    assert sorted(receipt.queues) == ["one", "three"]
    assert await ready(broker) == {"one": 1, "two": 0, "three": 1}


async def test_a_router_that_is_made_for_one_publish_is_not_kept(broker: Broker) -> None:
    await broker.declare(Router("r", str, kind="direct").bind(one, "a"))
    router = Router("r", str, kind="direct")
    await broker.publish(router, "x", key="a")
    kept = weakref.ref(router)
    del router
    gc.collect()
    assert kept() is None
    assert await ready(broker) == {"one": 1}


@pytest.mark.parametrize(
    ("pattern", "key", "takes"),
    [
        ("order.*", "order.placed", True),
        ("order.*", "order", False),
        ("order.*", "order.placed.twice", False),
        ("order.#", "order", True),
        ("order.#", "order.a.b.c", True),
        ("#", "", True),
        ("#", "anything.at.all", True),
        ("*", "", False),
        ("*.*", "a.b", True),
        ("#.end", "end", True),
        ("#.end", "a.b.end", True),
        ("a.#.z", "a.z", True),
        ("a.#.z", "a.b.c.y", False),
        ("a.*.#", "a", False),
        ("exact", "exact", True),
        ("exact", "Exact", False),
        ("order.(placed|x)", "order.placed", False),
        ("", "", True),
        ("*", ".", False),
        ("*.*", ".", True),
    ],
)
async def test_topic(broker: Broker, pattern: str, key: str, *, takes: bool) -> None:
    router = Router("r", str).bind(one, pattern)
    publishing = broker.publish(router, "x", key=key)
    if takes:
        assert (await publishing).queues == ("one",)
    else:
        with pytest.raises(Unroutable):
            await publishing


async def test_a_queue_takes_one_copy_however_many_bindings_match(broker: Broker) -> None:
    router = Router("r", str).bind(one, "a.#").bind(one, "#.b").bind(one, "a.b")
    assert (await broker.publish(router, "x", key="a.b")).queues == ("one",)
    assert await ready(broker) == {"one": 1}


async def test_fanout(broker: Broker) -> None:
    router = Router("r", str, kind="fanout").bind(one).bind(two)
    assert (await broker.publish(router, "x")).queues == ("one", "two")
    with pytest.raises(Unroutable):
        await broker.publish(Router("empty", str, kind="fanout"), "x")


async def test_headers(broker: Broker) -> None:
    router = (
        Router("r", str, kind="headers")
        .bind(one, headers={"tier": "gold", "eu": "1"})
        .bind(two, headers={"tier": "gold", "eu": "1"}, match="any")
    )
    assert (
        await broker.publish(router, "x", headers={"tier": "gold", "eu": "1", "more": "z"})
    ).queues == (
        "one",
        "two",
    )
    assert (await broker.publish(router, "x", headers={"tier": "gold"})).queues == ("two",)
    with pytest.raises(Unroutable):
        await broker.publish(router, "x", headers={"tier": "Gold"})
    with pytest.raises(Unroutable):
        await broker.publish(router, "x")


async def test_bindings_live_with_the_broker(broker: Broker, other: Broker) -> None:
    await broker.declare(Router("r", str).bind(one, "a"))
    bare = Router("r", str)
    assert (await other.publish(bare, "x", key="a")).queues == ("one",)
    await other.declare(Router("r", str).bind(two, "a"))
    assert sorted((await broker.publish(bare, "x", key="a")).queues) == ["one", "two"]
    assert {binding.queue for binding in await broker.bindings("r")} == {"one", "two"}


async def test_unbind_is_for_everybody_and_stays(broker: Broker, other: Broker) -> None:
    router = Router("r", str).bind(one, "a").bind(two, "#")
    await broker.declare(router)
    await other.unbind(router.binding("one", "a"))
    await other.unbind(router.binding("one", "a"))
    assert (await broker.publish(router, "x", key="a")).queues == ("two",)


async def test_what_was_unbound_does_not_come_back_with_the_connection(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    router = Router("r", str).bind(one, "a").bind(two, "#")
    await faulty.declare(router)
    await faulty.unbind(router.binding(one, "a"))
    faults.lose()
    await clock.advance(2)
    assert (await faulty.publish(router, "x", key="a")).queues == ("two",)


async def test_a_binding_added_later_counts_from_the_next_publish(broker: Broker) -> None:
    router = Router("r", str).bind(one, "a")
    await broker.publish(router, "x", key="a")
    router.bind(two, "a")
    assert (await broker.publish(router, "x", key="a")).queues == ("one", "two")


async def test_deleting_a_queue_removes_its_bindings(broker: Broker) -> None:
    router = Router("r", str).bind(one, "a").bind(two, "a")
    await broker.declare(router)
    await broker.delete(one)
    assert {binding.queue for binding in await broker.bindings("r")} == {"two"}


async def test_a_router_has_one_kind(broker: Broker, other: Broker) -> None:
    await broker.declare(Router("r", str, kind="topic").bind(one, "a"))
    with pytest.raises(TopologyMismatch, match="kind"):
        await other.publish(Router("r", str, kind="direct").bind(one, "a"), "x", key="a")


async def test_bindings_from_configuration(clock: VirtualClock, url: str) -> None:
    settings = Settings.model_validate(
        {"routers": {"r": {"kind": "topic", "bindings": [{"queue": "two", "key": "a.*"}]}}}
    )
    async with Broker.connect(url, clock=clock, settings=settings) as broker:
        await broker.declare(two)
        router = Router("r", str).bind(one, "a.b")
        assert sorted((await broker.publish(router, "x", key="a.b")).queues) == ["one", "two"]


async def test_an_outcome_for_each_queue(faulty: Broker, faults: Faults) -> None:
    router = Router("r", str, kind="fanout").bind(one).bind(two)
    faults.next(
        "publish",
        first_failed(ErrorKind.FULL),
        answered(Unknown("gone quiet")),
        failed(ErrorKind.FULL),
    )
    with pytest.raises(PublishUnknown) as caught:
        await faulty.publish(router, "x")
    assert list(caught.value.outcomes) == ["one", "two"]
    assert caught.value.outcomes["two"] == "stored"
    with pytest.raises(PublishUnknown) as caught:
        await faulty.publish(router, "x")
    assert caught.value.outcomes == {"one": "unknown (gone quiet)", "two": "unknown (gone quiet)"}
    with pytest.raises(QueueFull):
        await faulty.publish(router, "x")


async def test_half_of_a_route_can_be_completed_by_its_id(broker: Broker) -> None:
    bounded = Queue("bounded", str, max_length=1)
    router = Router("r", str, kind="fanout").bind(one).bind(bounded)
    await broker.publish(bounded, "full")
    with pytest.raises(PublishUnknown) as caught:
        await broker.publish(router, "x")
    await broker.purge(bounded)
    receipt = await broker.publish(router, "x", id=caught.value.id)
    assert receipt == Receipt(caught.value.id, ("one", "bounded"), duplicate=False)
    assert await ready(broker) == {"one": 1, "bounded": 1}


async def test_many_through_a_router(broker: Broker) -> None:
    router = Router("r", str).bind(one, "a").bind(two, "#")
    endings = await broker.publish_many(router, ["x", "y"], key="a")
    assert [ending.queues for ending in endings if isinstance(ending, Receipt)] == [
        ("one", "two")
    ] * 2
    nobody = await broker.publish_many(Router("none", str), ["x"], key="a")
    assert [type(ending) for ending in nobody] == [Unroutable]


async def test_a_delayed_routed_message(broker: Broker, clock: VirtualClock) -> None:
    router = Router("r", str, kind="fanout").bind(one).bind(two)
    await broker.publish(router, "x", delay=60)
    assert await ready(broker) == {"one": 0, "two": 0}
    await clock.advance(60)
    assert await ready(broker) == {"one": 1, "two": 1}


async def test_routed_messages_keep_id_priority_and_headers(broker: Broker) -> None:
    router = Router("r", str, kind="fanout").bind(one).bind(two)
    await broker.publish(router, "x", id="me", priority=7, headers={"k": "v"})
    for queue in (one, two):
        (entry,) = await broker.peek(queue)
        assert (entry.message.id, entry.message.priority, dict(entry.message.headers)) == (
            "me",
            7,
            {"k": "v"},
        )


async def test_a_worker_declares_its_apps_routers(broker: Broker) -> None:
    app = App("test", routers=[Router("r", str, kind="fanout").bind(one)])

    @app.consumer(two)
    async def handler(word: str) -> None: ...

    async with Worker(app, broker):
        assert {binding.queue for binding in await broker.bindings("r")} == {"one"}


async def test_each_copy_is_handled_and_fails_for_itself(
    broker: Broker, clock: VirtualClock
) -> None:
    app = App("test", routers=[router := Router("r", str, kind="fanout").bind(one).bind(two)])
    seen: list[str] = []

    @app.consumer(one)
    async def good(word: str) -> None:
        seen.append(word)

    @app.consumer(two)
    async def bad(word: str) -> None:
        raise ValueError

    await broker.publish(router, "x")
    async with Worker(app, broker):
        await clock.advance(60)
    assert seen == ["x"]
    assert len(await broker.dead_letters(two).list()) == 1
    assert await broker.dead_letters(one).list() == []


async def test_a_bound_queue_that_is_missing_is_told(broker: Broker, other: Broker) -> None:
    await broker.declare(one, two)
    router = Router("r", str, kind="fanout").bind(one).bind(two)
    await broker.declare(router)
    bare = Router("r", str, kind="fanout")
    await other._session.connection.backend.bind([router.binding("nowhere")])  # type: ignore[attr-defined]  # memory binds
    with pytest.raises((PublishUnknown, PublishFailed)) as caught:
        await broker.publish(bare, "x")
    assert "nowhere" in str(caught.value)


async def test_a_temporary_queue_that_has_expired_is_not_published_to(
    broker: Broker, other: Broker, clock: VirtualClock
) -> None:
    passing = Queue("passing", str, temporary=True)
    await broker.declare(Router("r", str, kind="fanout").bind(one))
    await other.declare(Router("r", str, kind="fanout").bind(passing))
    bare = Router("r", str, kind="fanout")
    assert sorted((await broker.publish(bare, "x")).queues) == ["one", "passing"]
    assert {counts.name for counts in await broker.counts()} == {"one", "one.dlq"}
    await clock.advance(IDLE_LIMIT)
    assert (await broker.publish(bare, "y")).queues == ("one",)
    assert (await ready(broker))["one"] == 2


async def test_a_queue_that_ends_while_it_is_published_to_does_not_count(
    broker: Broker, other: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    passing = Queue("passing", str, temporary=True)
    await broker.declare(Router("r", str, kind="fanout").bind(one))
    await other.declare(Router("r", str, kind="fanout").bind(passing))
    connection = session_of(broker).connection
    publish = connection.publish

    async def after_the_end(batch: Any, timeout: float) -> Any:
        await other.close()  # the bindings were read before
        return await publish(batch, timeout)

    bare = Router("r", str, kind="fanout")
    monkeypatch.setattr(connection, "publish", after_the_end)
    assert (await broker.publish(bare, "x")).queues == ("one",)
    await broker.unbind(bare.binding("one"))
    with pytest.raises(Unroutable):
        await broker.publish(bare, "y")


async def test_the_only_queue_that_ends_while_it_is_published_to(
    broker: Broker, other: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = Router("r", str, kind="fanout")
    await other.declare(Router("r", str, kind="fanout").bind(Queue("p", str, temporary=True)))
    connection = session_of(broker).connection
    publish = connection.publish

    async def after_the_end(batch: Any, timeout: float) -> Any:
        await other.close()
        return await publish(batch, timeout)

    monkeypatch.setattr(connection, "publish", after_the_end)
    with pytest.raises(Unroutable):
        await broker.publish(bare, "x")


async def test_a_temporary_queue_comes_back_with_its_bindings(
    faulty: Broker, faults: Faults, clock: VirtualClock, other: Broker
) -> None:
    passing = Queue("passing", str, temporary=True)
    await faulty.declare(Router("r", str, kind="fanout").bind(passing))
    faults.lose()
    await clock.advance(5.0)
    assert (await other.publish(Router("r", str, kind="fanout"), "x")).queues == ("passing",)


async def test_a_worker_consumes_a_temporary_queue(
    broker: Broker, other: Broker, clock: VirtualClock
) -> None:
    passing, app, seen = Queue("passing", str, temporary=True), App("shop"), list[str]()

    @app.consumer(passing, retry=RetryPolicy(max_attempts=2, backoff=fixed(0)))
    async def handler(text: str) -> None:
        seen.append(text)
        raise OSError("on purpose")

    await broker.declare(Router("r", str, kind="fanout").bind(passing))
    async with Worker(app, broker):
        await other.publish(Router("r", str, kind="fanout"), "x")
        await clock.settle()
        assert seen == ["x", "x"]
        assert broker.events.counts["message.dropped"] == 1


@pytest.mark.parametrize("options", [{"dead_letter": "x"}, {"declare": False}, {"retention": 5}])
async def test_what_a_temporary_queue_cannot_have(broker: Broker, options: Any) -> None:
    with pytest.raises(ConfigurationError, match="Leave"):
        await broker.declare(Queue("passing", str, temporary=True, **options))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Router("r", str, kind="magic"),  # type: ignore[arg-type]  # wrong on purpose
        lambda: Router("r", str).bind(one, headers={"a": "b"}),
        lambda: Router("r", str, kind="fanout").bind(one, "key"),
        lambda: Router("r", str, kind="headers").bind(one),
        lambda: Router("bad name!", str),
        lambda: Router("r", str).bind(one, "x" * 256),
    ],
    ids=["kind", "headers on topic", "key on fanout", "no headers", "name", "long"],
)
def test_what_could_never_match_is_refused(wrong: Callable[[], Any]) -> None:
    with pytest.raises((ConfigurationError, ValidationError)):
        wrong()


async def test_a_key_that_is_too_long_is_refused(broker: Broker) -> None:
    with pytest.raises((ConfigurationError, ValidationError)):
        await broker.publish(Router("r", str).bind(one, "#"), "x", key="k" * 256)


async def test_many_words_do_not_take_for_ever(broker: Broker) -> None:
    router = Router("r", str).bind(one, ".".join(["#"] * 60 + ["x"]))
    async with asyncio.timeout(0.5):
        with pytest.raises(Unroutable):
            await broker.publish(router, "x", key=".".join("y" * 100))


@pytest.mark.parametrize(
    ("kind", "binding"),
    [
        ("fanout", {"queue": "one", "key": "a"}),
        ("headers", {"queue": "one", "key": "a", "headers": {"x": "y"}}),
        ("direct", {"queue": "one", "key": "a", "headers": {"x": "y"}}),
    ],
)
def test_what_a_binding_in_configuration_would_ignore_is_refused(
    kind: str, binding: dict[str, object]
) -> None:
    with pytest.raises(ConfigurationError, match="routers"):
        Settings.load(routers={"r": {"kind": kind, "bindings": [binding]}})
