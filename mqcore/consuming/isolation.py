"""The lock between messages that run side by side and one that must run alone (G4).

A message from the quarantine may kill its process, and must then kill no innocent beside it. All
consumers of one worker share one isolation: ordinary messages enter it together; a suspect waits until
they have left, keeps newcomers out meanwhile, and is alone inside. After a suspect one ordinary
message has its turn, so that neither starves the other.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["IsolationLock", "Turn"]


class IsolationLock:
    """Shared and exclusive entry, without waiting inside: whoever is refused tries again when `on_change` calls."""

    def __init__(self) -> None:
        """Start open, with nobody inside."""
        self._inside = 0
        self._alone = False
        self._waiting: set[object] = set()
        self._listeners: list[Callable[[], None]] = []
        self.ordinary_next = False
        """Whether an ordinary message should go before the next suspect."""

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever somebody who was refused may try again."""
        self._listeners.append(listener)

    def forget(self, listener: Callable[[], None]) -> None:
        """Call `listener` no more."""
        self._listeners.remove(listener)

    def enter_shared(self) -> bool:
        """Enter beside others; False while somebody is alone inside, or waits for that and it is his turn."""
        if self._alone or (self._waiting and not self.ordinary_next):
            return False
        self.ordinary_next = False
        self._inside += 1
        return True

    def leave_shared(self) -> None:
        """Leave after `enter_shared`."""
        self._inside -= 1
        if not self._inside:
            self._changed()

    def enter_exclusive(self, who: object, *, wait: bool = True) -> bool:
        """Enter as the only one.

        When refused, `who` keeps newcomers out until it enters or gives up, unless `wait` is False.
        """
        if self._alone or self._inside:
            if wait:
                self._waiting.add(who)
            return False
        self._waiting.discard(who)
        self._alone = True
        return True

    def give_up(self, who: object) -> None:
        """Wait no longer for being alone."""
        if who in self._waiting:
            self._waiting.discard(who)
            self._changed()

    def leave_exclusive(self) -> None:
        """Leave after `enter_exclusive`; the next turn is an ordinary message's."""
        self._alone = False
        self.ordinary_next = True
        self._changed()

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()


class Turn:
    """Where we stand with the quarantine: whether something is known to be in it, and whether the isolation lock is ours for it."""

    def __init__(self) -> None:
        """Nothing is known, so the quarantine may be asked."""
        self.wanted = False
        self.reserved = False
        self.asked = False
        self.allowed = asyncio.Event()
        self.allowed.set()

    def want(self) -> None:
        """A suspect was put back: ask for it when the isolation lock is ours, and now and then whether it is still there."""
        self.wanted, self.asked = True, False
        self.allowed.clear()

    def forget(self) -> None:
        """It is in our hands, or gone: the quarantine may be asked for whatever comes next."""
        self.wanted, self.reserved, self.asked = False, False, False
        self.allowed.set()

    def reserve(self) -> None:
        """The isolation lock is ours: ask now."""
        self.wanted, self.reserved, self.asked = False, True, False
        self.allowed.set()
