"""What the transitions need from a store, inside one transaction."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.tasks.model.nodes import Node

__all__ = ["OutboxEntry", "Rows", "Schedule", "message_key", "slice_key"]


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """Something to do after the commit, which must not be forgotten.

    Without `start`: publish the message of a task to its queue, under the id `key`. With it: apply
    `Spread(node, start)`.
    """

    key: str
    node: str
    run: int = 0
    start: int | None = None
    written: float = 0.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a task is sent next. `definition` is for the scheduler; a store does not read it."""

    name: str
    version: int
    next_at: float | None
    definition: bytes = b""


class Rows(Protocol):
    """The rows of a store in one open transaction.

    `get` and `children` return the same object for the same row throughout the transaction. A
    change to it counts once it is given to `save`, which may be called several times for one row.
    """

    now: float
    """The time of the transaction, in seconds since the epoch. All processes agree on it."""

    def get(self, node: str) -> Node | None:
        """Return a row."""

    def children(self, parent: str, start: int, stop: int) -> Sequence[Node]:
        """Return the existing rows with `start <= index < stop` below a node, by index."""

    def add(self, node: Node) -> None:
        """Insert a copy of the row."""

    def save(self, node: Node) -> None:
        """Write a row that was changed."""

    def put_entry(self, entry: OutboxEntry) -> None:
        """Write an outbox entry, replacing one with the same key."""

    def entry(self, key: str) -> OutboxEntry | None:
        """Return an outbox entry."""

    def remove_entry(self, key: str) -> None:
        """Remove an outbox entry, if it exists."""

    def holder(self, unique: str) -> str | None:
        """Return the task that has claimed a unique key."""

    def claim(self, unique: str, node: str) -> None:
        """Claim a unique key that has no holder."""

    def unclaim(self, unique: str, node: str) -> None:
        """Give a unique key back, if this node holds it."""

    def limit(self, key: str) -> bytes | None:
        """Return what is stored of a rate or of slots; no other transaction changes it."""

    def put_limit(self, key: str, value: bytes | None, until: float = math.inf) -> None:
        """Write what is stored of a rate or of slots. After `until` it may be removed."""

    def first_waiter(self, key: str) -> tuple[str, float] | None:
        """Return the first in the line for the slots of a key, and since when it waits.

        Of those that wait since the same time it is the one whose id comes first.
        """

    def add_waiter(self, key: str, node: str, since: float) -> None:
        """Put a task into the line for the slots of a key."""

    def remove_waiter(self, key: str, node: str) -> None:
        """Take a task out of the line, if it is there."""

    def is_alive(self, worker: str) -> bool:
        """Whether the last heartbeat of a worker is recent."""

    def schedule(self, name: str) -> Schedule | None:
        """Return a schedule."""

    def put_schedule(self, schedule: Schedule) -> None:
        """Insert or replace a schedule."""


def message_key(node: Node) -> str:
    """Return the id of a task's message: of this run, and of this further copy if there is one.

    A further copy needs an id of its own. Under the id of the first one it would be taken for a
    duplicate within the dedup window (G1), and nothing would be stored.
    """
    key = f"{node.id}:{node.run}"
    return f"{key}:{node.copies}" if node.copies else key


def slice_key(group: str) -> str:
    """Return the key of the outbox entry that has the next slice of a group."""
    return f"{group}:members"
