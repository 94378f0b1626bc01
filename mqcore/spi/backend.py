"""The two classes that every driver implements: `Backend` and `Subscription`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import pluggy
from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mqcore.messages.delivery import Delivery, Outgoing, Settlement
    from mqcore.rules.capabilities import Capabilities, Durability
    from mqcore.spi.outcomes import ErrorKind, Outcome, Settled

__all__ = ["SPI_VERSION", "Backend", "Options", "QueueSpec", "Role", "Subscription", "hookimpl"]

SPI_VERSION = 1
"""The version of this interface. It changes when a driver must change with it.

A new optional protocol does not change it. A Backend states the version that it was written for as
`spi_version`, and core refuses a plugin of another version when it loads it.
"""

hookimpl = pluggy.HookimplMarker("mqcore")
"""Marks the function by which a plugin registers its backends.

    @hookimpl
    def mqcore_register_backends() -> list[type[Backend]]:
        return [AcmeBackend]
"""

Role = Literal["work", "dead_letter", "quarantine", "temporary", "relay"]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSpec:
    """One queue as the broker must hold it.

    Two specs of one name that differ are a `TopologyMismatch`.

    `role`: a `work` queue comes with a `dead_letter` and a `quarantine` queue of its own, each as a
    spec of the same batch. The quarantine of `jobs` is called `jobs.quarantine`. A `temporary`
    queue has neither. It is removed with its owner (the instance that declared it) or, when the
    owner dies, after a time without consumers that the driver chooses. A `relay` queue stores what
    goes to another broker, in order, and has no quarantine. A claim of it returns nothing while
    another claim of it holds, also of another process: so several relays never overtake each other.
    Core declares one only where LEASE has the limit `exclusive`. `ttl` (seconds) bounds the
    life of messages *published* to the queue (hop 0); the shorter of queue and message wins. A Move
    brings its own expiry. `retention` (seconds) is how long a dead-letter queue stores a message.
    `durability` is what the application asked for.

    `max_length` counts ready messages; leased and delayed ones do not count. It bounds publishes
    (hop 0) without delay. A Move, a release and a message that falls due may exceed it; they evict
    no other message, and publishes are refused until there is room. With `overflow="reject"` a
    publish to a full queue is `Failed(FULL)` with the queue's name in the text. With
    `overflow="dead_letter"` it is `Stored`, and the oldest message of the lowest priority is
    evicted, which may be the new one. The evicted message is stored in the `dead_letter` queue,
    even if that is full, as `toolbox.overflowed` returns it. Without a dead-letter queue it is
    dropped.
    """

    name: str
    role: Role = "work"
    ttl: float | None = None
    max_length: int | None = None
    overflow: Literal["reject", "dead_letter"] = "reject"
    dead_letter: str | None = None
    retention: float | None = None
    durability: Durability | None = None


class Options(BaseModel):
    """Base of a backend's typed options, which come from the URL's query and the settings.

    An unknown option is an error at start. A driver may declare a field `clock: Clock`; core fills
    it with the clock of the Broker. It may declare a field `durability`; where the options do not
    set it, core fills it with the word for what the application asks for (`machine`).
    """

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class Backend(ABC):
    """One broker, as one event loop uses it.

    Concurrency: every method runs on the loop that called `open`. `publish` calls may overlap each
    other and all other calls. Core calls `open`, then `declare`. After a loss it calls `close`,
    `open`, `declare` and `subscribe` again, on the same instance.
    """

    scheme: ClassVar[str | tuple[str, ...]]
    """The URL schemes of this class. Each is also the name of an entry point in group `mqcore`."""
    spi_version: ClassVar[int] = 1
    """The version of this interface that the driver was written for: write the number, for example
    `spi_version = 1`. Without it a driver counts as written for version 1."""
    Options: ClassVar[type[BaseModel]] = Options
    local: ClassVar[bool] = False
    """Whether the broker is inside this process, out of reach of other processes."""
    reply_queues: ClassVar[tuple[str, ...]] = ()
    """Prefixes of the names that the broker gives to a client's own reply queues.

    A reply is sent to such a queue or to one of mqcore's own reply queues, and to no other: a
    sender may write any name into `reply_to`, and a worker may have rights that the sender has not.
    """

    def __init__(self, url: str, options: BaseModel) -> None:
        """Store what is needed to connect.

        Must not do I/O. `url` is the whole URL, secrets included: it must never be logged.
        """
        self.url = url
        self.options = options

    @abstractmethod
    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        """Connect, probe the live server, and return what it can do.

        Must raise the driver's own exception when it fails, and leave nothing open then. Must call
        `lost` once, on the loop, when the connection breaks later, also while it is idle: a silent
        peer is noticed within 15 s (G14). Must not call it after `close`. May be called again after
        `close`. Each call begins a new generation, and receipts of an older one must be answered
        `Stale` unless LEASE is declared.
        """

    @abstractmethod
    async def close(self) -> None:
        """Release everything.

        Must end within 2 s, in any state, also when it is called twice. Must never raise. Core
        cancels it sooner when a process has to end: then it must cut its connections at once.

        What a Subscription still holds comes back to its queue as taken over, as after a crash:
        at once, or when its lease ends. Any other call on a closed instance must raise an exception
        whose text says that it is closed, and which is classified TRANSIENT.
        """

    @abstractmethod
    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Make sure that the queues exist. Idempotent.

        Raises `TopologyMismatch` when a queue exists with other settings (`check_spec` raises it),
        naming the queue, the setting, both values and what to do. Raises `DurabilityUnavailable`
        when a spec asks for more than the server gives (`Capabilities.require_durability`).
        """

    @abstractmethod
    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        """Store a batch; return an outcome for each item, in its order (G1).

        `Stored` only when the broker has confirmed it at the durability in force. Must return by
        `timeout` seconds, with `Unknown` for what has no answer by then. May raise only when
        nothing was sent: once a byte may have been written, an error is an `Unknown`, never an
        exception and never a `Failed`. Core takes an exception that `classify` does not know
        (PERMANENT, and none of core's own errors) for `Unknown` as well.

        A queue that does not exist is `Failed(NOT_FOUND)` with its name in the text, for that item
        alone. A `Route` is `Failed(PERMANENT)` where ROUTING is not native, and so is a delay above
        the limit `max` of DELAY. Order inside one batch and queue must be kept. Must copy what it
        keeps. An empty batch is answered `[]`. May be cancelled at any moment: a message is then
        stored once or not at all, and the instance stays usable.

        With DEDUP a known name is `Stored(duplicate=True)`, also when the queue is full. It stores
        and counts nothing. A name that was refused is not known. Names belong to a queue, and are
        forgotten with it.

        A payload of 1 MiB is stored together with 64 headers, or with 16 KiB of headers. Where the
        broker bounds a whole message, its bound leaves room for both and for what `pack` adds.
        """

    @abstractmethod
    async def subscribe(self, queue: str, *, prefetch: int, lease: float) -> Subscription:
        """Start to consume. Must raise when the queue does not exist (classified NOT_FOUND).

        `prefetch` is the largest number of messages that may be unsettled. `lease` in seconds is
        how long a claim holds without renewal; ignored where the connection itself is the lease.
        """

    @abstractmethod
    def classify(self, error: Exception) -> ErrorKind:
        """Return the kind of an exception of this driver. Pure; must accept any exception."""


