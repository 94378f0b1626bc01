"""What only some brokers can do: a protocol for each, found by `isinstance`.

A Backend or a Subscription that has the methods of a protocol supports it. Nothing is registered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, TypedDict, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.messages.delivery import Delivery
    from mqcore.messages.message import Message
    from mqcore.rules.routing import Binding
    from mqcore.spi.backend import QueueSpec, Role

__all__ = [
    "Alterations",
    "Entry",
    "QueueCounts",
    "SupportsAlter",
    "SupportsBind",
    "SupportsBrowse",
    "SupportsCount",
    "SupportsDelete",
    "SupportsDiagnose",
    "SupportsExists",
    "SupportsPause",
    "SupportsProof",
    "SupportsPurge",
    "SupportsRenew",
    "SupportsResize",
    "SupportsStart",
    "SupportsSweep",
    "SupportsTake",
    "SupportsUnwrap",
]


class Alterations(TypedDict, total=False):
    """Settings of a queue that `SupportsAlter.alter` changes, as in `QueueSpec`.

    A setting that is left out stays as it is.
    """

    ttl: float | None
    max_length: int | None
    overflow: Literal["reject", "dead_letter"]
    retention: float | None


@runtime_checkable
class SupportsProof(Protocol):
    """A Subscription whose broker does not answer acknowledgements: there `Done` means "written".

    Without this protocol, `Done` must mean that the settlement took effect.
    """

    async def prove(self, *, timeout: float) -> bool:
        """Return whether the broker has taken what was answered `Done` before this call.

        False when that is not known by `timeout` seconds, or when the connection was lost: then a
        message may come again. Core calls it once for all acknowledgements of the same moment, and
        starts a handler with `ack_first` only after the answer (G2).
        """


@runtime_checkable
class SupportsPause(Protocol):
    """A Subscription to which the broker sends messages before they are asked for.

    Needed wherever a message can reach the driver while no `receive` waits. A consumer that drains
    holds claims as long as its handlers run, and must not hold back other messages meanwhile (G13).
    """

    async def pause(self) -> None:
        """Make the broker stop sending to this Subscription, permanently.

        Called once, when core's last `receive` has ended. Messages that have arrived and were not
        handed out must return to the queue at once with the same `takeovers`, as by a Release.
        Where a Release does not keep a message's place, they return in the order in which they
        came, after what this Subscription was asked to release before (G9). What was handed out
        stays leased: `settle` works as before, until `close`. Core cancels a call that takes too
        long.
        """


@runtime_checkable
class SupportsResize(Protocol):
    """A Subscription whose prefetch can change. Without it, core subscribes again instead."""

    async def resize(self, prefetch: int) -> bool:
        """From now on hold at most so many unsettled messages; what is held stays, and counts.

        A `receive` that waits goes by the new number: one that was full returns a message when the
        prefetch has grown. A claim that is under way may still bring what it asked for. Returns
        False when this Subscription cannot do that: then it has changed nothing, and core
        subscribes again.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCounts:
    """How many messages a queue holds, those in its quarantine included.

    A count that the broker does not report is None, never 0. `published` and `settled` only grow,
    so that two counts give a rate. `spec` is what the queue was declared with, except for its
    durability; None where mqcore did not declare it or the driver does not know.
    """

    name: str
    role: Role = "work"
    ready: int = 0
    leased: int | None = None
    delayed: int | None = None
    published: int | None = None
    settled: int | None = None
    dead_letter: str | None = None
    spec: QueueSpec | None = None

    @property
    def total(self) -> int:
        """The number of messages in the queue, as far as the broker reports it."""
        return self.ready + (self.leased or 0) + (self.delayed or 0)


@dataclass(frozen=True, slots=True)
class Entry:
    """One message as `browse` shows it.

    `key` names it for `take` and for the next page. `due_in` in seconds is 0 when it is ready.
    """

    key: str
    message: Message
    state: Literal["ready", "delayed", "leased"] = "ready"
    due_in: float = 0.0


@runtime_checkable
class SupportsRenew(Protocol):
    """LEASE: claims that end by themselves."""

    async def renew(self, queue: str, receipts: Sequence[bytes], lease: float) -> Sequence[bool]:
        """Extend claims to `lease` seconds from now; return False for each one that is lost.

        Any open instance may renew for another. A claim that was settled is lost, and so is every
        claim on a missing queue: a renewal brings nothing back.
        """


@runtime_checkable
class SupportsStart(Protocol):
    """Noting at the broker that a handler starts.

    A claim that ends before that is not counted as a crash (G4).
    """

    async def note_start(self, queue: str, receipts: Sequence[bytes]) -> Sequence[bool]:
        """Note that the handlers of these claims start now; return False for each one that is lost.

        The note belongs to the claim. When its owner is lost, the next `Delivery` of the copy has
        `started` set. A Release drops the note. Core calls it for suspects only, one at a time,
        before it runs them. Any open instance may note for another.
        """


