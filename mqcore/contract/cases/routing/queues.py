"""Declaring queues."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, cast

from mqcore.contract.case import case
from mqcore.contract.cases.routing.common import topic_binding
from mqcore.contract.kit import NotShown
from mqcore.errors import ConfigurationError, QueueNotFound
from mqcore.queue import Queue
from mqcore.router import Router
from mqcore.spi import (
    Capability,
    Durability,
    DurabilityUnavailable,
    ErrorKind,
    Failed,
    Outgoing,
    QueueSpec,
    SupportsBind,
    SupportsCount,
    SupportsDelete,
    TopologyMismatch,
)

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit


_BIND = "SupportsBind.bind: role temporary"
_CLOSE = 2.0
"""Seconds that a close may take."""


@case("G2", ids="C24")
async def queues_do_not_mix(kit: Kit) -> None:
    """A message goes to its own queue only."""
    one, two = await kit.queue(), await kit.queue()
    consumers = [await kit.subscribe(queue) for queue in (one, two)]
    await kit.publish(*[Outgoing((one, two)[n % 2], kit.message(f"{n}")) for n in range(20)])

    for start, consumer in enumerate(consumers):
        expected = [f"{n}" for n in range(start, 20, 2)]
        kit.same(
            kit.ids(await kit.take(consumer, 10)),
            expected,
            "the queue's own messages",
            "Backend.publish",
        )
        kit.same(await kit.receive(consumer), [], "further messages", "Backend.publish")


@case("G1", ids="C06")
async def subscribing_to_a_missing_queue_is_not_found(kit: Kit) -> None:
    """Subscribing to a missing queue raises NOT_FOUND with its name; the instance still works."""
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
        await kit.contents(queue), Counter("a"), "messages in another queue", "Backend.subscribe"
    )


@case("G1", ids="C05 C06")
async def an_application_is_told_of_a_missing_queue(kit: Kit) -> None:
    """Publishing to or consuming a missing queue by name raises QueueNotFound.

    Core declares queues given as `Queue` objects only.
    """
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
    """Declaring the same queue again changes nothing."""
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
    """Declaring a queue with other settings raises TopologyMismatch.

    Its text contains the queue, the setting and both values; the queue is unchanged.
    """
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
    """More durability than the server has is refused, at `declare` and at connect."""
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
    """A temporary queue is not listed, and ends with the instance that declared it."""
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


@case("G1", "G15", ids="C12", needs=(Capability.ROUTING,), protocols=(SupportsBind,))
async def the_bindings_of_a_temporary_queue_end_with_it(kit: Kit) -> None:
    """A router is published to as before when a temporary queue that is bound to it has ended."""
    router: Router[str] = Router(kit.name(), str)
    jobs, broker, owner = Queue(kit.name(), str), await kit.broker(), await kit.broker()
    passing = Queue(kit.name(), str, temporary=True)
    await kit.within(broker.declare(router.bind(jobs, "#")))
    own: Router[str] = Router(router.name, str)
    await kit.within(owner.declare(own.bind(passing, "#")))

    backend = cast("SupportsBind", kit.backend)
    kit.same(
        set(await _bound(kit, backend, router.name)),
        {jobs.name, passing.name},
        "queues that are bound to the router, as another instance sees them",
        "SupportsBind.bindings",
    )
    await kit.within(broker.publish(router, "both", key="a"))
    async with owner.consume(passing) as consumer:
        received = await kit.within(anext(consumer), what="a message in the temporary queue")
        kit.same(received.value, "both", "the message in the temporary queue", _BIND)
        await kit.within(received.ack())
    await kit.within(owner.close(), _CLOSE)

    receipt = await kit.within(broker.publish(router, "one", key="a"))
    kit.true(receipt is not None, "a receipt", receipt, _BIND)
    deadline = kit.now + kit.harness.patience
    while passing.name in (found := await _bound(kit, backend, router.name)) and (
        kit.now < deadline
    ):
        await kit.advance(0.1)
    kit.same(found, [jobs.name], "queues that are bound to the router", "SupportsBind.bindings")
    kit.same(len(await kit.contents(jobs.name)), 2, "messages in the other queue", _BIND)


async def _bound(kit: Kit, backend: SupportsBind, router: str) -> list[str]:
    return [binding.queue for binding in await kit.within(backend.bindings(router))]


@case("G1", "G15", ids="C12", protocols=(SupportsDelete,))
async def a_clean_up_leaves_nothing_behind(kit: Kit) -> None:
    """A deleted queue has no counts, bindings, messages or remembered ids."""
    queue, router, backend = await kit.queue(), kit.name(), kit.backend
    await kit.put(queue, "a", "b")
    if isinstance(backend, SupportsBind):
        await kit.within(backend.bind([topic_binding(router, queue, "a")]))
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
            "bindings of the deleted queue",
            "delete: bindings",
        )

    if isinstance(backend, SupportsCount):
        kit.same(
            list(await kit.within(backend.count([queue]))),
            [],
            "counts of the deleted queue",
            "delete: counts",
        )

    await kit.within(backend.declare([QueueSpec(name=queue)]))
    kit.same(await kit.contents(queue), Counter(), "messages in the new queue", "delete: messages")

    await kit.put(queue, "a")
    kit.same(
        await kit.contents(queue),
        Counter("a"),
        "messages in the queue after an old id was published",
        "delete: dedup window",
    )
