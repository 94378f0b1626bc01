"""The seam: what a backend implements, and all that it may import.

A driver moves bytes. It never retries, never sleeps and tries again, never wraps an error and never
decides what becomes of a message; it answers with an outcome for each item of a batch, and
*classifies* its exceptions when core asks. One instance serves one event loop; core may open
several (a second one renews leases from a thread). A minimal driver is `Backend` with its 6 methods
and `Subscription` with its 3; what only some brokers can do is a `Supports…` protocol beside it,
found by `isinstance`.

One message through the seam: `publish([Outgoing])` stores it and answers `Stored`;
`subscribe(queue)` gives a Subscription whose `receive` hands it out as a `Delivery`;
`settle([Ack])` lets it go. Core does the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, TypedDict, runtime_checkable

import pluggy
from pydantic import BaseModel, ConfigDict

from mqcore.clock import Clock, SystemClock
from mqcore.errors import (
    ConfigurationError,
    ConnectionLost,
    DurabilityUnavailable,
    QueueNotFound,
    TopologyMismatch,
)
from mqcore.messages.delivery import Ack, Delivery, Move, Outgoing, Release, Route, Settlement
from mqcore.messages.message import Death, Message, Reason, new_id, pack, unpack
from mqcore.rules.capabilities import Capabilities, Capability, Durability, Level, Support
from mqcore.rules.routing import Binding

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "DONE",
    "STALE",
    "STORED",
    "Ack",
    "Alterations",
    "Backend",
    "Binding",
    "Capabilities",
    "Capability",
    "Clock",
    "ConfigurationError",
    "ConnectionLost",
    "Death",
    "Delivery",
    "Done",
    "Durability",
    "DurabilityUnavailable",
    "Entry",
    "ErrorKind",
    "Failed",
    "Level",
    "Message",
    "Move",
    "Options",
    "Outcome",
    "Outgoing",
    "QueueCounts",
    "QueueNotFound",
    "QueueSpec",
    "Reason",
    "Release",
    "Route",
    "Settled",
    "Settlement",
    "Stale",
    "Stored",
    "Subscription",
    "Support",
    "SupportsAlter",
    "SupportsBind",
    "SupportsBrowse",
    "SupportsCount",
    "SupportsDelete",
    "SupportsDiagnose",
    "SupportsPause",
    "SupportsProof",
    "SupportsPurge",
    "SupportsRenew",
    "SupportsStart",
    "SupportsSweep",
    "SupportsTake",
    "SupportsUnwrap",
    "SystemClock",
    "TopologyMismatch",
    "Unknown",
    "hookimpl",
    "mismatch",
    "new_id",
    "pack",
    "unpack",
]

hookimpl = pluggy.HookimplMarker("mqcore")
"""Marks the function by which a plugin registers: `@hookimpl def mqcore_register_backends() -> list[type[Backend]]`.
"""


class ErrorKind(Enum):
    """What core must know of a driver's exception."""

    TRANSIENT = "transient"
    """It may work later, on this connection or the next; nothing of the call was done."""
    PERMANENT = "permanent"
    """The same call will fail again."""
    NOT_FOUND = "not_found"
    """The queue or router does not exist."""
    TOO_LARGE = "too_large"
    FULL = "full"
    DENIED = "denied"
    """Credentials or rights: told at once at the first connect, and asked for again but seldom when it comes later.
    """


@dataclass(frozen=True, slots=True)
class Stored:
    """Confirmed.

    `duplicate`: this `Message.copy_name` was there already, and still one copy is stored (DEDUP).
    """

    duplicate: bool = False


@dataclass(frozen=True, slots=True)
class Done:
    """The settlement took effect (where a broker does not answer acknowledgements: it was written, in order: `SupportsProof`)."""


@dataclass(frozen=True, slots=True)
class Stale:
    """The receipt is no longer ours: the lease ran out, or the channel is gone.

    Nothing was changed; a Move's successor may have been stored where the backend has no
    ATOMIC_MOVE.
    """


@dataclass(frozen=True, slots=True)
class Failed:
    """Certainly not done. A failed Move leaves its source leased (G3)."""

    kind: ErrorKind
    text: str = ""
    cause: Exception | None = None


@dataclass(frozen=True, slots=True)
class Unknown:
    """Sent, and no answer: it may have been done, or may be done later."""

    text: str = ""
    cause: Exception | None = None