@runtime_checkable
class SupportsCount(Protocol):
    """Counting without consuming."""

    async def count(self, queues: Sequence[str] | None = None) -> Sequence[QueueCounts]:
        """Return the counts of the named queues, or of all but quarantines and temporary ones.

        A missing queue is left out.
        """


@runtime_checkable
class SupportsBrowse(Protocol):
    """BROWSE: showing messages without touching them."""

    async def browse(self, queue: str, limit: int, after: str | None = None) -> Sequence[Entry]:
        """Return up to `limit` messages in the order of delivery, then delayed ones by due time.

        `after` is the last key of the page before. Must change neither order, nor counts, nor
        leases. Raises, as NOT_FOUND, when the queue is missing.
        """


@runtime_checkable
class SupportsTake(Protocol):
    """Leasing chosen messages, for a redrive of one or of some."""

    async def take(self, queue: str, keys: Sequence[str], lease: float) -> Sequence[Delivery]:
        """Lease those of the named entries that are ready or delayed.

        They are settled through any Subscription of the queue. Entries that are gone or leased are
        left out. A delayed entry that is released waits for the rest of its delay. Raises, as
        NOT_FOUND, when the queue is missing.
        """


@runtime_checkable
class SupportsPurge(Protocol):
    """Emptying a queue at once."""

    async def purge(self, queue: str) -> int:
        """Remove all ready messages of the queue and its quarantine; return how many.

        Delayed ones are removed too where BROWSE can show them. Leased ones stay. Raises, as
        NOT_FOUND, when the queue is missing.
        """


@runtime_checkable
class SupportsDelete(Protocol):
    """Removing a queue."""

    async def delete(self, queue: str, *, if_empty: bool = False) -> bool:
        """Remove the queue, its quarantine `<queue>.quarantine` and the bindings to it.

        Returns True when the queue was removed. With `if_empty`, returns False when the queue or
        its quarantine holds messages, leased ones included. Raises, as NOT_FOUND, when the queue
        is missing. A `receive` of its consumers raises NOT_FOUND.

        A waiting `receive` raises within seconds, also when another instance deletes the queue and
        when its prefetch is used up. Later settlements are `Stale`. The connection is not lost. The
        dead-letter queue stays. A queue that is declared again under the name is empty: it has no
        message, no claim and no known name of the old one.
        """


@runtime_checkable
class SupportsAlter(Protocol):
    """Changing the settings of a queue that exists, with what it holds."""

    async def alter(self, queue: str, settings: Alterations) -> None:
        """Change settings of a queue; those that are left out stay.

        Nothing that the queue holds is lost or reordered: a stored message keeps its expiry, and
        messages beyond a new `max_length` stay until a publish meets the bound. A new `retention`
        counts from when a dead letter was stored, so older ones are removed. Every instance that
        opens later uses the new settings, and an open one uses them after its next `open`.

        Raises, as NOT_FOUND, when the queue is missing, and `not_alterable(...)` for a setting that
        this broker fixes when a queue is made; nothing is changed then.
        """


@runtime_checkable
class SupportsBind(Protocol):
    """Bindings that live with the broker, so that every process sees the same ones (G15).

    The level of ROUTING says who routes by them: the broker itself (native: `publish` takes a
    `Route`), or core, for which the broker only stores them (emulated).
    """

    async def bind(self, bindings: Sequence[Binding]) -> None:
        """Add bindings; idempotent.

        Raises `TopologyMismatch` when the router exists with another kind.
        """

    async def unbind(self, bindings: Sequence[Binding]) -> None:
        """Remove bindings. A binding that does not exist is ignored."""

    async def bindings(self, router: str | None = None) -> Sequence[Binding]:
        """Return the bindings of one router, or all; those to temporary queues of others too.

        Core calls it at each routed publish: a driver must answer from memory when it can.
        """


@runtime_checkable
class SupportsUnwrap(Protocol):
    """Access to the broker's own client, for what mqcore does not offer (`Broker.unwrap`)."""

    def unwrap(self) -> Sequence[object]:
        """Return the client library's objects that an application may use: a connection, a client.

        Must return nothing else: no text, no options, no part of the driver. Must not do I/O. The
        objects belong to the instance's event loop and end with `close`. What an application does
        with them must not disturb the driver, so a client with connections of its own is best. Must
        raise when the instance is not open.
        """


@runtime_checkable
class SupportsSweep(Protocol):
    """Finding expired messages under a backlog."""

    async def sweep(self, queue: str, limit: int, lease: float) -> Sequence[Delivery]:
        """Lease up to `limit` expired messages, at any place in the queue.

        Core dead-letters them (G6).
        """


@runtime_checkable
class SupportsDiagnose(Protocol):
    """Problems that only the driver can see, for `mqcore doctor`."""

    async def diagnose(self) -> Sequence[str]:
        """Return what is wrong with the driver's own data at the broker.

        One sentence for each problem, with what to do. Must change nothing.
        """


@runtime_checkable
class SupportsExists(Protocol):
    """For a backend that creates its storage when it connects, such as a file."""

    def exists(self) -> bool:
        """Return whether the storage is there, before `open`. Must not create it.

        Commands that only read ask this first.
        """
