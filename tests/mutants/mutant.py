"""A mutant: the memory backend with one class broken, and the cases that must catch it.

    @mutant("G8", "priority.the_highest_goes_first")
    class PriorityReversed(MemoryQueue):
        '''The lowest goes first.'''

`guarantee` is the one that it breaks; the names after it begin the names of the cases of
`mqcore.contract` of which one must fail. The harness puts the broken class into an otherwise whole
memory backend, whichever part of it that is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from mutants.silence import BreakableSubscription, Net, NetBackend

from mqcore.contract import MemoryHarness, all_cases, run_case
from mqcore.spi import ConnectionLost
from mqcore_memory.backend import MemoryBackend, MemorySubscription
from mqcore_memory.options import MemoryOptions
from mqcore_memory.queue import Copy, MemoryQueue
from mqcore_memory.registry import _Shared, _stores
from mqcore_memory.store import MemoryStore
from mqcore_memory.waiting import Holder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    from mqcore.contract import Case, Result
    from mqcore.spi import Backend, Outgoing, QueueSpec

__all__ = ["Mutant", "MutantHarness", "all_mutants", "caught", "changed", "mutant"]

T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Mutant:
    """One mutant; `broken` is None for the control, which is correct."""

    name: str
    guarantee: str
    cases: tuple[str, ...]
    text: str
    broken: type | None

    def named(self) -> list[Case]:
        """Return the cases that it names, in the order of their names in the decorator."""
        return [case for start in self.cases for case in all_cases() if case.name.startswith(start)]


_found: list[Mutant] = []


def mutant(guarantee: str, *cases: str) -> Callable[[T], T]:
    """Register a subclass of one of the memory backend's four classes as a mutant."""

    def register(broken: T) -> T:
        _found.append(
            Mutant(
                broken.__name__,
                guarantee,
                cases,
                (broken.__doc__ or "").strip().splitlines()[0],
                broken,
            )
        )
        return broken

    return register


def all_mutants() -> list[Mutant]:
    """Import every module of mutants and return them, in the order of the files."""
    for path in sorted(Path(__file__).parent.glob("broken_*.py")):
        import_module(f"mutants.{path.stem}")
    return list(_found)


def caught(found: Mutant, cases: Sequence[Case] | None = None) -> Iterator[Result]:
    """Run these cases, by default those it names, and yield what fails."""
    for case in found.named() if cases is None else cases:
        result = run_case(case, MutantHarness(found.broken))
        if result.status == "failed":
            yield result


class MutantHarness(MemoryHarness):
    """A memory backend under a virtual clock, one class of which may be broken."""

    def __init__(self, broken: type | None) -> None:
        super().__init__()
        broken = broken or MemoryStore
        self._net = Net()
        self._backend = broken if issubclass(broken, MemoryBackend) else NetBackend
        self._subscription = (
            broken if issubclass(broken, MemorySubscription) else BreakableSubscription
        )
        store = (broken if issubclass(broken, MemoryStore) else _Store)(
            self.url.removeprefix("memory://")
        )
        if isinstance(store, _Store):
            store.queue = broken if issubclass(broken, MemoryQueue) else MemoryQueue
        self._store = store
        _stores[store.name] = _Shared(store, self.clock)

    def make_backend(self) -> Backend:
        backend = self._backend(self.url, MemoryOptions(clock=self.clock))
        if isinstance(backend, NetBackend):
            backend.net, backend.subscription = self._net, self._subscription
        return backend

    def cut(self) -> AbstractAsyncContextManager[None]:
        return self._net.cut(self.clock)

    def mute(self, backend: Backend) -> AbstractAsyncContextManager[None]:
        return self._net.mute(cast("NetBackend", backend))

    def make_unreachable(self) -> Backend:
        backend = cast("NetBackend", self.make_backend())
        backend.net = Net()
        backend.net.refuses = True
        return backend

    async def restart(self) -> None:
        """All connections are lost, and the store is kept, except what a mutant forgets."""
        for backend in list(self._net.connected):
            await backend.fail(ConnectionLost("the server was killed"))
        for queue in self._store._queues.values():
            getattr(queue, "restarted", lambda: None)()

    async def stored(self, body: bytes) -> Mapping[str, int]:
        """Search every queue of the store."""
        shelves = [value for value in vars(self._store).values() if isinstance(value, dict)]
        queues = {
            name: it
            for shelf in shelves
            for name, it in shelf.items()
            if isinstance(it, MemoryQueue)
        }
        return {
            name: sum(copy.message.body == body for copy in _copies(queue))
            for name, queue in queues.items()
        }

    def has(self, hook: str) -> bool:
        """Only a backend with a network can be cut, muted and restarted."""
        breaks = issubclass(self._backend, NetBackend) and issubclass(
            self._subscription, BreakableSubscription
        )
        return super().has(hook) and (
            hook not in {"cut", "mute", "restart", "make_unreachable"} or breaks
        )


def _copies(queue: MemoryQueue) -> list[Copy]:
    """Return all copies of a queue, in any list or dict."""
    shelves = [
        list(value.values()) if isinstance(value, dict) else value for value in vars(queue).values()
    ]
    found = [
        it for shelf in shelves if isinstance(shelf, list) for it in shelf if isinstance(it, Copy)
    ]
    return list({id(copy): copy for copy in found}.values())


class _Store(MemoryStore):
    """The memory store with another kind of queue."""

    queue = MemoryQueue

    def declare(self, specs: Sequence[QueueSpec], now: float, owner: Holder | None = None) -> None:
        super().declare(specs, now, owner)
        for queue in self._queues.values():
            queue.__class__ = self.queue


def changed(out: Outgoing, **changes: Any) -> Outgoing:
    """Return the delivery with these fields of its message changed."""
    return replace(out, message=replace(out.message, **changes))
