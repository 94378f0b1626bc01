"""Profile *routing*: queues by name, missing ones and temporary ones, and a Router's way to them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from mqcore.contract.case import case
from mqcore.contract.kit import NotShown
from mqcore.errors import ConfigurationError, PublishUnknown, QueueNotFound, Unroutable
from mqcore.queue import Queue
from mqcore.router import Router
from mqcore.spi import (
    DONE,
    STORED,
    Binding,
    Capability,
    Durability,
    DurabilityUnavailable,
    ErrorKind,
    Failed,
    Level,
    Outgoing,
    QueueSpec,
    Route,
    SupportsBind,
    SupportsCount,
    SupportsDelete,
    TopologyMismatch,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit
    from mqcore.rules.routing import Kind

_NEEDS = (Capability.ROUTING,)
_CLOSE = 2.0
"""Seconds that any close may take."""


# Queues


@case("G2", ids="C24")
async def queues_do_not_mix(kit: Kit) -> None:
    """A message goes to its own queue and to no other, also from one batch and beside consumers of both."""
    one, two = await kit.queue(), await kit.queue()
    consumers = [await kit.subscribe(queue) for queue in (one, two)]
    await kit.publish(*[Outgoing((one, two)[n % 2], kit.message(f"{n}")) for n in range(20)])
    for start, consumer in enumerate(consumers):
        wanted = [f"{n}" for n in range(start, 20, 2)]
        kit.same(
            kit.ids(await kit.take(consumer, 10)),
            wanted,
            "the queue's own messages",
            "Backend.publish",
        )
        kit.same(await kit.receive(consumer), [], "nothing else", "Backend.publish")


@case("G1", ids="C06")
async def subscribing_to_a_missing_queue_is_not_found(kit: Kit) -> None:
    """It raises at once, names the queue, is classified NOT_FOUND, and spoils nothing."""
    missing = kit.name()
    subscribing = kit.backend.subscribe(missing, prefetch=1, lease=30.0)
    error = await kit.raises(
        Exception, subscribing, "NOT_FOUND for a missing queue", "Backend.subscribe"
    )
    kit.kind(error, ErrorKind.NOT_FOUND)
    kit.true(
        missing in str(error),
        f"the queue's name {missing!r} in the text",
        error,
        "Backend.subscribe",
    )
    queue = await kit.queue()
    await kit.put(queue, "a")
    kit.same(
        await kit.contents(queue), Counter("a"), "the instance still works", "Backend.subscribe"
    )


@case("G1", ids="C05 C06")
async def an_application_is_told_of_a_missing_queue(kit: Kit) -> None:
    """Through Broker: publishing to a bare name declares nothing and is QueueNotFound; so is consuming it."""
    broker, missing = await kit.broker(), kit.name()
    look = "Backend.publish: Failed(NOT_FOUND)"
    await kit.raises(QueueNotFound, broker.publish(missing, b"a"), "QueueNotFound", look)
    deliveries = broker.consume(missing, retry=kit.retry)
    await kit.raises(
        QueueNotFound,
        deliveries.get(timeout=0),
        "QueueNotFound",
        "Backend.subscribe, Backend.classify",
    )
    await kit.within(broker.publish(Queue(missing), b"b", id="b"))
    kit.same(
        await kit.contents(missing),
        Counter("b"),
        "one message in the queue, once declared",
        "Backend.publish",
    )


@case("G14", ids="C03")
async def declaring_again_changes_nothing(kit: Kit) -> None:
    """After each reconnect core declares everything again; messages stay."""
    spec = QueueSpec(name=kit.name())
    for _ in range(3):
        await kit.within(kit.backend.declare([spec, spec]))
    await kit.put(spec.name, "a")
    await kit.within((await kit.open()).declare([spec]))
    kit.same(
        await kit.contents(spec.name), Counter("a"), "the message still there", "Backend.declare"
    )


_SETTINGS: dict[str, tuple[str, Any, Any, Capability | None]] = {
    "ttl": ("ttl", None, 5.0, Capability.EXPIRY),
    "other-ttl": ("ttl", 5.0, 6.0, Capability.EXPIRY),
    "max-length": ("max_length", 5, None, Capability.MAX_LENGTH),
    "retention": ("retention", None, 60.0, None),
    "dead-letter": ("dead_letter", None, "elsewhere", None),
    "role": ("role", "work", "dead_letter", None),
}


@case("G16", each=_SETTINGS)
async def other_settings_are_a_mismatch(
    kit: Kit, setting: tuple[str, Any, Any, Capability | None]
) -> None:
    """The error is a TopologyMismatch that names the queue, the setting and both values; the queue stays as it was."""
    what, one, other, needed = setting
    if needed is not None and not kit.capabilities.has(needed):
        raise NotShown(
            f"declares no {needed.name}, so that core refuses such a setting before the seam"
        )
    name = kit.name()
    first, second = QueueSpec(name=name, **{what: one}), QueueSpec(name=name, **{what: other})
    await kit.within(kit.backend.declare([first]))
    look = "Backend.declare: compare with what is there"
    error = await kit.raises(
        TopologyMismatch, kit.backend.declare([second]), "TopologyMismatch", look
    )
    for part in (name, what, str(one), str(other)):
        expected = (
            f"a text with the queue's name, {what!r}, {one!r} and {other!r}; {part} is not in it"
        )
        kit.true(part in str(error), expected, error, look)
    await kit.within(kit.backend.declare([first]))


@case("G16")
async def more_durability_than_there_is_is_refused(kit: Kit) -> None:
    """Each word above the level in force is DurabilityUnavailable, at `declare` and at a connect; the level itself works."""
    have, name = kit.capabilities.durability, kit.name()
    await kit.within(kit.backend.declare([QueueSpec(name=name, durability=have)]))
    for more in [level for level in Durability if level > have]:
        declaring = kit.backend.declare([QueueSpec(name=kit.name(), durability=more)])
        await kit.raises(
            DurabilityUnavailable,
            declaring,
            f"DurabilityUnavailable for {more.word}",
            "Backend.declare",
        )
        await kit.raises(
            ConfigurationError,
            kit.broker(durability=more.word),
            f"{more.word} refused",
            "Backend.open",
        )


@case("G2")
async def a_temporary_queue_goes_with_its_owner(kit: Kit) -> None:
    """A reply queue serves like any other, is not listed, and ends with the instance that declared it."""
    name, owner = kit.name(), await kit.open()
    await kit.within(owner.declare([QueueSpec(name=name, role="temporary")]))
    await kit.put(name, "a")
    (delivery,) = await kit.take(await kit.subscribe(name, backend=owner), 1)
    kit.same(
        delivery.message.id,
        "a",
        "what another instance published",
        "Backend.declare: role temporary",
    )
    if isinstance(kit.backend, SupportsCount):
        listed = {counts.name for counts in await kit.within(kit.backend.count())}
        kit.true(name not in listed, "not listed", "it is listed", "SupportsCount.count")
    await kit.within(owner.close(), _CLOSE)
    deadline = kit.now + kit.harness.patience
    while True:
        (outcome,) = await kit.publish(Outgoing(name, kit.message()))
        if isinstance(outcome, Failed) or kit.now >= deadline:
            break
        await kit.advance(0.1)
    gone = (
        f"Failed(NOT_FOUND), for the queue went within {kit.harness.patience:g} s of its "
        "owner's close"
    )
    kit.true(isinstance(outcome, Failed), gone, outcome, "Backend.close: role temporary")


@case("G1", "G15", ids="C12", protocols=(SupportsDelete,))
async def a_clean_up_leaves_nothing_behind(kit: Kit) -> None:
    """A deleted queue is NOT_FOUND, counted and bound nowhere; declared anew it is empty and remembers no id."""
    queue, router, backend = await kit.queue(), kit.name(), kit.backend
    await kit.put(queue, "a", "b")
    if isinstance(backend, SupportsBind):
        await kit.within(backend.bind([_binding(router, queue, "a")]))
    await kit.take(consumer := await kit.subscribe(queue), 1)
    await kit.within(consumer.close(), _CLOSE)
    gone = await kit.within(cast("SupportsDelete", backend).delete(queue))
    kit.true(gone, "True for a queue that went", gone, "SupportsDelete.delete")
    (outcome,) = await kit.publish(Outgoing(queue, kit.message("a")))
    kit.true(
        isinstance(outcome, Failed) and outcome.kind is ErrorKind.NOT_FOUND,
        "NOT_FOUND",
        outcome,
        "delete",
    )
    if isinstance(backend, SupportsBind):
        kit.same(
            list(await kit.within(backend.bindings(router))),
            [],
            "no arrow to nowhere",
            "delete: bindings",
        )
    if isinstance(backend, SupportsCount):
        kit.same(list(await kit.within(backend.count([queue]))), [], "no counts", "delete: counts")
    await kit.within(backend.declare([QueueSpec(name=queue)]))
    kit.same(await kit.contents(queue), Counter(), "nothing of the old queue", "delete: messages")
    await kit.put(queue, "a")
    kit.same(
        await kit.contents(queue), Counter("a"), "the old id is new again", "delete: dedup window"
    )


# Bindings


@case("G15", needs=_NEEDS, protocols=(SupportsBind,))
async def every_instance_sees_the_same_bindings(kit: Kit) -> None:
    """They live with the broker, are kept by router, and added twice they are there once."""
    backend, queue, shop, press = (
        cast("SupportsBind", kit.backend),
        await kit.queue(),
        kit.name(),
        kit.name(),
    )
    one, two = _binding(shop, queue, "order.*"), _binding(shop, queue, "order.#")
    three = Binding(
        router=press, kind="headers", queue=queue, headers=(("a", "1"), ("b", "2")), match="any"
    )
    await kit.within(backend.bind([one, two, one]))
    await kit.within(backend.bind([one, three]))
    other = cast("SupportsBind", await kit.open())
    look = "SupportsBind.bindings"
    kit.same(
        Counter(await kit.within(other.bindings(shop))), Counter([one, two]), "of one router", look
    )
    kit.same(list(await kit.within(other.bindings(press))), [three], "of the other", look)
    kit.true(
        {one, two, three} <= set(await kit.within(other.bindings())),
        "all three of all routers",
        "fewer",
        look,
    )
    kit.same(
        list(await kit.within(other.bindings(kit.name()))),
        [],
        "of a router that nobody knows",
        look,
    )
    await kit.within(other.unbind([one, _binding(shop, queue, "never bound")]))
    await kit.within(other.unbind([one]))
    left = list(await kit.within(backend.bindings(shop)))
    kit.same(left, [two], "the rest, once one is unbound", "SupportsBind.unbind")


@case("G15", "G16", needs=_NEEDS, protocols=(SupportsBind,))
async def a_router_has_one_kind(kit: Kit) -> None:
    """Another kind is a TopologyMismatch that names the router and both kinds, and adds nothing of its batch."""
    backend, queue, router = cast("SupportsBind", kit.backend), await kit.queue(), kit.name()
    topic, direct = _binding(router, queue, "a.*"), _binding(router, queue, "a", "direct")
    await kit.within(backend.bind([topic]))
    for batch in ([direct], [_binding(router, queue, "b.*"), direct]):
        error = await kit.raises(
            TopologyMismatch, backend.bind(batch), "TopologyMismatch", "SupportsBind.bind"
        )
        for part in (router, "topic", "direct"):
            kit.true(part in str(error), f"a text that names {part!r}", error, "SupportsBind.bind")
    kit.same(
        list(await kit.within(backend.bindings(router))),
        [topic],
        "nothing added",
        "SupportsBind.bind",
    )


# A Router's way


_Bound = list[tuple[str, dict[str, str], Any]]
_Shape = tuple["Kind", _Bound, str, dict[str, str], str]
_GOLD = {"tier": "gold", "more": "x"}


def _by(*patterns: str) -> _Bound:
    return [(pattern, {}, "all") for pattern in patterns]


def _with(match: str, *wanted: dict[str, str]) -> _Bound:
    return [("", headers, match) for headers in wanted]


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
    """Each queue that a binding matches gets one copy, equal in id, body and headers; every other stays empty."""
    kind, bound, key, headers, expected = shape
    broker, router, queues = await kit.broker(), Router(kit.name(), kind=kind), []
    for pattern, wanted, match in bound:
        queues.append(Queue(kit.name()))
        router.bind(queues[-1], pattern, headers=wanted, match=match)
    await kit.within(broker.declare(*queues))
    key_given: Any = {"key": key} if key else {}
    await kit.within(
        broker.publish(router, b"body", id="me", headers={**headers, "h": "v"}, **key_given)
    )
    came: list[str] = []
    for number, queue in enumerate(queues):
        if f"{number}" not in expected.split():
            kit.same(
                await kit.contents(queue.name), Counter(), f"nothing by {bound[number]}", _LOOK
            )
            continue
        consumer = await kit.subscribe(queue.name)
        (copy,) = await kit.take(consumer, 1)
        came.append(f"{number}")
        fields = (copy.message.id, copy.message.body, dict(copy.message.headers), copy.attempt)
        kit.same(
            fields, ("me", b"body", {**headers, "h": "v"}, 1), f"the copy by {bound[number]}", _LOOK
        )
        await kit.ack(consumer, [copy])
        kit.same(await kit.receive(consumer), [], "one copy and no second", _LOOK)
    kit.same(" ".join(came), expected, "bindings that took it", _LOOK)


@case("G15", ids="C65", needs=_NEEDS)
async def a_queue_takes_one_copy_however_many_bindings_match(kit: Kit) -> None:
    """Three patterns of one queue take the key, and one copy is stored."""
    broker, queue = await kit.broker(), Queue(kit.name())
    router = Router(kit.name()).bind(queue, "a.#").bind(queue, "#.b").bind(queue, "a.b")
    await kit.within(broker.publish(router, b"x", key="a.b", id="me"))
    kit.same(await kit.contents(queue.name), Counter(["me"]), "one copy", _LOOK)


@case("G15", "G2", ids="C22", needs=_NEEDS)
async def each_copy_lives_for_itself(kit: Kit) -> None:
    """Of two copies one is acked and one dead-lettered: the other knows nothing of it."""
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
        "the dead copy",
        "Subscription.settle: Move",
    )
    kit.same(
        await kit.contents(f"{one.name}.dlq"),
        Counter(),
        "the other's dead letters",
        "Subscription.settle: Move",
    )


@case("G15", "G11", needs=_NEEDS)
async def copies_that_meet_in_a_shared_dead_letter_queue_are_two(kit: Kit) -> None:
    """They share id and hop, and differ by lineage: a DEDUP window must not take the second for the first."""
    broker, shared = await kit.broker(), kit.name()
    queues = [Queue(kit.name(), dead_letter=shared) for _ in range(2)]
    router = Router(kit.name(), kind="fanout").bind(queues[0]).bind(queues[1])
    await kit.within(broker.publish(router, b"x", id="me"))
    for queue in queues:
        async with broker.consume(queue) as deliveries:
            await kit.within((await kit.within(anext(deliveries))).reject())
    look = "where the DEDUP window is keyed: Message.copy_name"
    kit.same(await kit.contents(shared), Counter({"me": 2}), "both dead letters", look)


@case(
    "G1",
    "G15",
    ids="C66",
    needs=_NEEDS,
    each={kind: kind for kind in ("direct", "topic", "fanout", "headers")},
)
async def what_no_queue_takes_is_unroutable(kit: Kit, kind: Kind) -> None:
    """Without a binding, with none that matches, and after the last was unbound: Unroutable, never a silent loss."""
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
    kit.same(await kit.contents(queue.name), Counter(), "nothing stored", _LOOK)


@case("G15", needs=_NEEDS)
async def bindings_count_from_the_next_publish_for_every_process(kit: Kit) -> None:
    """What one Broker binds or unbinds, or takes away with a deleted queue, another's publish follows at once."""
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
        await kit.contents(one.name), Counter("12"), "the first queue", "SupportsBind.bindings"
    )
    kit.same(
        await kit.contents(two.name), Counter("23"), "the second queue", "SupportsBind.bindings"
    )
    if isinstance(kit.backend, SupportsDelete):
        await kit.within(other.delete(two))
        # Whoever has declared the router would declare it again, with its queues, and publish once
        # more (G1).
        third = await kit.broker()
        await kit.raises(
            Unroutable,
            third.publish(bare, b"x", key="a"),
            "Unroutable: its queue is gone",
            _MANDATORY,
        )


