"""Routers and their bindings."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from mqcore.contract.case import case
from mqcore.contract.cases.routing.common import topic_binding
from mqcore.contract.kit import NotShown
from mqcore.errors import PublishUnknown, Unroutable
from mqcore.queue import Queue
from mqcore.router import Router
from mqcore.spi import (
    DONE,
    STORED,
    Binding,
    Capability,
    Failed,
    Level,
    Outgoing,
    Route,
    SupportsBind,
    SupportsDelete,
    TopologyMismatch,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit
    from mqcore.rules.routing import Kind


_NEEDS = (Capability.ROUTING,)


# Bindings


@case("G15", needs=_NEEDS, protocols=(SupportsBind,))
async def every_instance_sees_the_same_bindings(kit: Kit) -> None:
    """Bindings are stored in the broker, per router, each once."""
    backend, queue, shop, press = (
        cast("SupportsBind", kit.backend),
        await kit.queue(),
        kit.name(),
        kit.name(),
    )
    one, two = topic_binding(shop, queue, "order.*"), topic_binding(shop, queue, "order.#")
    three = Binding(
        router=press, kind="headers", queue=queue, headers=(("a", "1"), ("b", "2")), match="any"
    )
    await kit.within(backend.bind([one, two, one]))
    await kit.within(backend.bind([one, three]))
    other = cast("SupportsBind", await kit.open())
    look = "SupportsBind.bindings"
    kit.same(
        Counter(await kit.within(other.bindings(shop))),
        Counter([one, two]),
        "bindings of one router",
        look,
    )
    kit.same(
        list(await kit.within(other.bindings(press))), [three], "bindings of the other router", look
    )
    kit.true(
        {one, two, three} <= set(await kit.within(other.bindings())),
        "the bindings of all routers",
        "fewer",
        look,
    )
    kit.same(
        list(await kit.within(other.bindings(kit.name()))),
        [],
        "bindings of an unknown router",
        look,
    )

    await kit.within(other.unbind([one, topic_binding(shop, queue, "never bound")]))
    await kit.within(other.unbind([one]))
    remaining = list(await kit.within(backend.bindings(shop)))
    kit.same(remaining, [two], "bindings left after one was unbound", "SupportsBind.unbind")


@case("G15", "G16", needs=_NEEDS, protocols=(SupportsBind,))
async def a_router_has_one_kind(kit: Kit) -> None:
    """Binding a router with another kind raises TopologyMismatch and adds nothing.

    Its text contains the router and both kinds.
    """
    backend, queue, router = cast("SupportsBind", kit.backend), await kit.queue(), kit.name()
    topic, direct = topic_binding(router, queue, "a.*"), topic_binding(router, queue, "a", "direct")
    await kit.within(backend.bind([topic]))

    for batch in ([direct], [topic_binding(router, queue, "b.*"), direct]):
        error = await kit.raises(
            TopologyMismatch, backend.bind(batch), "TopologyMismatch", "SupportsBind.bind"
        )
        for part in (router, "topic", "direct"):
            kit.true(part in str(error), f"a text that names {part!r}", error, "SupportsBind.bind")

    kit.same(
        list(await kit.within(backend.bindings(router))),
        [topic],
        "bindings of the router",
        "SupportsBind.bind",
    )


# A Router's way


_Bound = list[tuple[str, dict[str, str], Any]]


_Shape = tuple["Kind", _Bound, str, dict[str, str], str]


_GOLD = {"tier": "gold", "more": "x"}


def _by(*patterns: str) -> _Bound:
    return [(pattern, {}, "all") for pattern in patterns]


def _with(match: str, *expected: dict[str, str]) -> _Bound:
    return [("", headers, match) for headers in expected]


_SHAPES: dict[str, _Shape] = {
    "direct": ("direct", _by("a", "b", "a.b", "a"), "a", {}, "0 3"),
    "topic": (
        "topic",
        _by("order.*", "#", "order.#", "*.placed", "order", "*.*.*", "*"),
        "order.placed",
        {},
        "0 1 2 3",
    ),
    "topic-ends": (
        "topic",
        _by("a.#", "#.a", "a.*.#", "a", "a.#.a", "*", "A", "a.(b)"),
        "a",
        {},
        "0 1 3 5",
    ),
    "topic-inside": (
        "topic",
        _by("a.#.z", "a.*.z", "a.*.*.z", "#.c.#", "*.z", "a.#.y"),
        "a.b.c.z",
        {},
        "0 2 3",
    ),
    "fanout": ("fanout", _by("", "", ""), "whatever", {}, "0 1 2"),
    "headers-all": (
        "headers",
        _with("all", {**_GOLD, "eu": "1"}, _GOLD, {"tier": "Gold"}),
        "",
        _GOLD,
        "1",
    ),
    "headers-any": (
        "headers",
        _with("any", {**_GOLD, "eu": "1"}, {"eu": "1"}, {"more": "x"}),
        "",
        _GOLD,
        "0 2",
    ),
}


@case("G15", ids="C22 C65", needs=_NEEDS, each=_SHAPES)
async def a_message_goes_to_the_queues_that_match(kit: Kit, shape: _Shape) -> None:
    """Each queue with a matching binding gets one equal copy; no other queue gets one."""
    kind, bound, key, headers, expected = shape
    broker, router, queues = await kit.broker(), Router(kit.name(), kind=kind), []
    for pattern, binding_headers, match in bound:
        queues.append(Queue(kit.name()))
        router.bind(queues[-1], pattern, headers=binding_headers, match=match)

    await kit.within(broker.declare(*queues))
    key_given: Any = {"key": key} if key else {}
    await kit.within(
        broker.publish(router, b"body", id="me", headers={**headers, "h": "v"}, **key_given)
    )
    actual: list[str] = []

    for number, queue in enumerate(queues):
        if f"{number}" not in expected.split():
            kit.same(
                await kit.contents(queue.name), Counter(), f"messages by {bound[number]}", _LOOK
            )
            continue
        consumer = await kit.subscribe(queue.name)
        (copy,) = await kit.take(consumer, 1)
        actual.append(f"{number}")
        fields = (copy.message.id, copy.message.body, dict(copy.message.headers), copy.attempt)
        kit.same(
            fields, ("me", b"body", {**headers, "h": "v"}, 1), f"the copy by {bound[number]}", _LOOK
        )
        await kit.ack(consumer, [copy])
        kit.same(await kit.receive(consumer), [], "further copies", _LOOK)

    kit.same(" ".join(actual), expected, "bindings that matched", _LOOK)


@case("G15", ids="C65", needs=_NEEDS)
async def a_queue_takes_one_copy_however_many_bindings_match(kit: Kit) -> None:
    """A queue gets one copy however many of its bindings match."""
    broker, queue = await kit.broker(), Queue(kit.name())
    router = Router(kit.name()).bind(queue, "a.#").bind(queue, "#.b").bind(queue, "a.b")
    await kit.within(broker.publish(router, b"x", key="a.b", id="me"))
    kit.same(await kit.contents(queue.name), Counter(["me"]), "copies stored", _LOOK)


@case("G15", "G2", ids="C22", needs=_NEEDS)
async def each_copy_lives_for_itself(kit: Kit) -> None:
    """Copies in different queues are settled independently."""
    broker, one, two = await kit.broker(), Queue(kit.name()), Queue(kit.name())
    router = Router(kit.name(), kind="fanout").bind(one).bind(two)
    await kit.within(broker.publish(router, b"x", id="me"))
    first, second = await kit.subscribe(one.name), await kit.subscribe(two.name)
    await kit.ack(first, await kit.take(first, 1))
    (held,) = await kit.take(second, 1)
    kit.same(
        await kit.settle(second, kit.successor(held, f"{two.name}.dlq")),
        [DONE],
        "moved",
        "Subscription.settle",
    )
    kit.same(
        await kit.contents(f"{two.name}.dlq"),
        Counter(["me"]),
        "messages in the dead-letter queue",
        "Subscription.settle: Move",
    )
    kit.same(
        await kit.contents(f"{one.name}.dlq"),
        Counter(),
        "dead letters of the other queue",
        "Subscription.settle: Move",
    )


@case("G15", "G11", needs=_NEEDS)
async def copies_that_meet_in_a_shared_dead_letter_queue_are_two(kit: Kit) -> None:
    """Copies of a routed message in a shared dead-letter queue are not duplicates.

    They have the same id and hop, and different lineage.
    """
    broker, shared = await kit.broker(), kit.name()
    queues = [Queue(kit.name(), dead_letter=shared) for _ in range(2)]
    router = Router(kit.name(), kind="fanout").bind(queues[0]).bind(queues[1])
    await kit.within(broker.publish(router, b"x", id="me"))
    for queue in queues:
        async with broker.consume(queue) as deliveries:
            await kit.within((await kit.within(anext(deliveries))).reject())
    look = "where the DEDUP window is keyed: Message.copy_name"
    kit.same(await kit.contents(shared), Counter({"me": 2}), "dead letters", look)


@case(
    "G1",
    "G15",
    ids="C66",
    needs=_NEEDS,
    each={kind: kind for kind in ("direct", "topic", "fanout", "headers")},
)
async def what_no_queue_takes_is_unroutable(kit: Kit, kind: Kind) -> None:
    """A message that no binding matches raises Unroutable."""
    broker, queue, router = await kit.broker(), Queue(kit.name()), Router(kit.name(), kind=kind)
    empty: Router[bytes] = Router(kit.name(), kind=kind)
    await kit.raises(
        Unroutable, broker.publish(empty, b"x"), "Unroutable without a binding", _MANDATORY
    )

    router.bind(
        queue,
        "a" if kind in {"direct", "topic"} else "",
        headers={"a": "1"} if kind == "headers" else None,
    )
    await kit.within(broker.declare(router))

    if kind != "fanout":
        other = broker.publish(router, b"x", key="b", headers={"a": "2"})
        await kit.raises(Unroutable, other, "Unroutable where no binding matches", _MANDATORY)
    await kit.within(broker.unbind(*router.bindings))
    last: Router[bytes] = Router(router.name, kind=kind)
    gone = broker.publish(last, b"x", key="a", headers={"a": "1"})
    await kit.raises(Unroutable, gone, "Unroutable after the last unbind", "SupportsBind.unbind")
    kit.same(await kit.contents(queue.name), Counter(), "messages stored", _LOOK)


@case("G1", "G15", needs=_NEEDS)
async def what_no_queue_takes_can_be_dropped(kit: Kit) -> None:
    """With `unroutable="drop"` a message without a binding has a receipt without queues.

    A message that a binding takes is stored as always.
    """
    broker, queue, router = await kit.broker(), Queue(kit.name()), Router(kit.name())
    empty: Router[bytes] = Router(kit.name())
    receipt = await kit.within(broker.publish(empty, b"x", key="a", unroutable="drop"))
    kit.same(receipt.queues, (), "queues of a message for a router without bindings", _MANDATORY)

    await kit.within(broker.declare(router.bind(queue, "a")))
    receipt = await kit.within(broker.publish(router, b"x", key="b", unroutable="drop"))
    kit.same(receipt.queues, (), "queues of a message that no binding takes", _MANDATORY)
    kit.same(broker.events.counts["message.unrouted"], 2, "dropped messages, as counted")
    kit.same(broker.events.counts["publish.failed"], 0, "publishes that failed", _MANDATORY)

    receipt = await kit.within(broker.publish(router, b"x", key="a", id="me", unroutable="drop"))
    kit.true(receipt.queues, "a queue for a message that a binding takes", receipt, _MANDATORY)
    kit.same(await kit.contents(queue.name), Counter({"me": 1}), "messages stored", _LOOK)


@case("G15", needs=_NEEDS)
async def bindings_count_from_the_next_publish_for_every_process(kit: Kit) -> None:
    """A changed binding applies to the next publish of every process."""
    broker, other, router = await kit.broker(), await kit.broker(), Router(kit.name())
    one, two = Queue(kit.name()), Queue(kit.name())
    bare: Router[bytes] = Router(router.name)
    await kit.within(broker.declare(router.bind(one, "a")))
    await kit.within(other.publish(bare, b"x", key="a", id="1"))
    await kit.within(broker.declare(router.bind(two, "#")))
    await kit.within(other.publish(bare, b"x", key="a", id="2"))
    await kit.within(other.unbind(router.binding(one, "a")))
    await kit.within(broker.publish(bare, b"x", key="a", id="3"))
    kit.same(
        await kit.contents(one.name),
        Counter("12"),
        "messages in the first queue",
        "SupportsBind.bindings",
    )
    kit.same(
        await kit.contents(two.name),
        Counter("23"),
        "messages in the second queue",
        "SupportsBind.bindings",
    )

    if isinstance(kit.backend, SupportsDelete):
        await kit.within(other.delete(two))
        # A Broker that has declared the router would declare it again with its queues, and publish
        # once more (G1).
        third = await kit.broker()
        await kit.raises(
            Unroutable,
            third.publish(bare, b"x", key="a"),
            "Unroutable: its queue is gone",
            _MANDATORY,
        )


@case("G15", "G7", needs=(*_NEEDS, Capability.DELAY))
async def a_delayed_routed_message_comes_when_it_is_due(kit: Kit) -> None:
    """A delayed message to a router arrives in every bound queue when it is due, once."""
    broker, queues = await kit.broker(), [Queue(kit.name()), Queue(kit.name())]
    router = Router(kit.name(), kind="fanout").bind(queues[0]).bind(queues[1])
    began = kit.now
    await kit.within(broker.publish(router, b"x", delay=0.5, id="me"))

    for queue in queues:
        consumer = await kit.subscribe(queue.name)
        got = await kit.take(consumer, 1)
        kit.true(
            kit.now - began >= 0.5 - 0.005,
            "not early",
            f"{kit.now - began:.3f} s",
            "Backend.publish: delay",
        )
        await kit.ack(consumer, got)
        kit.same(await kit.receive(consumer), [], "further copies", "Backend.publish: delay")


@case("G1", "G15", needs=(*_NEEDS, Capability.MAX_LENGTH, Capability.DEDUP))
async def half_of_a_route_is_unknown_and_can_be_completed(kit: Kit) -> None:
    """A route that one queue refused is PublishUnknown; publishing again completes it."""
    modes = str(kit.limit(Capability.MAX_LENGTH, "modes")).split(",")
    if "reject" not in modes or kit.capabilities[Capability.MAX_LENGTH].level is Level.APPROXIMATE:
        raise NotShown("no exact overflow='reject' here, so that no queue refuses for sure")
    broker, free, full = await kit.broker(), Queue(kit.name()), Queue(kit.name(), max_length=1)
    router = Router(kit.name(), kind="fanout").bind(free).bind(full)
    await kit.within(broker.declare(router))
    await kit.within(broker.publish(full, b"x", id="first"))
    error = await kit.raises(
        PublishUnknown, broker.publish(router, b"x", id="me"), "PublishUnknown", "Backend.publish"
    )
    kit.same(getattr(error, "id", ""), "me", "the id of the error", "Producer")
    kit.same(
        await kit.contents(full.name),
        Counter(["first"]),
        "messages in the full queue",
        "Backend.publish: max_length",
    )

    await kit.within(broker.publish(router, b"x", id="me"))
    for queue in (free, full):
        kit.same(
            await kit.contents(queue.name),
            Counter(["me"]),
            "copies stored",
            "Backend.publish: DEDUP",
        )


@case("G15", "G16", ids="U02")
async def a_route_is_refused_where_core_routes(kit: Kit) -> None:
    """A backend without native ROUTING refuses a `Route`, for that item only."""
    queue = await kit.queue()
    batch = [Outgoing(Route(kit.name(), "k"), kit.message()), Outgoing(queue, kit.message("a"))]
    refused, stored = await kit.publish(*batch)
    kit.true(
        isinstance(refused, Failed),
        "Failed(PERMANENT), or NOT_FOUND, for a Route",
        refused,
        "Backend.publish",
    )
    kit.same(stored, STORED, "the outcome of the other item", "Backend.publish")


_LOOK = "Backend.publish: Route, where ROUTING is native; else SupportsBind.bindings"


_MANDATORY = "Backend.publish: what no queue takes (on AMQP: mandatory and basic.return)"
