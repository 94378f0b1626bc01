"""`Rate` and `Slots`: how often a task starts, and how many run at once, over all workers (T10)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

from mqcore.errors import ConfigurationError, ValidationError
from mqcore.rules.checks import check_count, check_flag, check_kind, check_seconds, check_text
from mqcore.tasks.model.limits import RateLimit, SlotLimit

if TYPE_CHECKING:
    from datetime import timedelta

    from mqcore.tasks.run import TaskCall
    from mqcore.tasks.task import BaseTask, TaskOptions

__all__ = ["Rate", "Slots", "check_arguments", "check_limits", "rate_of", "slot_of"]


@dataclass(frozen=True, slots=True)
class Rate:
    """How often a task starts at most, over all workers.

        Rate(10, per=60)                    10 in a minute: one every 6 seconds
        Rate(10, per=60, burst=10)          10 at once, then one every 6 seconds
        Rate(1, per=1, by=("customer",))    one in a second for each customer

    Each attempt counts. A task that comes too early is postponed until its turn: it is not an
    attempt. `by` names the parameters that make a key, each of which has a rate of its own. Tasks
    whose rates have the same `name` share it; by default it is the name of the task.
    """

    count: int
    per: float | timedelta
    by: tuple[str, ...] = ()
    burst: int = 1
    name: str = ""

    def __post_init__(self) -> None:
        check_count("count", self.count, "Rate")
        check_count("burst", self.burst, "Rate")
        check_seconds("per", self.per, "Rate")
        _check_key("Rate", self.by, self.name)


@dataclass(frozen=True, slots=True)
class Slots:
    """How many tasks run at once at most, over all workers.

        Slots(2, by=("storage",))    two for each storage

    A task that finds no free slot waits in a line in the store, without a message in the broker. It
    starts as soon as it is its turn. The slot of a killed worker is free again when the worker
    counts as dead, after 15 s.

    `by` names the parameters that make a key. Tasks whose slots have the same `name` share them; by
    default it is the name of the task. With `keep` a task has its slot from its first start to its
    end, also while it waits for a retry, after it has postponed itself, while what has replaced it
    runs, and when its worker has died.
    """

    count: int
    by: tuple[str, ...] = ()
    keep: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        check_count("count", self.count, "Slots")
        check_flag("keep", self.keep, "Slots")
        _check_key("Slots", self.by, self.name)


def _check_key(where: str, by: object, name: object) -> None:
    if isinstance(by, str):
        raise ConfigurationError(f"{where}: by= takes a tuple of names: by=({by!r},)")
    if not isinstance(by, tuple) or not all(isinstance(each, str) for each in by):
        raise ConfigurationError(f"{where}: by= takes a tuple of names of parameters")
    if name:
        check_text("name", name, where)


def check_limits(options: TaskOptions, where: str) -> None:
    """Raise `ConfigurationError` for what is not a rate, or not slots."""
    if "rate" in options:
        check_kind("rate", options["rate"], Rate, where, "Rate(10, per=60)")
    if "slots" in options:
        check_kind("slots", options["slots"], Slots, where, "Slots(2)")


def check_arguments(task: BaseTask[Any, Any], arguments: str, *, is_step: bool) -> None:
    """Raise `ValidationError` for a call whose key cannot be known before it runs."""
    for option, limit in (("rate", task.rate), ("slots", task.slots)):
        by = () if limit is None else limit.by
        if by and arguments.startswith("["):
            raise ValidationError(
                f"task {task.name!r}: map, starmap and chunks run many calls in one task, so "
                f"{option}= cannot be keyed by {', '.join(by)}. Use a group of calls"
            )
        if is_step and task.parameters.first in by:
            raise ValidationError(
                f"task {task.name!r}: {option}= is keyed by {task.parameters.first}, which a step "
                "gets from the step before. Key it by another parameter"
            )


def rate_of(task: BaseTask[Any, Any], call: TaskCall) -> RateLimit | None:
    """Return the rate that a call has to observe."""
    rate = task.rate
    if rate is None:
        return None
    interval = check_seconds("per", rate.per, "Rate") / rate.count
    return RateLimit(_key("rate", task, rate, call.arguments), interval, rate.burst)


def slot_of(task: BaseTask[Any, Any], call: TaskCall, *, takes_over: bool) -> SlotLimit | None:
    """Return the slots of which a call needs one."""
    slots = task.slots
    if slots is None:
        return None
    key = _key("slots", task, slots, call.arguments)
    return SlotLimit(key, slots.count, slots.keep, takes_over)


def _key(kind: str, task: BaseTask[Any, Any], limit: Rate | Slots, arguments: str) -> str:
    """Return the key of a limit: its name, and a hash of the arguments that it is keyed by."""
    name = f"{kind}:{limit.name or task.name}"
    if not limit.by or arguments.startswith("["):
        return name
    values = json.loads(arguments)
    parameters = task.parameters.signature.parameters
    chosen = [
        values[each]
        if each in values
        else to_jsonable_python(parameters[each].default, fallback=repr)
        for each in limit.by
    ]
    text = json.dumps(chosen, sort_keys=True, separators=(",", ":"))
    return f"{name}:{hashlib.sha256(text.encode()).hexdigest()[:32]}"
