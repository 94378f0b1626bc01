"""The stores of this process by name: every `memory://shop` opens the same queues."""

from threading import Lock

from mqcore.spi import Clock, ConfigurationError
from mqcore_memory.options import MemoryOptions
from mqcore_memory.store import MemoryStore

__all__ = ["attach", "detach"]


class _Shared:
    """One store, the clock that its times come from, and how many users have it open."""

    def __init__(self, store: MemoryStore, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self.users = 0


_lock = Lock()
_stores: dict[str, _Shared] = {}


def attach(name: str, options: MemoryOptions) -> MemoryStore:
    """Return the store of this name. It is created when missing, and stays until the process ends.

    Times of two clocks cannot be compared. A store that is open under one clock cannot be opened
    under another, unless both are real (`ConfigurationError`). When a store has no users, opening
    it with another clock replaces it by an empty one. Different settings of the dedup window are
    refused as well.
    """
    with _lock:
        shared = _stores.get(name)
        if shared is not None and not _same(shared.clock, options.clock):
            if shared.users:
                raise ConfigurationError(
                    f"memory://{name} is open in this process under another clock; give every "
                    "Broker that uses it "
                    "the same clock, or use another name in the URL"
                )
            shared = None
        if shared is None:
            store = MemoryStore(
                name,
                dedup_window=options.dedup_window,
                dedup_size=options.dedup_size,
                max_delay=options.max_delay,
            )
            shared = _stores[name] = _Shared(store, options.clock)
        if shared.store.dedup != (options.dedup_window, options.dedup_size):
            raise ConfigurationError(
                f"memory://{name} exists in this process with "
                f"dedup_window={shared.store.dedup[0]:g} and "
                f"dedup_size={shared.store.dedup[1]}; use the same everywhere, or another name "
                "in the URL"
            )
        shared.users += 1
        return shared.store


def detach(store: MemoryStore) -> None:
    """Note that a user of a store has closed it."""
    with _lock:
        shared = _stores.get(store.name)
        if shared is not None and shared.store is store:
            shared.users -= 1


def _same(one: Clock, other: Clock) -> bool:
    return one is other or (one.real and other.real)