STORED, DONE, STALE = Stored(), Done(), Stale()
Outcome = Stored | Failed | Unknown
Settled = Done | Stale | Failed | Unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSpec:
    """One queue as the broker must hold it.

    Two specs of one name that differ are a `TopologyMismatch`.

    `role`: a `work` queue comes with a `dead_letter` and a `quarantine` queue of its own, each as a
    spec of the same batch; the quarantine of `jobs` is called `jobs.again`. A `temporary` one has
    neither and goes with its owner (the instance that declared it) or, when that dies, after being
    idle for as long as the driver thinks fit. `ttl` (seconds) bounds the life of messages
    *published* to it (hop 0), the shorter of the two wins; a Move brings its own expiry.
    `retention` (seconds) is how long a dead-letter queue keeps a message. `durability` is what the
    application asked for.

    `max_length` counts ready messages: none that is leased or delayed. It bounds publishes (hop 0)
    that are not delayed. A Move, a release and a message that falls due may exceed it, push nobody
    out, and close the queue for publishes. With `overflow="reject"` a publish to a full queue is
    `Failed(FULL)` with the queue's name in the text. With `overflow="dead_letter"` it is `Stored`,
    and the oldest message of the lowest priority goes, which may be the new one. That one is stored
    in the `dead_letter` queue, even if this is full, as `message.moved(queue, attempt=1,
    expires_at=None, failed_at=None, death=Death(reason=Reason.OVERFLOW, queue=queue,
    attempts=message.attempt - 1, …))`. Without a dead-letter queue it is dropped.
    """

    name: str
    role: Literal["work", "dead_letter", "quarantine", "temporary"] = "work"
    ttl: float | None = None
    max_length: int | None = None
    overflow: Literal["reject", "dead_letter"] = "reject"
    dead_letter: str | None = None
    retention: float | None = None
    durability: Durability | None = None


class Alterations(TypedDict, total=False):
    """Settings of a queue that `SupportsAlter.alter` changes, as in `QueueSpec`; one that is left out stays as it is."""

    ttl: float | None
    max_length: int | None
    overflow: Literal["reject", "dead_letter"]
    retention: float | None


def mismatch(
    queue: str, setting: str, have: object, want: object, *, alterable: bool
) -> TopologyMismatch:
    """Return the error for a queue that exists with another setting than the one declared; the driver raises it.

    `alterable`: the driver's `SupportsAlter.alter` can change this setting of a queue that exists.
    """
    option = (
        f"--{setting.replace('_', '-')} "
        f"{'none' if want is None else f'{want:.15g}' if isinstance(want, float) else want}"
    )
    if alterable:
        cure = (
            f'Change the queue, with what it holds: "mqcore queues alter {queue} {option}" or '
            "broker.alter(...)"
        )
    else:
        cure = (
            f"The broker fixes {setting} when a queue is made: redrive or consume what the "
            "queue holds, "
            f'and delete it with "mqcore queues delete {queue}"'
        )
    return TopologyMismatch(
        f"queue {queue!r} exists with {setting}={have!r}, but the code declares "
        f"{setting}={want!r}. {cure}. "
        f"Or declare {setting}={have!r} in the code, or take the queue as it is with declare=False"
    )


