"""Who waits at a queue, and whom to wake.

A waiting consumer costs nothing: it sleeps until somebody wakes it. A message wakes one consumer,
which wakes the next when it leaves something behind. Time wakes as well (a delay ends, a lease
ends): one of the waiting, the *keeper*, sets its timer for all of them, and when it leaves another
takes over.
"""

from collections.abc import Callable
from math import inf

__all__ = ["Holder", "Waiters"]


class Holder:
    """Whoever holds claims: a Subscription, or a Backend for what it took and swept.

    `held` counts them, and is never more than `prefetch`. `lease` in seconds. `wake` must be quick
    and may be called from any thread; it answers False when nobody is left to wake. `until` is when
    one that waits comes by itself.
    """

    __slots__ = ("held", "lease", "prefetch", "until", "wake")

    def __init__(
        self, prefetch: float = inf, lease: float = inf, wake: Callable[[], bool] = lambda: True
    ) -> None:
        self.prefetch = prefetch
        self.lease = lease
        self.wake = wake
        self.held = 0
        self.until = inf


class Waiters:
    """The consumers that wait at one queue, the longest waiting first."""

    __slots__ = ("_keeper", "_waiting")

    def __init__(self) -> None:
        self._waiting: dict[Holder, None] = {}
        self._keeper: Holder | None = None

    def add(self, holder: Holder, event: float) -> None:
        """Let `holder` wait; `event` is when time will next change the queue."""
        self._waiting[holder] = None
        holder.until = inf
        if event < self._alarm():
            self._keeper, holder.until = holder, event

    def remove(self, holder: Holder) -> None:
        """Let `holder` go, if it waits.

        A `nudge` must follow: what it was to do may be left to others now.
        """
        self._waiting.pop(holder, None)
        if holder is self._keeper:
            self._keeper = None

    def nudge(self, ready: int, event: float) -> None:
        """Wake one that can take a ready message, and one to mind `event` when nobody's timer does."""
        if not self._waiting:
            return
        if ready:
            for holder in tuple(self._waiting):
                if holder.held < holder.prefetch and self._wake(holder):
                    break
        while self._waiting and event < self._alarm():
            if self._wake(next(iter(self._waiting))):
                break

    def wake_all(self) -> None:
        """Wake everybody: the queue has gone."""
        for holder in tuple(self._waiting):
            self._wake(holder)

    def _alarm(self) -> float:
        return self._keeper.until if self._keeper else inf

    def _wake(self, holder: Holder) -> bool:
        self.remove(holder)
        return holder.wake()
