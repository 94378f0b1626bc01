"""Which queues of RabbitMQ make one queue of mqcore, and with which arguments. Pure.

    orders (classic)  ─► orders               a durable classic queue that sorts by priority
    orders (quorum)   ─► orders, orders.p0 …  a quorum queue for each priority
    orders (bounded)  ─► orders, orders.due   the second takes Moves and delayed messages

A dead-letter queue, a quarantine and a temporary queue are one queue each. A plain client finds
`orders` under its name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from mqcore.spi import Durability, QueueSpec, TopologyMismatch, check_spec

__all__ = [
    "ALTERABLE",
    "CONSUMER_TIMEOUT",
    "LEVELS",
    "LOST",
    "NO_LIMIT",
    "PARKED",
    "Layout",
    "Server",
    "compare",
]

LEVELS = 11
LOST = "mq.lost"
"""The queue of delayed messages whose own queue was deleted; it is listed while not empty."""
NO_LIMIT = 2_000_000_000
"""The delivery limit of quorum queues, which no message reaches.

Without a limit, a quorum queue puts returned messages at its end.
"""
_DEFAULT = 5
_THREE = (0, 0, 0, 0, 5, 5, 5, 10, 10, 10, 10)
"""The band of each of the eleven levels where there are three bands."""
CONSUMER_TIMEOUT = 12 * 3_600
"""Seconds for which a delivery may be unsettled; a queue can set it from 3.12 on."""


@dataclass(frozen=True)
class Server:
    """The live server. `room`: how many bytes the properties of a message may have."""

    product: str
    version: str
    user: str = ""
    room: int = 131_052

    @cached_property
    def number(self) -> tuple[int, int]:
        """Return major and minor version."""
        major, minor, *_ = *self.version.split("."), "0", "0"
        return int(major) if major.isdigit() else 0, int(minor) if minor.isdigit() else 0


@dataclass(frozen=True)
class Layout:
    """One queue of mqcore on this broker. `bands`: its number of quorum queues by priority."""

    spec: QueueSpec
    quorum: bool = False
    bands: int = 1

    @classmethod
    def of(cls, spec: QueueSpec, *, quorum: bool, bands: int) -> "Layout":
        """Choose the queues for a spec; `quorum` and `bands` are those of the connection."""
        wanted = spec.durability is not None and spec.durability >= Durability.MACHINE
        quorum = (quorum or wanted) and spec.role != "temporary"
        return cls(
            replace(spec, durability=None), quorum, bands if quorum and spec.role == "work" else 1
        )

    @property
    def name(self) -> str:
        """Return the queue's name, which plain clients use too."""
        return self.spec.name

    @cached_property
    def due(self) -> str | None:
        """Return the private queue of a bounded queue, for messages that may not be refused."""
        return f"{self.name}.due" if self.spec.max_length is not None else None

    @cached_property
    def queues(self) -> tuple[str, ...]:
        """Return all queues of the broker that make it, the one with its name first."""
        return tuple(dict.fromkeys((self.name, *self.descending)))

    @cached_property
    def descending(self) -> tuple[str, ...]:
        """Return the same, the highest priority first; the private queue is last."""
        bands = dict.fromkeys(self.band(level) for level in reversed(range(LEVELS)))
        return (*bands, self.due) if self.due is not None else tuple(bands)

    def band(self, level: int) -> str:
        """Return the queue for messages of this priority."""
        if self.bands == 1:
            return self.name
        level = level if self.bands == LEVELS else _THREE[level]
        return self.name if level == _DEFAULT else f"{self.name}.p{level}"

    def target(self, level: int, *, refusable: bool) -> str:
        """Return the queue that stores a message of this priority.

        A refusable message counts against the bound.
        """
        return self.band(level) if refusable or self.due is None else self.due

    def arguments(self, queue: str, server: Server) -> dict[str, Any]:
        """Return the arguments of one of `queues`. Plain clients must declare the same ones."""
        spec = self.spec
        arguments: dict[str, Any] = {"x-queue-type": "quorum" if self.quorum else "classic"}
        arguments |= (
            {"x-delivery-limit": NO_LIMIT} if self.quorum else {"x-max-priority": LEVELS - 1}
        )
        if spec.max_length is not None and queue != self.due:
            arguments |= {"x-max-length": spec.max_length, "x-overflow": "reject-publish"}
        if spec.retention is not None:
            arguments["x-message-ttl"] = max(1, int(spec.retention * 1000))
        if server.number >= (3, 12) and spec.role != "temporary":
            arguments["x-consumer-timeout"] = CONSUMER_TIMEOUT * 1000
        return arguments

    def record(self) -> dict[str, Any]:
        """Return the layout as the registry stores it."""
        values = {name: getattr(self.spec, name) for name in _SETTINGS}
        record = _Record.model_validate({**values, "quorum": self.quorum, "bands": self.bands})
        return record.model_dump(by_alias=True, exclude_none=True)

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Layout":
        """Read what `record` returned. Raises `ValueError` for anything else."""
        checked = _Record.model_validate(record)
        spec = QueueSpec(**checked.model_dump(include=set(_SETTINGS)))
        return cls(spec, checked.quorum, checked.bands)


class _Record(BaseModel):
    """The layout of a queue as JSON. Any client may write to the registry, so all is validated."""

    model_config = ConfigDict(strict=True, populate_by_name=True)

    name: str = Field(alias="q", min_length=1)
    role: Literal["work", "dead_letter", "quarantine", "temporary"]
    ttl: float | None = Field(None, gt=0, lt=1e10)
    max_length: int | None = Field(None, alias="max", ge=0, lt=1 << 63)
    overflow: Literal["reject", "dead_letter"] = Field("reject", alias="over")
    dead_letter: str | None = Field(None, alias="dead", min_length=1)
    retention: float | None = Field(None, alias="keep", gt=0, lt=1e10)
    quorum: bool = False
    bands: Literal[1, 3, 11] = 1


PARKED = Layout(QueueSpec(name=LOST, role="dead_letter"), quorum=True)
_SETTINGS = tuple(name for name in _Record.model_fields if name not in ("quorum", "bands"))
ALTERABLE = ("ttl",)
"""Settings that mqcore itself applies. RabbitMQ cannot change the arguments of a queue."""


def compare(have: Layout, want: Layout) -> None:
    """Raise `TopologyMismatch` if the settings differ. A more durable queue is accepted."""
    check_spec(have.spec, want.spec, alterable=ALTERABLE)
    if want.quorum and not have.quorum:
        raise TopologyMismatch(
            f"queue {have.name!r} exists as a classic queue (durability 'process'), but was "
            "declared with durability 'machine', which needs a quorum queue: empty and delete it "
            "first"
        )
