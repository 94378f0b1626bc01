"""What is declared: levels, limits and protocols."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from mqcore.contract.case import case
from mqcore.contract.cases.capability.common import OPEN
from mqcore.errors import DurabilityUnavailable
from mqcore.spi import (
    Capability,
    Durability,
    ErrorKind,
    Level,
    QueueSpec,
    SupportsBind,
    SupportsBrowse,
    SupportsRenew,
    SupportsSweep,
    SupportsUnwrap,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqcore.contract.kit import Kit


_FEWEST, _LEVELS = 2, 11


_MODES = {"reject", "dead_letter"}


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _levels(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and _FEWEST <= value <= _LEVELS


def _truth(value: object) -> bool:
    return isinstance(value, bool)


def _modes(value: object) -> bool:
    return isinstance(value, str) and bool(value) and set(value.split(",")) <= _MODES


_Limits = dict[str, tuple[str, "Callable[[object], bool]"]]


_SECONDS, _COUNT = ("seconds above 0", _number), ("a number above 0", _number)


_LIMITS: dict[Capability, _Limits] = {
    Capability.DELAY: {"granularity": _SECONDS, "max": _SECONDS},
    Capability.PRIORITY: {"levels": (f"a number up to {_LEVELS}", _levels)},
    Capability.EXPIRY: {"sweep": ("True or False", _truth)},
    Capability.DEDUP: {"window": _SECONDS, "size": _COUNT},
    Capability.ORDER: {
        "release_in_place": ("True or False", _truth),
        "after_delay": ("'end' or another word", lambda it: isinstance(it, str) and bool(it)),
    },
    Capability.MAX_LENGTH: {"modes": ("'reject', 'dead_letter' or 'reject,dead_letter'", _modes)},
}


# Declared: in the words and numbers that programs read


@case("G16", ids="U03", each={one.name: one for one in Capability})
async def a_capability_has_a_level_and_its_limits(kit: Kit, capability: Capability) -> None:
    """A declared capability has a level and the documented limits, as numbers or known words."""
    support = kit.capabilities[capability]
    kit.true(
        isinstance(support.level, Level),
        f"{capability.name}: one of the four levels",
        support.level,
        OPEN,
    )

    if support.level is Level.NONE:
        return
    for name, (kind, fits) in _LIMITS.get(capability, {}).items():
        expected = f"{capability.name} with the limit {name!r}: {kind}"
        kit.true(name in support.limits, expected, f"limits {dict(support.limits)}", OPEN)
        kit.true(fits(support.limits[name]), expected, repr(support.limits[name]), OPEN)

    if capability is Capability.PRIORITY and support.limits["levels"] != _LEVELS:
        kit.same(
            support.level,
            Level.APPROXIMATE,
            "the level of PRIORITY with fewer than 11 levels",
            OPEN,
        )


@case("G16", ids="U03")
async def durability_is_one_of_four_words(kit: Kit) -> None:
    """Durability is one of four levels; DURABLE is declared from *process* on, and not below."""
    durability = kit.capabilities.durability
    kit.true(isinstance(durability, Durability), "a member of Durability", repr(durability), OPEN)
    what = f"whether DURABLE is declared at durability {durability.word!r}"
    kit.same(kit.capabilities.has(Capability.DURABLE), durability >= Durability.PROCESS, what, OPEN)


@case("G16", ids="U02")
async def more_durability_than_there_is_is_refused(kit: Kit) -> None:
    """Declaring a queue with more durability than there is raises DurabilityUnavailable.

    The queue is not created.
    """
    for expected in Durability:
        name = kit.name()
        spec = QueueSpec(name=name, dead_letter=None, durability=expected)
        if expected <= kit.capabilities.durability:
            await kit.within(kit.backend.declare([spec]))
            continue
        refused = f"DurabilityUnavailable from declare with durability {expected.word!r}"
        look = "Backend.declare: capabilities.require_durability(spec.durability)"
        await kit.raises(DurabilityUnavailable, kit.backend.declare([spec]), refused, look)
        none = "no queue made where the durability was refused"
        error = await kit.raises(
            Exception, kit.subscribe(name), none, "Backend.declare: nothing of a refused batch"
        )
        kit.kind(error, ErrorKind.NOT_FOUND)


@case("G16")
async def names_say_which_backend_and_server_it_is(kit: Kit) -> None:
    """`Capabilities.backend` names the plugin, and `server` the product with its version."""
    kit.true(kit.capabilities.backend, "the plugin's name", repr(kit.capabilities.backend), OPEN)
    kit.true(kit.capabilities.server, "the server's name", repr(kit.capabilities.server), OPEN)


@case("G16")
async def protocols_and_capabilities_agree(kit: Kit) -> None:
    """A capability is declared exactly when the backend has its methods."""
    for capability, protocol, declared in (
        (Capability.LEASE, SupportsRenew, kit.capabilities.has(Capability.LEASE)),
        (Capability.BROWSE, SupportsBrowse, kit.capabilities.has(Capability.BROWSE)),
        (Capability.ROUTING, SupportsBind, kit.capabilities.has(Capability.ROUTING)),
        (Capability.EXPIRY, SupportsSweep, bool(kit.limit(Capability.EXPIRY, "sweep"))),
    ):
        there = isinstance(kit.backend, protocol)
        said = f"{capability.name}{' with sweep' if protocol is SupportsSweep else ''}"
        what = f"{said} {'declared' if declared else 'not declared'}, so {protocol.__name__} is"
        kit.same(
            "there" if there else "not there", "there" if declared else "not there", what, OPEN
        )


@case("G16", protocols=[SupportsUnwrap])
async def what_is_unwrapped_are_clients_and_nothing_else(kit: Kit) -> None:
    """`unwrap` returns objects of the client library only.

    It returns neither text with the URL nor options nor parts of the driver.
    """
    backend = cast("SupportsUnwrap", kit.backend)
    driver = type(kit.backend).__module__.partition(".")[0]

    for client in backend.unwrap():
        modules = {kind.__module__.partition(".")[0] for kind in type(client).__mro__} - {
            "builtins",
            driver,
            "mqcore",
        }
        library = modules - {"abc", "typing", "pydantic", "collections"}
        look = "SupportsUnwrap.unwrap: return the connection or client of the client library alone"
        kit.true(library, "an object of the client library", type(client).__name__, look)

    await kit.within(kit.backend.close())
    try:
        backend.unwrap()
    except Exception as error:  # noqa: BLE001 - the driver's own
        kit.kind(error, ErrorKind.TRANSIENT)
    else:
        actual = False
        kit.true(
            actual, "an error from unwrap on a closed instance", "none", "SupportsUnwrap.unwrap"
        )


@case("G16", "G14")
async def every_open_says_the_same(kit: Kit) -> None:
    """Each instance reports the same capabilities, also after close and open."""
    before = kit.capabilities
    other = await kit.open()
    kit.same(kit.capabilities, before, "capabilities of another instance", OPEN)
    await kit.within(other.close())
    await kit.open(other)
    kit.same(kit.capabilities, before, "capabilities after close and open", OPEN)
