"""Profile *topology*: declaring, temporary queues, retention, bindings, capabilities."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest

from mqcore.routing import route
from mqcore.spi import (
    Binding,
    Capability,
    Durability,
    DurabilityUnavailable,
    Failed,
    Level,
    Outgoing,
    QueueSpec,
    Route,
    SupportsBind,
    SupportsBrowse,
    SupportsCount,
    SupportsDelete,
    SupportsRenew,
    SupportsSweep,
    TopologyMismatch,
    new_id,
)

if TYPE_CHECKING:
    from tests.seam.conftest import Seam


# Declare


async def test_declaring_again_changes_nothing(seam: Seam) -> None:
    """G14: after each reconnect core declares everything again; messages stay."""
    spec = QueueSpec(name=f"q{new_id()[:8]}", ttl=60.0, max_length=5)
    for _ in range(3):
        await seam.backend.declare([spec, spec])
    await seam.put(spec.name, "a")
    await (await seam.open()).declare([spec])
    assert await seam.contents(spec.name) == Counter("a")


@pytest.mark.parametrize(
    ("setting", "one", "other"),
    [
        ("ttl", None, 5.0),
        ("ttl", 5.0, 6.0),
        ("max_length", 5, None),
        ("overflow", "reject", "dead_letter"),
        ("dead_letter", None, "elsewhere"),
        ("role", "work", "dead_letter"),
        ("retention", None, 60.0),
    ],
)
async def test_other_settings_are_a_mismatch(seam: Seam, setting: str, one: object, other: object) -> None:
    """G16: the error names the queue, the setting and both values; the queue stays as it was."""
    name = f"q{new_id()[:8]}"
    base: dict[str, object] = {"max_length": 5} if setting == "overflow" else {}
    first = QueueSpec(name=name, **(base | {setting: one}))  # type: ignore[arg-type]  # a real setting
    second = QueueSpec(name=name, **(base | {setting: other}))  # type: ignore[arg-type]  # a real setting
    await seam.backend.declare([first])
    with pytest.raises(TopologyMismatch) as caught:
        await seam.backend.declare([second])
    for part in (name, setting, str(one), str(other)):
        assert part in str(caught.value), f"the error should name {part!r}: {caught.value}"
    await seam.backend.declare([first])


async def test_a_mismatch_inside_one_batch_is_found_too(seam: Seam) -> None:
    """G16: two ideas of one queue in one application."""
    name = f"q{new_id()[:8]}"
    with pytest.raises(TopologyMismatch, match=name):
        await seam.backend.declare([QueueSpec(name=name, ttl=1.0), QueueSpec(name=name, ttl=2.0)])


async def test_more_durability_than_there_is_is_refused(seam: Seam) -> None:
    """G16: asked for by name, refused before anything is sent."""
    name = f"q{new_id()[:8]}"
    have = seam.capabilities.durability
    await seam.backend.declare([QueueSpec(name=name, durability=have)])
    for more in [level for level in Durability if level > have]:
        with pytest.raises(DurabilityUnavailable, match=more.word):
            await seam.backend.declare([QueueSpec(name=f"{name}.more", durability=more)])


# Temporary queues


async def test_a_temporary_queue_goes_with_its_owner(seam: Seam) -> None:
    """Rules: a reply queue ends with the Broker that declared it, is not listed, and serves until then like any other."""
    name = f"reply-{new_id()[:8]}"
    owner = await seam.open()
    await owner.declare([QueueSpec(name=name, role="temporary")])
    await seam.put(name, "a")
    consumer = await owner.subscribe(name, prefetch=10, lease=30.0)
    assert seam.ids(await seam.drain(consumer)) == ["a"]
    if isinstance(seam.backend, SupportsCount):
        assert name not in {counts.name for counts in await seam.backend.count()}
    await owner.close()
    (outcome,) = await seam.publish(Outgoing(name, seam.message("b")))
    assert isinstance(outcome, Failed), "the queue should have gone with its owner"


# Retention


async def test_a_dead_letter_queue_keeps_a_message_for_its_retention(seam: Seam) -> None:
    """G2, G11, X05: and no longer; what is held stays until it is let go."""
    name = f"q{new_id()[:8]}.dlq"
    await seam.backend.declare([QueueSpec(name=name, role="dead_letter", retention=10.0)])
    await seam.put(name, "old")
    await seam.advance(6.0)
    await seam.put(name, "young")
    await seam.advance(5.0)
    assert await seam.contents(name) == Counter(["young"])
    await seam.put(name, "held")
    consumer = await seam.subscribe(name, lease=60.0)
    (held,) = await seam.receive(consumer)
    await seam.advance(11.0)
    await seam.ack(consumer, [held])


async def test_a_retention_is_seen_by_whoever_looks(seam: Seam) -> None:
    """G11: counts and pages show nothing that is past its time, though nobody consumes the queue."""
    counter, browser = seam.supports(SupportsCount), seam.supports(SupportsBrowse)
    name = f"q{new_id()[:8]}.dlq"
    await seam.backend.declare([QueueSpec(name=name, role="dead_letter", retention=10.0)])
    await seam.put(name, "old")
    await seam.advance(11.0)
    (counts,) = await counter.count([name])
    assert counts.ready == 0
    assert list(await browser.browse(name, 10)) == []


# Bindings


def binding(router: str, queue: str, pattern: str = "", kind: str = "topic") -> Binding:
    return Binding(router=router, kind=kind, queue=queue, pattern=pattern)  # type: ignore[arg-type]  # a real kind


async def test_every_instance_sees_the_same_bindings(seam: Seam) -> None:
    """G15: they live with the broker; adding twice is once, and they are kept by router."""
    backend = seam.supports(SupportsBind)
    queue, shop, press = await seam.queue(), f"shop{new_id()[:6]}", f"press{new_id()[:6]}"
    one, two = binding(shop, queue, "order.*"), binding(shop, queue, "order.#")
    three = Binding(router=press, kind="headers", queue=queue, headers=(("a", "1"), ("b", "2")), match="any")
    await backend.bind([one, two, one])
    await backend.bind([one, three])
    other = await seam.open()
    assert isinstance(other, SupportsBind)
    assert Counter(await other.bindings(shop)) == Counter([one, two])
    assert list(await other.bindings(press)) == [three]
    assert {one, two, three} <= set(await other.bindings())
    assert list(await other.bindings("nowhere")) == []


async def test_an_unbound_binding_is_gone(seam: Seam) -> None:
    """G15: removing what is not there is no error; others stay."""
    backend = seam.supports(SupportsBind)
    queue, router = await seam.queue(), f"shop{new_id()[:6]}"
    one, two = binding(router, queue, "a"), binding(router, queue, "b")
    await backend.bind([one, two])
    await backend.unbind([one, binding(router, queue, "c")])
    await backend.unbind([one])
    assert list(await backend.bindings(router)) == [two]


async def test_a_router_has_one_kind(seam: Seam) -> None:
    """G15: the second kind is a mismatch that names the router and both, and adds nothing of its batch."""
    backend = seam.supports(SupportsBind)
    queue, router = await seam.queue(), f"shop{new_id()[:6]}"
    topic = binding(router, queue, "a.*")
    await backend.bind([topic])
    for batch in (
        [binding(router, queue, "a", "direct")],
        [binding(router, queue, "b.*"), binding(router, queue, "a", "direct")],
    ):
        with pytest.raises(TopologyMismatch) as caught:
            await backend.bind(batch)
        for part in (router, "topic", "direct"):
            assert part in str(caught.value)
    assert list(await backend.bindings(router)) == [topic]


async def test_a_deleted_queue_takes_its_bindings_along(seam: Seam) -> None:
    """G15: no arrow points to nowhere."""
    backend, deleter = seam.supports(SupportsBind), seam.supports(SupportsDelete)
    one, two, router = await seam.queue(), await seam.queue(), f"shop{new_id()[:6]}"
    await backend.bind([binding(router, one, "a"), binding(router, two, "a")])
    await deleter.delete(one)
    assert [it.queue for it in await backend.bindings(router)] == [two]


@pytest.mark.parametrize(
    ("kind", "patterns", "key", "expected"),
    [
        ("direct", ["a", "b", "a.b"], "a", [0]),
        ("topic", ["order.*", "#", "order.#", "*.placed", "order"], "order.placed", [0, 1, 2, 3]),
        ("fanout", ["", "", ""], "whatever", [0, 1, 2]),
    ],
)
async def test_bindings_lead_to_the_queues_that_match(
    seam: Seam, kind: str, patterns: list[str], key: str, expected: list[int]
) -> None:
    """G15, C65: by whoever routes, the broker or core, each queue gets one copy or none."""
    backend = seam.supports(SupportsBind)
    router = f"shop{new_id()[:6]}"
    queues = [await seam.queue() for _ in patterns]
    await backend.bind([binding(router, queue, part, kind) for queue, part in zip(queues, patterns, strict=True)])
    if seam.capabilities[Capability.ROUTING].level is Level.NATIVE:
        batch = [Outgoing(Route(router, key), seam.message("a"))]
    else:
        batch = [Outgoing(to, seam.message("a")) for to in route(await backend.bindings(router), key, {})]
    assert not any(isinstance(outcome, Failed) for outcome in await seam.publish(*batch))
    got = [await seam.contents(queue) for queue in queues]
    assert [number for number, found in enumerate(got) if found == Counter("a")] == expected
    assert sum(map(Counter.total, got)) == len(expected)


async def test_a_route_is_refused_where_core_routes(seam: Seam) -> None:
    """G15, U02: a backend that does not route says so for each item, and stores nothing anywhere."""
    if seam.capabilities[Capability.ROUTING].level is Level.NATIVE:
        pytest.skip("routes by itself")
    queue = await seam.queue()
    refused, stored = await seam.publish(Outgoing(Route("r", "k"), seam.message()), Outgoing(queue, seam.message("a")))
    assert isinstance(refused, Failed)
    assert not isinstance(stored, Failed)


# Capabilities


async def test_capabilities_say_what_the_backend_is(seam: Seam) -> None:
    """G16: names for people, a durability, and for each promise its level and the limits that the docs name."""
    capabilities = seam.capabilities
    assert capabilities.backend
    assert capabilities.server
    limits = {
        Capability.DELAY: ["granularity", "max"],
        Capability.PRIORITY: ["levels"],
        Capability.EXPIRY: ["sweep"],
        Capability.DEDUP: ["window", "size"],
        Capability.ORDER: ["release_in_place", "after_delay"],
        Capability.MAX_LENGTH: ["modes"],
    }
    for capability, names in limits.items():
        if capabilities.has(capability):
            assert set(names) <= set(capabilities[capability].limits), f"{capability.name} should state {names}"


async def test_protocols_and_capabilities_agree(seam: Seam) -> None:
    """G16: what is declared can be called, and nothing undeclared can."""
    backend, capabilities = seam.backend, seam.capabilities
    assert isinstance(backend, SupportsRenew) == capabilities.has(Capability.LEASE)
    assert isinstance(backend, SupportsBrowse) == capabilities.has(Capability.BROWSE)
    assert isinstance(backend, SupportsBind) == capabilities.has(Capability.ROUTING)
    assert isinstance(backend, SupportsSweep) == bool(seam.limit(Capability.EXPIRY, "sweep"))


async def test_opening_again_gives_the_same_capabilities(seam: Seam) -> None:
    """G16: another instance for the same broker sees the same server."""
    before = seam.capabilities
    await seam.open()
    assert seam.capabilities == before
