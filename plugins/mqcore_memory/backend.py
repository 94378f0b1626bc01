"""The seam over the store: URL, options, capabilities, and waiting on asyncio.

`publish` calls the store and never waits. `receive` claims. When there is nothing, it sleeps until
the store or the clock wakes it, and claims again. There is no await between the claim and the
return, so a cancelled `receive` has claimed nothing.
"""

import asyncio
from collections.abc import Callable, Sequence
from math import inf
from threading import get_ident
from urllib.parse import urlsplit

from pydantic import BaseModel

from mqcore.spi import (
    Alterations,
    Backend,
    Binding,
    Capabilities,
    Capability,
    ConfigurationError,
    ConnectionLost,
    Delivery,
    Durability,
    Entry,
    ErrorKind,
    Level,
    Outcome,
    Outgoing,
    QueueCounts,
    QueueNotFound,
    QueueSpec,
    Settled,
    Settlement,
    Subscription,
    Support,
)
from mqcore_memory.options import MemoryOptions
from mqcore_memory.queue import TICK
from mqcore_memory.registry import attach, detach
from mqcore_memory.store import MemoryStore
from mqcore_memory.waiting import Holder

__all__ = ["MemoryBackend", "MemorySubscription"]


def capabilities(options: MemoryOptions) -> Capabilities:
    """Return what memory can do. It does not depend on a server."""
    native = Level.NATIVE
    supports = {
        Capability.DELAY: Support(native, {"granularity": 0.005, "max": options.max_delay}),
        Capability.PRIORITY: Support(native, {"levels": 11}),
        Capability.EXPIRY: Support(native, {"sweep": True}),
        Capability.DEDUP: Support(
            native, {"window": options.dedup_window, "size": options.dedup_size}
        ),
        Capability.ATOMIC_MOVE: Support(native),
        Capability.LEASE: Support(native, {"exclusive": True}),
        Capability.ORDER: Support(native, {"release_in_place": True, "after_delay": "end"}),
        Capability.ROUTING: Support(Level.EMULATED),
        Capability.MAX_LENGTH: Support(native, {"modes": "reject,dead_letter"}),
        Capability.BROWSE: Support(native),
    }
    return Capabilities("memory", "memory, in this process", Durability.MEMORY, supports)


