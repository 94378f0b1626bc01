"""What is to be done with a schedule at a moment. No I/O: a table of policies and a clock."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mqcore.tasks.model.changes import Fire
from mqcore.tasks.schedules.definition import Definition, Missed, Overlap, encode, root_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.schedules.triggers import Trigger
    from mqcore.tasks.store.seam import Schedule

__all__ = ["ON_TIME", "Step", "due_instants", "fires_of", "step_of"]

ON_TIME = 60.0
"""Seconds after its instant within which a run is not missed."""
_FIRST_WINDOW = 64.0


@dataclass(frozen=True, slots=True)
class Step:
    """How a schedule moves on."""

    fired: Sequence[float]
    """The instants that run."""
    next_at: float
    skipped: float | None
    """The newest instant, if it is left out."""


def step_of(
    definition: Definition, planned: float, now: float, *, is_open: bool = False
) -> Step | None:
    """Return how the schedule moves on, or None when it has to wait.

    The next instant follows from the planned one, never from `now`: a scheduler that is late or
    whose clock is wrong does not move the others. `is_open` is whether the last run has not ended.
    """
    if now < planned or (is_open and definition.overlap is Overlap.QUEUE):
        return None

    most = definition.limit if definition.missed is Missed.ALL else 1
    instants = due_instants(definition.trigger, planned, now, most)
    newest = instants[-1]
    next_at = definition.trigger.following(newest, newest)

    fired = instants
    if definition.missed is Missed.SKIP and now - newest > ON_TIME:
        fired = []
    if definition.overlap is Overlap.SKIP:
        fired = [] if is_open else fired[:1]
    if definition.overlap is Overlap.QUEUE and len(fired) > 1:
        fired, next_at = fired[:1], fired[1]

    is_left_out = next_at > now and newest not in fired
    skipped = newest if is_left_out else None
    return Step(fired, next_at, skipped)


def due_instants(trigger: Trigger, planned: float, now: float, most: int) -> list[float]:
    """Return the newest `most` instants from the planned one until `now`, in their order.

    They are searched backward from `now`, in windows that double: after an outage of a year, a
    schedule of every minute does not count half a million instants.
    """
    window = _FIRST_WINDOW
    while True:
        start = now - window
        is_whole = start < planned
        moment = planned if is_whole else trigger.following(start, planned)
        found = []
        while moment <= now:
            found.append(moment)
            moment = trigger.following(moment, planned)

        if is_whole or len(found) >= most:
            return found[-most:]
        window *= 2


def fires_of(
    schedule: Schedule,
    definition: Definition,
    step: Step,
    rows: Callable[[str, str], Sequence[Node]],
) -> tuple[list[Fire], Schedule]:
    """Return the changes of a step, and the schedule as it is after them.

    Each run is a change of its own, and all of them are one transaction: a scheduler that dies has
    sent all or none. `rows` makes the rows of a call, under the id of its root.
    """
    name, last = schedule.name, definition.last
    if step.fired:
        planned = step.fired[-1]
        last = replace(last, planned=planned, root=root_id(name, planned))
    if step.skipped is not None:
        last = replace(last, skipped=step.skipped)
    stored = encode(replace(definition, last=last))

    sent = [rows(definition.call, root_id(name, planned)) for planned in step.fired] or [()]
    fires = [
        Fire(name, schedule.version + number, step.next_at, each, stored)
        for number, each in enumerate(sent)
    ]
    after = replace(
        schedule,
        version=schedule.version + len(fires),
        next_at=step.next_at,
        definition=stored,
    )
    return fires, after
