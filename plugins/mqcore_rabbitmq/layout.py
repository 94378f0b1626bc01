"""Which queues of RabbitMQ make one queue of ours, and with which arguments. Pure.

    orders (classic)   ─► orders                 one durable classic queue that sorts by priority
    orders (quorum)    ─► orders, orders.p0 …    a quorum queue for each level of priority; the default level bears the name
    orders (bounded)   ─► orders, orders.due     and what may not be refused (a Move, what falls due) goes to the second

`.dlq`, `.again` and temporary queues are one queue each. A plain client finds `orders` under its
name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mqcore.spi import Durability, QueueSpec, TopologyMismatch, mismatch

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
"""The queue of what fell due after its own had gone; listed while it holds something."""
NO_LIMIT = 2_000_000_000
"""Deliveries after which a quorum queue takes a message away: never.

Without a limit it puts what is given back at its end.
"""
_DEFAULT = 5
_THREE = (0, 0, 0, 0, 5, 5, 5, 10, 10, 10, 10)
"""With three bands: the band of each of the eleven levels."""
CONSUMER_TIMEOUT = 12 * 3_600
"""Seconds that a delivery may stay unsettled, where a queue may say so itself (from 3.12)."""


@dataclass(frozen=True)
class Server:
    """What the live server is, and what it lets us do: `room` is the bytes that the properties of one message may have."""

    product: str
    version: str
    user: str = ""
    room: int = 131_052

    @cached_property
    def number(self) -> tuple[int, int]:
        """Major and minor version."""
        major, minor, *_ = *self.version.split("."), "0", "0"
        return int(major) if major.isdigit() else 0, int(minor) if minor.isdigit() else 0


@dataclass(frozen=True)
class Layout:
    """One queue of ours on this broker.

    `bands` is how many levels its quorum queues tell apart; 1: a single queue.
    """

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
        """The queue's name, also of the queue that foreign clients use."""
        return self.spec.name

    @cached_property
    def due(self) -> str | None:
        """The private queue of what may never be refused, where the queue is bounded."""
        return f"{self.name}.due" if self.spec.max_length is not None else None

    @cached_property
    def queues(self) -> tuple[str, ...]:
        """All queues of the broker that make it, its own name first."""
        return tuple(dict.fromkeys((self.name, *self.descending)))

    @cached_property
    def descending(self) -> tuple[str, ...]:
        """As `queues`, the highest priority first, and last what has all of them."""
        bands = dict.fromkeys(self.band(level) for level in reversed(range(LEVELS)))
        return (*bands, self.due) if self.due is not None else tuple(bands)

    def band(self, level: int) -> str:
        """The queue for messages of this priority."""
        if self.bands == 1:
            return self.name
        level = level if self.bands == LEVELS else _THREE[level]
        return self.name if level == _DEFAULT else f"{self.name}.p{level}"

    def target(self, level: int, *, refusable: bool) -> str:
        """The queue in which a message of this priority is stored; what may be refused counts against the bound."""
        return self.band(level) if refusable or self.due is None else self.due

    def arguments(self, queue: str, server: Server) -> dict[str, Any]:
        """The arguments with which one of `queues` is declared; plain clients declare passively, or with the same."""
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
        """The layout as the registry keeps it."""
        found = {short: getattr(self.spec, name) for short, name in _RECORD.items()}
        found |= {"quorum": self.quorum, "bands": self.bands}
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def read(cls, record: Mapping[str, Any]) -> "Layout":
        """Read what `record` wrote.

        Raises `KeyError`, `TypeError` or `ValueError` for what it never wrote.
        """
        fields = {
            name: record[short]
            for short, name in _RECORD.items()
            if short in record or short in _REQUIRED
        }
        quorum, bands = record.get("quorum", False), record.get("bands", 1)

        for name, value in fields.items():
            if not _IS_VALID[name](value):
                raise ValueError(f"{name}={value!r:.60}")
        if not isinstance(quorum, bool) or bands not in (1, len(set(_THREE)), LEVELS):
            raise ValueError(f"quorum={quorum!r:.60}, bands={bands!r:.60}")

        return cls(QueueSpec(**fields), quorum, bands)


PARKED = Layout(QueueSpec(name=LOST, role="dead_letter"), quorum=True)
_RECORD = {
    "q": "name",
    "role": "role",
    "ttl": "ttl",
    "max": "max_length",
    "over": "overflow",
    "dead": "dead_letter",
    "keep": "retention",
}
"""Settings by the names that they have in a record."""
_REQUIRED = {"q", "role"}


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value)


def _is_time(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < _LONGEST


_LONGEST = 1e10
_IS_VALID: Mapping[str, Callable[[object], bool]] = {
    "name": _is_text,
    "role": lambda value: value in ("work", "dead_letter", "quarantine", "temporary"),
    "ttl": _is_time,
    "max_length": lambda value: type(value) is int and 0 <= value < 1 << 63,
    "overflow": lambda value: value in ("reject", "dead_letter"),
    "dead_letter": _is_text,
    "retention": _is_time,
}
"""What a record may hold: anybody who may publish may write one."""

ALTERABLE = ("ttl",)
"""What the driver itself keeps: all other settings are arguments of the broker's queue, which are fixed when that is made.
"""


def compare(have: Layout, want: Layout) -> None:
    """Raise `TopologyMismatch` when a queue is declared with other settings than it has; a more durable one serves as well."""
    for setting in _RECORD.values():
        old, new = getattr(have.spec, setting), getattr(want.spec, setting)
        if old != new:
            raise mismatch(have.name, setting, old, new, alterable=setting in ALTERABLE)
    if want.quorum and not have.quorum:
        raise TopologyMismatch(
            f"queue {have.name!r} exists as a classic queue (durability 'process') and was "
            "declared with durability "
            "'machine', which takes a quorum queue: empty and delete it first"
        )