class Subscription(ABC):
    """One consumer of one queue.

    `receive` is never called twice at once; `settle` may be called while `receive` waits.
    """

    @abstractmethod
    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        """Return 1 to `limit` messages as soon as there is one.

        Returns `[]` when none came within `timeout` seconds. A receipt is at most 64 bytes.

        Highest priority first, inside a level first in first out (G8). Expired messages must be
        handed out too, with `expires_in <= 0`: core dead-letters them (G6). While `prefetch` of
        them are unsettled it waits until one is settled (G12). Raises after a loss, also then;
        raises NOT_FOUND when the queue was deleted, and says "closed" after `close`.

        When it is cancelled, or its time ends, while a claim is under way, that claim must not be
        lost. Its messages come with the next call, or return to the queue by `close` at the latest,
        with the marks that they had. A wake-up that this call does not use goes to the next
        consumer that waits. With `timeout` 0, a backend that claims makes one request, and hands
        out what is there. The headers of a message must be read-only, as `unpack` makes them.
        """

    @abstractmethod
    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        """Settle a batch; return an outcome for each item, in its order.

        Must return by `timeout` seconds. A Move must not release its source before its successor is
        stored. If that fails, the outcome is the publish's `Failed` or `Unknown` and the source
        stays leased (G3). The same holds when the successor's answer does not come: `Unknown`, and
        no ack. A Move is never refused for `max_length`. A Release must leave `takeovers` as they
        were, and sets `redelivered` (G4). A receipt that is not valid any more, or never was, is
        `Stale` and must change nothing (G5); with ATOMIC_MOVE a stale Move stores nothing.

        `settle([])` is `[]`. A bad item does not affect the others. A batch is settled in its
        order: of two items with one receipt the first counts, and the second is `Stale`.
        """

    @abstractmethod
    async def close(self) -> None:
        """Stop. Must end a waiting `receive` with `[]`.

        Core has settled what it held. What is unsettled now has no answer, and comes back as taken
        over. A settlement may be under way. Its message must not be lost, and where ATOMIC_MOVE is
        declared it must not be stored twice (G3).
        """