@case("G15", "G7", needs=(*_NEEDS, Capability.DELAY))
async def a_delayed_routed_message_comes_when_it_is_due(kit: Kit) -> None:
    """To every queue that is bound, not early, one copy each."""
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
        kit.same(await kit.receive(consumer), [], "no second copy", "Backend.publish: delay")


@case("G1", "G15", needs=(*_NEEDS, Capability.MAX_LENGTH, Capability.DEDUP))
async def half_of_a_route_is_unknown_and_can_be_completed(kit: Kit) -> None:
    """One queue stored it, a full one did not: PublishUnknown; published again by its id, each has one copy."""
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
    kit.same(getattr(error, "id", ""), "me", "its id, to publish again with", "Producer")
    kit.same(
        await kit.contents(full.name),
        Counter(["first"]),
        "the full queue",
        "Backend.publish: max_length",
    )
    await kit.within(broker.publish(router, b"x", id="me"))
    for queue in (free, full):
        kit.same(
            await kit.contents(queue.name), Counter(["me"]), "one copy", "Backend.publish: DEDUP"
        )


@case("G15", "G16", ids="U02")
async def a_route_is_refused_where_core_routes(kit: Kit) -> None:
    """A backend whose ROUTING is not native refuses a `Route`, for that item alone; a native one has no such router."""
    queue = await kit.queue()
    batch = [Outgoing(Route(kit.name(), "k"), kit.message()), Outgoing(queue, kit.message("a"))]
    refused, stored = await kit.publish(*batch)
    kit.true(
        isinstance(refused, Failed),
        "Failed(PERMANENT), or NOT_FOUND, for a Route",
        refused,
        "Backend.publish",
    )
    kit.same(stored, STORED, "the item beside it", "Backend.publish")


_LOOK = "Backend.publish: Route, where ROUTING is native; else SupportsBind.bindings"
_MANDATORY = "Backend.publish: what no queue takes (on AMQP: mandatory and basic.return)"


def _binding(router: str, queue: str, pattern: str = "", kind: Kind = "topic") -> Binding:
    return Binding(router=router, kind=kind, queue=queue, pattern=pattern)
