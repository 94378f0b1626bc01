"""A backend over the adapter for blocking drivers: the store of `memory://`, called on a thread."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

from pydantic import BaseModel

from mqcore.spi import (
    Alterations,
    Backend,
    Binding,
    Capabilities,
    Capability,
    ConnectionLost,
    Delivery,
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
    Support,
    hookimpl,
)
from mqcore.spi.blocking import BlockingBackend, BlockingDriver
from mqcore_memory.backend import capabilities
from mqcore_memory.options import MemoryOptions
from mqcore_memory.registry import attach, detach
from mqcore_memory.store import MemoryStore
from mqcore_memory.waiting import Holder

__all__ = ["BlockingMemory", "MemoryDriver", "mqcore_register_backends"]


Consumer = tuple[str, Holder]


class MemoryDriver(BlockingDriver):
    """Calls of the store, as a client library that blocks would make them."""

    options: MemoryOptions
    store: MemoryStore

    def __init__(self, url: str, options: BaseModel) -> None:
        super().__init__(url, options)
        assert isinstance(options, MemoryOptions)
        self.options, self.clock = options, options.clock
        self.owner = Holder()
        self._is_open = False

    def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        self.store = attach(self.url.removeprefix("blocking://"), self.options)
        self._is_open = True
        told = capabilities(self.options)
        delay = Support(Level.NATIVE, {"granularity": 0.1, "max": self.options.max_delay})
        return replace(told, supports={**told.supports, Capability.DELAY: delay})

    def close(self) -> None:
        if self._is_open:
            self.store.leave(self.owner, self.now)
            detach(self.store)

    def declare(self, queues: Sequence[QueueSpec]) -> None:
        for spec in queues:
            if spec.durability is not None:
                capabilities(self.options).require_durability(spec.durability)
        self.store.declare(queues, self.now, self.owner)

    def publish(self, batch: Sequence[Outgoing], timeout: float) -> Sequence[Outcome]:
        return self.store.publish(batch, self.now, self.clock.now())

    def subscribe(self, queue: str, *, prefetch: int, lease: float) -> Consumer:
        holder = Holder(lease=lease)
        self.store.subscribe(queue, holder, self.now)
        return queue, holder

    def claim(self, consumer: Consumer, limit: int) -> Sequence[Delivery]:
        return self.store.claim(*consumer, limit, self.now)

    def settle(
        self, consumer: Consumer, batch: Sequence[Settlement], timeout: float
    ) -> Sequence[Settled]:
        return self.store.settle(consumer[0], batch, self.now)

    def give_back(self, queue: str, receipts: Sequence[bytes]) -> None:
        with self.store._lock:
            stored = self.store._queue(queue, self.now)
            for receipt in receipts:
                if (copy := stored.leases.get(receipt)) is not None:
                    was_delivered = copy.redelivered
                    stored.release(copy, lost=False)
                    copy.redelivered = was_delivered
            stored.nudge()

    def unsubscribe(self, consumer: Consumer, receipts: Sequence[bytes]) -> None:
        self.store.unsubscribe(*consumer, self.now)

    def held(self, consumer: Consumer, receipts: Sequence[bytes]) -> Collection[bytes]:
        with self.store._lock:
            stored = self.store._queue(consumer[0], self.now)
            return [receipt for receipt in receipts if receipt in stored.leases]

    @staticmethod
    def classify(error: Exception) -> ErrorKind:
        if isinstance(error, QueueNotFound):
            return ErrorKind.NOT_FOUND
        return ErrorKind.TRANSIENT if isinstance(error, ConnectionLost) else ErrorKind.PERMANENT

    # What only some brokers can do

    def renew(self, queue: str, receipts: Sequence[bytes], lease: float) -> Sequence[bool]:
        return self.store.renew(queue, receipts, lease, self.now)

    def note_start(self, queue: str, receipts: Sequence[bytes]) -> Sequence[bool]:
        return self.store.note_start(queue, receipts, self.now)

    def count(self, queues: Sequence[str] | None = None) -> Sequence[QueueCounts]:
        return self.store.count(queues, self.now)

    def browse(self, queue: str, limit: int, after: str | None = None) -> Sequence[Entry]:
        return self.store.browse(queue, limit, after, self.now)

    def take(self, queue: str, keys: Sequence[str], lease: float) -> Sequence[Delivery]:
        return self.store.take(queue, keys, lease, self.owner, self.now)

    def sweep(self, queue: str, limit: int, lease: float) -> Sequence[Delivery]:
        return self.store.sweep(queue, limit, lease, self.owner, self.now)

    def purge(self, queue: str) -> int:
        return self.store.purge(queue, self.now)

    def delete(self, queue: str, *, if_empty: bool = False) -> bool:
        return self.store.delete(queue, self.now, if_empty=if_empty)

    def alter(self, queue: str, settings: Alterations) -> None:
        self.store.alter(queue, settings, self.now)

    def bind(self, bindings: Sequence[Binding]) -> None:
        self.store.bind(bindings)

    def unbind(self, bindings: Sequence[Binding]) -> None:
        self.store.unbind(bindings)

    def bindings(self, router: str | None = None) -> Sequence[Binding]:
        return self.store.bindings(router)

    @property
    def now(self) -> float:
        return self.clock.monotonic()


class BlockingMemory(BlockingBackend):
    """`blocking://NAME`."""

    scheme = "blocking"
    spi_version = 1
    Options = MemoryOptions
    Driver = MemoryDriver
    local = True


@hookimpl
def mqcore_register_backends() -> list[type[Backend]]:
    return [BlockingMemory]