class MemoryBackend(Backend):
    """One user of a store: `memory://` names the store `default`, `memory://NAME` another one."""

    scheme = "memory"
    spi_version = 1
    Options = MemoryOptions
    local = True

    def __init__(self, url: str, options: BaseModel) -> None:
        super().__init__(url, options)
        if not isinstance(options, MemoryOptions):
            raise ConfigurationError(
                f"the memory backend takes MemoryOptions, not {type(options).__name__}"
            )
        self._options = options
        self._clock = options.clock
        parts = urlsplit(url)
        place, at = parts.netloc.rpartition("@")[2], "@" in parts.netloc
        if at and parts.scheme == "memory":
            raise ConfigurationError(
                "memory:// has no users and no passwords; its URL is memory:// or memory://NAME"
            )
        self._name = (
            f"{place}{parts.path}".strip("/") or "default"
        )  # errors tell it: nothing secret may be in it
        self._capabilities = capabilities(options)
        self._subscriptions: set[MemorySubscription] = set()
        self._open: MemoryStore | None = None
        self._owner = Holder()

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:  # noqa: ARG002 - memory is never lost
        """Find or create the store.

        Raises `ConfigurationError` when it is open under another clock.
        """
        if self._open is None:
            self._open = attach(self._name, self._options)
        return self._capabilities

    async def close(self) -> None:
        """Return all claims to their queues and remove the temporary queues of this instance.

        The rest stays in the store.
        """
        store, self._open = self._open, None
        if store is None:
            return
        for subscription in list(self._subscriptions):
            await subscription.close()
        store.leave(self._owner, self._clock.monotonic())
        detach(store)

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Create the queues that are missing.

        Raises `TopologyMismatch`, and `DurabilityUnavailable` for more than memory.
        """
        for spec in queues:
            if spec.durability is not None:
                self._capabilities.require_durability(spec.durability)
        self._store.declare(queues, self._clock.monotonic(), self._owner)

    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:  # noqa: ARG002 - it never waits
        """Store the batch immediately."""
        return self._store.publish(batch, self._clock.monotonic(), self._clock.now())

    async def subscribe(self, queue: str, *, prefetch: int, lease: float) -> Subscription:
        """Start to consume. Raises `QueueNotFound`."""
        subscription = MemorySubscription(
            self._store, queue, Holder(prefetch, lease), self._options
        )
        self._subscriptions.add(subscription)
        subscription.closed = self._subscriptions.discard
        return subscription

    def classify(self, error: Exception) -> ErrorKind:
        """Classify the two errors of memory: a missing queue, and a closed backend."""
        if isinstance(error, QueueNotFound):
            return ErrorKind.NOT_FOUND
        return ErrorKind.TRANSIENT if isinstance(error, ConnectionLost) else ErrorKind.PERMANENT

    async def was_handled(self, names: Sequence[str]) -> Sequence[bool]:
        """Return which names are recorded in the inbox of the store."""
        return self._store.inbox.has(names, self._clock.monotonic())

    async def note_handled(self, names: Sequence[str], window: float) -> None:
        """Record names in the inbox of the store."""
        self._store.inbox.add(names, self._clock.monotonic(), window)

    async def renew(self, queue: str, receipts: Sequence[bytes], lease: float) -> Sequence[bool]:
        """Extend claims of any instance."""
        return self._store.renew(queue, receipts, lease, self._clock.monotonic())

    async def note_start(self, queue: str, receipts: Sequence[bytes]) -> Sequence[bool]:
        """Note that handlers start with these claims, of any instance."""
        return self._store.note_start(queue, receipts, self._clock.monotonic())

    async def count(self, queues: Sequence[str] | None = None) -> Sequence[QueueCounts]:
        """Count the named queues, or all but quarantines and temporary ones."""
        return self._store.count(queues, self._clock.monotonic())

    async def browse(self, queue: str, limit: int, after: str | None = None) -> Sequence[Entry]:
        """Return a page of the ready messages, then of the delayed ones. Raises `QueueNotFound`."""
        return self._store.browse(queue, limit, after, self._clock.monotonic())

    async def take(self, queue: str, keys: Sequence[str], lease: float) -> Sequence[Delivery]:
        """Lease chosen entries. Raises `QueueNotFound`."""
        return self._store.take(queue, keys, lease, self._owner, self._clock.monotonic())

    async def sweep(self, queue: str, limit: int, lease: float) -> Sequence[Delivery]:
        """Lease expired messages at any place in the queue. Raises `QueueNotFound`."""
        return self._store.sweep(queue, limit, lease, self._owner, self._clock.monotonic())

    async def purge(self, queue: str) -> int:
        """Remove the ready and the delayed messages. Raises `QueueNotFound`."""
        return self._store.purge(queue, self._clock.monotonic())

    async def delete(self, queue: str, *, if_empty: bool = False) -> bool:
        """Remove a queue with its quarantine and bindings. Raises `QueueNotFound`."""
        return self._store.delete(queue, self._clock.monotonic(), if_empty=if_empty)

    async def alter(self, queue: str, settings: Alterations) -> None:
        """Change settings of a queue. Raises `QueueNotFound`."""
        self._store.alter(queue, settings, self._clock.monotonic())

    async def bind(self, bindings: Sequence[Binding]) -> None:
        """Add bindings. Raises `TopologyMismatch`."""
        self._store.bind(bindings)

    async def unbind(self, bindings: Sequence[Binding]) -> None:
        """Remove bindings."""
        self._store.unbind(bindings)

    async def bindings(self, router: str | None = None) -> Sequence[Binding]:
        """Return the bindings of one router, or all."""
        return self._store.bindings(router, self._clock.monotonic())

    @property
    def _store(self) -> MemoryStore:
        if self._open is None:
            raise ConnectionLost(
                f"the connection to memory://{self._name} is closed; open it first"
            )
        return self._open


class MemorySubscription(Subscription):
    """One consumer: it claims from the store, and sleeps between the claims."""

    def __init__(
        self, store: MemoryStore, queue: str, holder: Holder, options: MemoryOptions
    ) -> None:
        self.closed: Callable[[MemorySubscription], None] = lambda _: None
        self._store = store
        self._queue = queue
        self._clock = options.clock
        self._holder = holder
        self._open = True
        self._awake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._thread = get_ident()
        holder.wake = self._wake
        store.subscribe(queue, holder, self._clock.monotonic())

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        """Claim, or wait until there is something to claim.

        Raises `QueueNotFound` when the queue was deleted.
        """
        if not self._open:
            raise ConnectionLost(
                f"the subscription of queue {self._queue!r} is closed; subscribe again"
            )
        await asyncio.sleep(
            0
        )  # a consumer that always finds something must not keep the loop for itself
        now = self._clock.monotonic()
        deadline = now + timeout
        while self._open:
            self._awake.clear()
            wait = deadline - now > TICK
            claimed = self._store.claim(self._queue, self._holder, limit, now, wait=wait)
            if claimed or not wait:
                return claimed
            await self._sleep(min(deadline, self._holder.until) - now)
            now = self._clock.monotonic()
        return []

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:  # noqa: ARG002 - it never waits
        """Settle the batch immediately.

        After a close every receipt is stale, because its message has returned to the queue.
        """
        return self._store.settle(self._queue, batch, self._clock.monotonic())

    async def resize(self, prefetch: int) -> bool:
        """Hold at most so many unsettled messages from now on."""
        self._holder.prefetch = prefetch
        self._awake.set()  # a consumer that was full claims again
        return True

    async def close(self) -> None:
        """End a waiting `receive`. Unsettled messages return to their old places as taken over."""
        if self._open:
            self._open = False
            self.closed(self)
            self._store.unsubscribe(self._queue, self._holder, self._clock.monotonic())
            self._awake.set()

    async def _sleep(self, delay: float) -> None:
        try:
            async with self._clock.timeout(None if delay == inf else delay):
                await self._awake.wait()
        except TimeoutError:
            return
        except BaseException:
            self._store.stop_waiting(self._queue, self._holder)
            raise

    def _wake(self) -> bool:
        """Wake the consumer; the store calls this from any thread.

        Returns False when the event loop of the consumer has ended.
        """
        try:
            if self._thread == get_ident() and not self._loop.is_closed():
                self._awake.set()
            else:
                self._loop.call_soon_threadsafe(self._awake.set)
        except RuntimeError:
            return False
        return True