class Options(BaseModel):
    """Base of a backend's typed options: filled from the URL's query and the settings; an unknown one is an error at start.

    A driver may declare a field `clock: Clock`: core fills it with the clock that the Broker was
    given. It may declare a field `durability`: where the options do not say it, core fills it with
    the word for what the application asks for (`machine`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Backend(ABC):
    """One broker, as one event loop sees it.

    Concurrency: every method runs on the loop that called `open`. `publish` calls may overlap each
    other and everything else. Core calls `open`, then `declare`; after a loss `close`, `open`,
    `declare`, `subscribe` again, on the same instance.
    """

    scheme: ClassVar[str | tuple[str, ...]]
    """The URL scheme or schemes that this class serves; each is also the name of an entry point in the group `mqcore`.
    """
    Options: ClassVar[type[BaseModel]] = Options
    local: ClassVar[bool] = False
    """Whether the broker lives in this very process, out of reach of others."""
    reply_queues: ClassVar[tuple[str, ...]] = ()
    """How the names begin that the broker itself gives to a client's own queues, which no other client can choose.

    A reply goes to such a queue, or to one of mqcore's own reply queues, and to no other:
    `reply_to` is anybody's word, and a worker may write to queues that the sender may not.
    """

    def __init__(self, url: str, options: BaseModel) -> None:
        """Keep what is needed to connect.

        Must not do I/O. `url` is the whole URL, secrets included: must never be logged.
        """
        self.url = url
        self.options = options

    @abstractmethod
    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        """Connect, look at the live server, and say what it can do.

        Must raise the driver's own exception when it fails, and leave nothing open then. Must call
        `lost` once, on the loop, when the connection breaks later, also when idle (a silent peer is
        noticed within 15 s, G14); must not after `close`. May be called again after `close`: each
        time is a new generation, and receipts of an older one must be answered `Stale` unless LEASE
        is declared.
        """

    @abstractmethod
    async def close(self) -> None:
        """Let go of everything.

        Must end within 2 s, in any state, called twice too; must never raise.

        Core cancels it sooner where a process has to end: then it must cut its connections at once.

        What a Subscription still holds comes back to its queue as taken over, as after a crash: at
        once, or where the process might as well have died, when its lease ends. Any other call on a
        closed instance must raise, saying in its text that it is closed, classified TRANSIENT.
        """

    @abstractmethod
    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Make sure that the queues exist. Idempotent.

        Raises `TopologyMismatch` itself when one exists with other settings (`mismatch` makes it),
        naming the queue, the setting, both values and what to do, and `DurabilityUnavailable` when
        a spec asks for more than there is (`Capabilities.require_durability`).
        """

    @abstractmethod
    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        """Store a batch; an outcome for each item, in its order (G1).

        `Stored` only when the broker has confirmed it at the durability in force. Must return by
        `timeout` seconds, with `Unknown` for what has no answer by then. May raise only when
        nothing was sent: once a byte may have been written, what goes wrong is an `Unknown`, never
        an exception and never a `Failed`. Core takes an exception that `classify` does not know
        (PERMANENT, and none of core's own errors) for `Unknown` as well.

        A queue that does not exist is `Failed(NOT_FOUND)` with its name in the text, for that item
        alone; so is a `Route` `Failed(PERMANENT)` where ROUTING is not native, and a delay above
        the limit `max` of DELAY. Order inside one batch and queue must be kept. Must copy what it
        keeps. An empty batch is answered `[]`. May be cancelled at any moment: a message is then
        stored once or not at all, and the instance goes on.

        With DEDUP a known name is `Stored(duplicate=True)`, also when the queue is full: a
        duplicate wins over FULL. It stores and counts nothing. A name that was refused is not
        known. Names belong to a queue, and go with it.

        A payload of 1 MiB is stored together with 64 headers, or with 16 KiB of headers: where the
        broker bounds a whole message, its bound leaves room for both and for what `pack` adds.
        """

    @abstractmethod
    async def subscribe(self, queue: str, *, prefetch: int, lease: float) -> Subscription:
        """Start to consume. Must raise when the queue does not exist (classified NOT_FOUND).

        `prefetch` is the most messages that may be out unsettled. `lease` in seconds is how long a
        claim holds without renewal; ignored where the connection itself is the lease.
        """

    @abstractmethod
    def classify(self, error: Exception) -> ErrorKind:
        """Say what kind an exception of this driver is. Pure; must accept any exception."""


class Subscription(ABC):
    """One consumer of one queue.

    `receive` is never called twice at once; `settle` may be called while `receive` waits.
    """

    @abstractmethod
    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        """Hand out 1 to `limit` messages as soon as there is one; `[]` when none came within `timeout` seconds.

        A receipt is at most 64 bytes.

        Highest priority first, inside a level first in first out (G8). Expired messages must be
        handed out too, with `expires_in <= 0`: core dead-letters them (G6). While `prefetch` of
        them are unsettled it waits until one is settled (G12). Raises after a loss, also then;
        raises NOT_FOUND when the queue was deleted, and says "closed" after `close`.

        When it is cancelled, or its time ends, while a claim is under way, that claim must not be
        lost: its messages come with the next call, or go back unmarked, by `close` at the latest.
        They keep the marks with which they came. A wake-up that found nobody goes to the next
        consumer who waits. With `timeout` 0, a backend that claims asks once, and hands out what is
        there. The headers of what is handed out must be read-only, as `unpack` makes them.
        """

    @abstractmethod
    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        """Settle a batch; an outcome for each item, in its order. Must return by `timeout` seconds.

        A Move must not let go of its source before its successor is stored; if that fails, the
        answer is the publish's `Failed` or `Unknown` and the source stays leased (G3). So it does
        when the successor's answer does not come: `Unknown`, and no ack. A Move is never refused
        for `max_length`. A Release must leave `takeovers` as they were, and sets `redelivered`
        (G4). A receipt that is not ours any more, or never was, is `Stale` and must change nothing
        (G5); with ATOMIC_MOVE a stale Move stores nothing.

        `settle([])` is `[]`. One bad item does not spoil the others. A batch is settled in its
        order: of two items with one receipt the first counts, and the second is `Stale`.
        """

    @abstractmethod
    async def close(self) -> None:
        """Stop. Must end a waiting `receive` with `[]`.

        Core has settled what it held. What is left has no answer, or nobody has settled it: it
        comes back as taken over. A settlement may be under way. Its message must not be lost, and
        where ATOMIC_MOVE is declared it must not be stored twice (G3).
        """


