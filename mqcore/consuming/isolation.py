"""The lock between messages that run side by side and one that must run alone (G4).

A message from the quarantine may kill its process, and must then kill no other message beside it.
All consumers of one worker share one lock. Ordinary messages enter it together. A suspect waits
until they have left, keeps new ones out meanwhile, and is then alone. After a suspect one ordinary
message has its turn, so that neither starves the other.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Entry", "IsolationLock"]


class Entry(Enum):
    """How a message has entered the lock."""

    SHARED = "shared"
    EXCLUSIVE = "exclusive"


class IsolationLock:
    """A lock with shared and exclusive entry that never waits: it refuses, and calls listeners.

    Who was refused tries again when its listener is called.
    """

    def __init__(self, *, blocks_others: bool = True) -> None:
        """With `blocks_others` a waiting suspect keeps ordinary messages from entering.

        The pull API does without: its caller may hold several messages for as long as it likes, and
        would wait for itself.
        """
        self._blocks_others = blocks_others
        self._shared = 0
        self._is_exclusive = False
        self._waiting: set[object] = set()
        self._listeners: list[Callable[[], None]] = []
        self.ordinary_next = False
        """Whether an ordinary message should go before the next suspect."""

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever one that was refused may try again."""
        self._listeners.append(listener)

    def forget(self, listener: Callable[[], None]) -> None:
        """Stop calling `listener`."""
        self._listeners.remove(listener)

    def enter_shared(self) -> bool:
        """Enter beside others; False while a suspect is inside, or waits and it is its turn."""
        if self._is_exclusive or (self._waiting and not self.ordinary_next):
            return False
        self.ordinary_next = False
        self._shared += 1
        return True

    def enter_exclusive(self, who: object) -> bool:
        """Enter alone; when refused, `who` waits for its turn until it enters or gives up."""
        if self._is_exclusive or self._shared:
            if self._blocks_others:
                self._waiting.add(who)
            return False
        self._waiting.discard(who)
        self._is_exclusive = True
        return True

    def give_up(self, who: object) -> None:
        """Stop waiting to be alone."""
        if who in self._waiting:
            self._waiting.discard(who)
            self._changed()

    def leave(self, entry: Entry) -> None:
        """Leave after `enter_shared` or `enter_exclusive`.

        After an exclusive entry the next turn is an ordinary message's.
        """
        if entry is Entry.EXCLUSIVE:
            self._is_exclusive = False
            self.ordinary_next = True
            self._changed()
        else:
            self._shared -= 1
            if not self._shared:
                self._changed()

    def _changed(self) -> None:
        for listener in self._listeners:
            listener()
