"""Which consumers wait at a queue, and which one to wake.

A waiting consumer sleeps until it is woken. A message wakes one consumer, which wakes the next when
it leaves something behind. The end of a delay or a lease wakes one as well: one of the waiting
consumers, the *keeper*, sets its timer for all of them. When it leaves, another takes over.
"""

from collections.abc import Callable
from math import inf

__all__ = ["Holder", "Waiters"]


class Holder:
    """The holder of claims: a Subscription, or a Backend for what it took and swept.

    `held` counts its claims and is never more than `prefetch`. `lease` in seconds. `wake` must be
    quick and may be called from any thread; it returns False when there is no consumer to wake any
    more. `until` is when a waiting holder claims again by itself.
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
        """Add a waiting holder. `event` is when time will next change the queue."""
        self._waiting[holder] = None
        holder.until = inf
        if event < self._alarm():
            self._keeper, holder.until = holder, event

    def remove(self, holder: Holder) -> None:
        """Remove a holder, if it waits.

        A `nudge` must follow, because another may have to take over its duty.
        """
        self._waiting.pop(holder, None)
        if holder is self._keeper:
            self._keeper = None

    def nudge(self, ready: int, event: float) -> None:
        """Wake a consumer that can take a ready message, and one that minds `event`.

        The second only when no timer is set for it.
        """
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
        """Wake all consumers, because the queue was removed."""
        for holder in tuple(self._waiting):
            self._wake(holder)

    def _alarm(self) -> float:
        return self._keeper.until if self._keeper else inf

    def _wake(self, holder: Holder) -> bool:
        self.remove(holder)
        return holder.wake()
