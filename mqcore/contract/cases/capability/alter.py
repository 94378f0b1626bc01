"""Changing the settings of a queue that exists."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from mqcore.contract.case import case
from mqcore.contract.kit import NotShown
from mqcore.spi import (
    STORED,
    Backend,
    Capability,
    ErrorKind,
    Outgoing,
    QueueSpec,
    SupportsAlter,
    TopologyMismatch,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.contract.kit import Kit
    from mqcore.spi import Alterations


# Other settings for a queue that exists

_ALTER = "SupportsAlter.alter"


_ALTERED: dict[str, tuple[str, Any, Capability | None]] = {
    "ttl": ("ttl", 50.0, Capability.EXPIRY),
    "max_length": ("max_length", 2, Capability.MAX_LENGTH),
    "no_max_length": ("max_length", None, Capability.MAX_LENGTH),
    "retention": ("retention", 1.0, None),
}


@case("G16", "G2", protocols=(SupportsAlter,), each=_ALTERED)
async def a_queue_takes_other_settings_with_what_it_holds(
    kit: Kit, change: tuple[str, Any, Capability | None]
) -> None:
    """Altering a queue applies the new settings and keeps its messages.

    Or a TopologyMismatch names the setting that cannot be changed, and nothing is changed.
    """
    setting, value, needed = change
    has, name = kit.capabilities.has, kit.name()
    if needed is not None and not has(needed):
        raise NotShown(
            f"declares no {needed.name}, so that core refuses such a setting before the seam"
        )
    mode = str(kit.limit(Capability.MAX_LENGTH, "modes") or "reject").split(",")[0]
    settings: dict[str, Any] = {"ttl": 400.0} if has(Capability.EXPIRY) else {}
    settings |= {"max_length": 3, "overflow": mode} if has(Capability.MAX_LENGTH) else {}
    old = [
        QueueSpec(name=name, dead_letter=f"{name}.dlq", **settings),
        QueueSpec(name=f"{name}.dlq", role="dead_letter", retention=9000.0),
    ]
    await kit.within(kit.backend.declare(old))
    await kit.put(name, "a", "b")
    await kit.put(f"{name}.dlq", "letter")

    at = int(setting == "retention")
    backend, target = cast("SupportsAlter", kit.backend), old[at].name
    changes = cast("Alterations", {setting: value})
    try:
        await kit.within(backend.alter(target, changes))
    except TopologyMismatch as error:
        is_complete = all(
            part in str(error)
            for part in (target, setting, str(getattr(old[at], setting)), str(value))
        )
        kit.true(
            is_complete, "a text with the queue's name, the setting and both values", error, _ALTER
        )
        await kit.within((await kit.open()).declare(old))
        return

    new = [replace(spec, **(changes if number == at else {})) for number, spec in enumerate(old)]
    other = await kit.open()
    await kit.within(other.declare(new))
    await kit.raises(
        TopologyMismatch, other.declare(old), "TopologyMismatch for the old settings", _ALTER
    )
    await _has_its_new_settings(kit, new, setting, other)

    missing = cast("SupportsAlter", kit.backend).alter(kit.name(), changes)
    kit.kind(
        await kit.raises(Exception, missing, "an error for a queue that is missing", _ALTER),
        ErrorKind.NOT_FOUND,
    )


async def _has_its_new_settings(
    kit: Kit, specs: Sequence[QueueSpec], setting: str, backend: Backend
) -> None:
    """Check the effect of the new settings on stored and on new messages."""
    main, letters = specs
    (outcome,) = await kit.publish(Outgoing(main.name, kit.message("c")), backend=backend)
    full = setting == "max_length" and main.max_length is not None and main.overflow == "reject"
    expected = ErrorKind.FULL if full else None
    kit.same(
        getattr(outcome, "kind", None),
        expected,
        "the kind of the outcome of a third message",
        f"{_ALTER}: {setting}",
    )

    consumer = await kit.subscribe(main.name, backend=backend)
    deliveries = await kit.take(consumer, 2 + (outcome == STORED))
    kit.same(
        kit.ids(deliveries), ["a", "b", "c"][: len(deliveries)], "stored messages, in order", _ALTER
    )
    if setting == "ttl" and main.ttl is not None:
        lives = [delivery.expires_in or 0.0 for delivery in deliveries]
        fits = lives[0] > main.ttl and lives[1] > main.ttl and 0 < lives[2] <= main.ttl
        kit.true(
            fits, "the old expiry for stored messages, the new one for new messages", lives, _ALTER
        )

    if setting == "retention":
        await kit.advance((letters.retention or 0.0) + 1.5)
        kit.same(
            await kit.contents(letters.name),
            Counter(),
            "no dead letter beyond the new retention",
            _ALTER,
        )
    else:
        kit.same(await kit.contents(letters.name), Counter(["letter"]), "the dead letter", _ALTER)
