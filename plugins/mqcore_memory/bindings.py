"""The bindings of a store, which all its Backends share (G15). Core matches them."""

from collections.abc import Iterable, Sequence

from mqcore.spi import Binding, check_router_kinds

__all__ = ["Bindings"]


class Bindings:
    """Bindings by router, in the order in which they were added.

    A router exists as long as it has a binding.
    """

    def __init__(self) -> None:
        self._routers: dict[str, dict[Binding, None]] = {}

    def add(self, bindings: Sequence[Binding]) -> None:
        """Add all, or none and raise `TopologyMismatch` when a router would have two kinds."""
        check_router_kinds(self.of(None), bindings)
        for binding in bindings:
            self._routers.setdefault(binding.router, {})[binding] = None

    def remove(self, bindings: Iterable[Binding]) -> None:
        """Remove bindings. Those that do not exist are ignored."""
        for binding in bindings:
            known = self._routers.get(binding.router, {})
            known.pop(binding, None)
            if not known:
                self._routers.pop(binding.router, None)

    def of(self, router: str | None) -> list[Binding]:
        """Return the bindings of one router, or all."""
        if router is not None:
            return list(self._routers.get(router, ()))
        return [binding for known in self._routers.values() for binding in known]

    def forget(self, queue: str) -> None:
        """Remove the bindings to a queue."""
        self.remove([binding for binding in self.of(None) if binding.queue == queue])