@runtime_checkable
class SupportsProof(Protocol):
    """A Subscription whose broker does not answer acknowledgements: there `Done` means "written".

    Where a Subscription has it not, `Done` must mean that the settlement took effect.
    """

    async def prove(self, *, timeout: float) -> bool:
        """Say whether the broker has taken what was answered `Done` before this call.

        False when that is not known by `timeout` seconds, or when the connection was lost: then a
        message may come again. Core asks it once for all acknowledgements of the same moment, and
        starts no handler with `ack_first` before it has the answer (G2).
        """


@runtime_checkable
class SupportsPause(Protocol):
    """A Subscription to which the broker sends messages before they are asked for.

    Needed wherever a message can reach the driver while no `receive` waits. Who drains holds claims
    for as long as its handlers run, and must not keep messages from other consumers meanwhile
    (G13).
    """

    async def pause(self) -> None:
        """Stop at the broker, for good: it sends nothing more to this Subscription.

        Called once, when core's `receive` has ended; no other follows. What has come and was not
        handed out goes back at once with the same `takeovers`, as by a Release. Where a Release
        does not keep a message's place, that is in the order in which it came, and after what this
        Subscription was asked to release before (G9). What was handed out stays leased: `settle`
        works as before, until `close`. Core cancels a call that takes too long.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCounts:
    """How many messages a queue holds; a quarantine's count in its base queue's `ready` and `leased`.

    `published` and `settled` only grow (None where the broker does not count), so that two looks
    give a rate. `spec` is what the queue was declared with, but for its durability; None where
    mqcore did not declare it, or the driver cannot tell.
    """

    name: str
    role: Literal["work", "dead_letter", "quarantine", "temporary"] = "work"
    ready: int = 0
    leased: int = 0
    delayed: int = 0
    published: int | None = None
    settled: int | None = None
    dead_letter: str | None = None
    spec: QueueSpec | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """One message as `browse` shows it.

    `key` names it for `take` and for the next page; `due_in` in seconds, 0 when ready.
    """

    key: str
    message: Message
    state: Literal["ready", "delayed", "leased"] = "ready"
    due_in: float = 0.0


@runtime_checkable
class SupportsRenew(Protocol):
    """LEASE: claims that end by themselves."""

    async def renew(self, queue: str, receipts: Sequence[bytes], lease: float) -> Sequence[bool]:
        """Extend claims to `lease` seconds from now; False for one that is lost.

        Any open instance may renew for another.

        What was settled, and a queue that is missing, is False too: a renewal brings nothing back.
        """


@runtime_checkable
class SupportsStart(Protocol):
    """Noting in the broker's own record that a handler starts, so that a claim which ends before that is no crash (G4)."""

    async def note_start(self, queue: str, receipts: Sequence[bytes]) -> Sequence[bool]:
        """Note that the handlers of these claims start now; False for one that is lost.

        The note belongs to the claim. When its owner is lost, the next `Delivery` of the copy says
        `started`. A Release drops it. Core asks for suspects alone, one at a time, before it runs
        them. Any open instance may note for another.
        """


@runtime_checkable
class SupportsCount(Protocol):
    """Counting without consuming."""

    async def count(self, queues: Sequence[str] | None = None) -> Sequence[QueueCounts]:
        """Counts of the named queues, or of all but quarantines and temporary ones.

        A missing queue is left out.
        """


