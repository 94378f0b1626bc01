"""A queue of role `relay`: nothing is claimed while another claim of it holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.contract.case import case
from mqcore.contract.cases.lease.common import LEASE, LEASES
from mqcore.contract.kit import NotShown
from mqcore.spi import Ack, Capability, QueueSpec, Release

if TYPE_CHECKING:
    from mqcore.contract.kit import Kit

_LOOK = "Subscription.receive: a queue of role relay"


async def _relay_queue(kit: Kit) -> str:
    if not kit.limit(Capability.LEASE, "exclusive"):
        raise NotShown("LEASE is declared without exclusive")
    name = kit.name()
    specs = [
        QueueSpec(name=name, role="relay", dead_letter=f"{name}.dlq"),
        QueueSpec(name=f"{name}.dlq", role="dead_letter"),
    ]
    await kit.within(kit.backend.declare(specs))
    return name


@case("G9", needs=LEASES)
async def a_relay_queue_gives_nothing_while_a_claim_holds(kit: Kit) -> None:
    """Of two consumers of a relay queue one has messages; the other gets the next ones after it."""
    queue = await _relay_queue(kit)
    await kit.put(queue, "a", "b", "c")
    one, other = await kit.subscribe(queue), await kit.subscribe(queue)
    first = await kit.receive(one, 1)
    kit.same(kit.ids(first), ["a"], "messages of the first consumer", _LOOK)

    kit.same(kit.ids(await kit.receive(other, 1)), [], "messages beside a claim", _LOOK)
    kit.same(kit.ids(await kit.receive(one, 1)), [], "messages beside its own claim", _LOOK)
    await kit.settle(one, Ack(first[0].receipt))
    second = await kit.take(other, 2)
    kit.same(kit.ids(second), ["b", "c"], "messages after the ack", _LOOK)

    await kit.settle(other, Ack(second[0].receipt))
    kit.same(kit.ids(await kit.receive(one, 1)), [], "messages beside the rest of a claim", _LOOK)
    await kit.settle(other, Release(second[1].receipt))
    kit.same(kit.ids(await kit.take(one, 1)), ["c"], "messages after the release", _LOOK)


@case("G9", "G5", needs=LEASES)
async def a_relay_queue_goes_on_when_the_lease_ends(kit: Kit) -> None:
    """What a dead consumer of a relay queue held comes first, in its order."""
    queue = await _relay_queue(kit)
    await kit.put(queue, "a", "b", "c")
    dead = await kit.subscribe(queue, lease=LEASE)
    kit.same(kit.ids(await kit.take(dead, 2)), ["a", "b"], "messages of the first consumer", _LOOK)
    other = await kit.subscribe(queue)
    kit.same(kit.ids(await kit.take(other, 3)), ["a", "b", "c"], "messages after its lease", _LOOK)
