"""What the store keeps of a schedule, beside its name, version and next instant."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, TypeAdapter
from pydantic import ValidationError as PydanticError

from mqcore.tasks.schedules.errors import InvalidSchedule
from mqcore.tasks.schedules.triggers import Trigger

if TYPE_CHECKING:
    from mqcore.tasks.store.seam import Schedule

__all__ = [
    "MOST_MISSED",
    "Definition",
    "Last",
    "Missed",
    "Overlap",
    "Status",
    "decode",
    "encode",
    "root_id",
    "run_id",
]

MOST_MISSED = 1_000
"""How many missed runs may be sent at once: one transaction sends all of them."""


class Missed(StrEnum):
    """What happens with runs that came due while no scheduler ran."""

    SKIP = "skip"
    """They are left out. The newest one still runs when it is at most a minute late."""
    ONCE = "once"
    """One run stands for all of them: the newest."""
    ALL = "all"
    """Each of them runs, at most `limit`: the newest ones, the oldest of these first."""


class Overlap(StrEnum):
    """What happens when a run falls due and the one before has not ended."""

    ALLOW = "allow"
    SKIP = "skip"
    """It is left out."""
    QUEUE = "queue"
    """It starts when the one before has ended. What falls due meanwhile counts as missed."""


class Status(StrEnum):
    """Whether a schedule fires."""

    ACTIVE = "active"
    PAUSED = "paused"
    REMOVED = "removed"
    """It was removed, also from the code that defined it. Its row keeps the version, so that a
    scheduler that knew it cannot take a later schedule of the same name for it."""


@dataclass(frozen=True, slots=True)
class Last:
    """What has happened last."""

    planned: float | None = None
    """The instant of the last run."""
    root: str = ""
    """Its task."""
    skipped: float | None = None
    """The last instant that was left out, because of a missed or overlapping run."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A schedule: when it fires, what it sends, and its policies."""

    trigger: Annotated[Trigger, Field(discriminator="kind")]
    call: str
    """The task and its arguments, as text; the scheduler does not read it."""
    missed: Missed = Missed.ONCE
    limit: int = 100
    """Of `Missed.ALL`."""
    overlap: Overlap = Overlap.ALLOW
    status: Status = Status.ACTIVE
    owner: str = ""
    """Whose code defines it; empty for one that was made at run time."""
    last: Last = field(default_factory=Last)

    def __post_init__(self) -> None:
        """Refuse a limit that one transaction cannot hold."""
        if not 1 <= self.limit <= MOST_MISSED:
            raise InvalidSchedule(
                f"limit={self.limit}: how many missed runs may be sent is 1 to {MOST_MISSED:,}"
            )


_adapter: TypeAdapter[Definition] = TypeAdapter(Definition)


def encode(definition: Definition) -> bytes:
    """Return a definition as the store keeps it."""
    return _adapter.dump_json(definition)


def decode(schedule: Schedule) -> Definition:
    """Return the definition of a stored schedule.

    Raises `InvalidSchedule` for one that this version of mqcore cannot read.
    """
    try:
        return _decoded(schedule.definition)
    except PydanticError as error:
        first: Any = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InvalidSchedule(
            f"schedule {schedule.name!r}: its definition cannot be read ({place}: {first['msg']}). "
            "A newer version of mqcore, or another program, has written it: upgrade mqcore here"
        ) from error


@lru_cache(maxsize=10_000)
def _decoded(data: bytes) -> Definition:
    return _adapter.validate_json(data)


def root_id(name: str, planned: float) -> str:
    """Return the id of the task of a planned instant: the same in every scheduler (T11)."""
    return _digest(name, f"{round(planned * 1_000_000)}")


def run_id(name: str, version: int) -> str:
    """Return the id of the task of a run that was asked for by hand."""
    return _digest(name, f"version {version}")


def _digest(name: str, what: str) -> str:
    return hashlib.sha256(f"{name}\n{what}".encode()).hexdigest()[:32]