@runtime_checkable
class SupportsBrowse(Protocol):
    """BROWSE: looking without touching."""

    async def browse(self, queue: str, limit: int, after: str | None = None) -> Sequence[Entry]:
        """Up to `limit` messages in the order of delivery, then delayed ones by due time; `after` is the last page's last key.

        Must change neither order, nor counts, nor leases.
        """


@runtime_checkable
class SupportsTake(Protocol):
    """Leasing chosen messages, for a redrive of one or of some."""

    async def take(self, queue: str, keys: Sequence[str], lease: float) -> Sequence[Delivery]:
        """Lease those of the named entries that are ready or delayed; settled through any Subscription of the queue.

        What is gone or held is left out. A delayed entry that is released goes back to the rest of
        its delay. Raises, as NOT_FOUND, when the queue is missing; so do `browse` and `purge`.
        """


@runtime_checkable
class SupportsPurge(Protocol):
    """Emptying a queue at once."""

    async def purge(self, queue: str) -> int:
        """Remove all ready messages of the queue and its quarantine, and delayed ones where BROWSE can show them.

        Returns the number removed. Leased ones stay.
        """


@runtime_checkable
class SupportsDelete(Protocol):
    """Removing a queue."""

    async def delete(self, queue: str, *, if_empty: bool = False, if_unused: bool = False) -> bool:
        """Remove the queue, its quarantine `<queue>.again` and the bindings to it; its consumers' `receive` raises NOT_FOUND.

        True when it went; False when it holds messages, leased and quarantined ones too
        (`if_empty`), or has consumers that the broker knows of (`if_unused`). Raises, as NOT_FOUND,
        when it is missing.

        A `receive` that waits hears of it within seconds, though another instance deletes the queue
        and though its prefetch is out; later settlements are `Stale`. The connection is not lost
        for it. Its dead-letter queue stays. A queue that is declared again under the name is empty:
        no message, no claim and no known name of the old one shows through.
        """


@runtime_checkable
class SupportsAlter(Protocol):
    """Changing the settings of a queue that exists, with what it holds."""

    async def alter(self, queue: str, settings: Alterations) -> None:
        """Give a queue other settings from now on; those that are left out stay.

        Nothing that the queue holds is lost or reordered by it: a stored message keeps its expiry,
        and what is beyond a new `max_length` stays until a publish meets the bound. A new
        `retention` counts from when a dead letter was stored, so older ones go. Every instance that
        opens later goes by the new settings, and one that is open no later than its next `open`.

        Raises, as NOT_FOUND, when the queue is missing, and `mismatch(..., alterable=False)` for a
        setting that this broker fixes when a queue is made; nothing is changed then.
        """


@runtime_checkable
class SupportsBind(Protocol):
    """Bindings that live with the broker, so that every process sees the same ones (G15).

    Whether the broker itself routes by them (ROUTING native: `publish` takes a `Route`) or only
    keeps them for core to match (emulated) is what the level of ROUTING says.
    """

    async def bind(self, bindings: Sequence[Binding]) -> None:
        """Add bindings; idempotent.

        Raises `TopologyMismatch` when the router exists with another kind.
        """

    async def unbind(self, bindings: Sequence[Binding]) -> None:
        """Remove bindings; one that is not there is no error."""

    async def bindings(self, router: str | None = None) -> Sequence[Binding]:
        """The bindings of one router, or all.

        Core asks at each routed publish: a driver must answer from memory when it can.
        """


@runtime_checkable
class SupportsUnwrap(Protocol):
    """The broker's own client, for what mqcore has no word for (`Broker.unwrap`)."""

    def unwrap(self) -> Sequence[object]:
        """Return the client library's objects that an application may use: a connection, a client.

        Must return nothing else: no text, no options, no part of the driver. Must not do I/O. The
        objects belong to the instance's event loop and end with `close`; what an application does
        with them must not disturb the driver, so a client with connections of its own is best. Must
        raise when it is not open.
        """


@runtime_checkable
class SupportsSweep(Protocol):
    """Finding expired messages that nobody has come to."""

    async def sweep(self, queue: str, limit: int, lease: float) -> Sequence[Delivery]:
        """Lease up to `limit` expired messages, wherever they stand in the queue; core dead-letters them (G6)."""


@runtime_checkable
class SupportsDiagnose(Protocol):
    """Problems that only the driver can see, for `mqcore doctor`."""

    async def diagnose(self) -> Sequence[str]:
        """Say what is wrong with what the driver itself keeps at the broker: a sentence for each, with what to do.

        Must change nothing.
        """
