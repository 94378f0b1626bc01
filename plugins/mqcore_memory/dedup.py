"""The names of the copies that a queue has stored (G1)."""

from collections import deque

__all__ = ["Window"]

Key = tuple[str, int, str]
"""`Message.copy_name`, which differs for any two stored copies."""


class Window:
    """The names of the last `size` copies stored in the last `seconds`, acknowledged or not.

    Each name has the number of the copy that was stored. By it a Move distinguishes its own
    successor from an older copy of the same name: a publisher may use an id again when the window
    has passed, and the copies of its retries then have the same names.
    """

    __slots__ = ("_numbers", "_order", "_seconds", "_size")

    def __init__(self, seconds: float, size: int) -> None:
        self._seconds = seconds
        self._size = size
        self._numbers: dict[Key, int] = {}
        self._order: deque[tuple[float, Key, int]] = deque()

    def add(self, key: Key, number: int, now: float) -> None:
        """Remember that `key` was stored at `now` as copy `number`."""
        self._numbers[key] = number
        self._order.append((now, key, number))
        if len(self._order) > self._size:
            self._forget()

    def has(self, key: Key, since: int = 0) -> bool:
        """Return whether `key` was stored inside the window, and after the copy `since`."""
        return self._numbers.get(key, 0) > since

    def trim(self, now: float) -> None:
        """Forget the names that the window has passed."""
        order = self._order
        while order and order[0][0] <= now - self._seconds:
            self._forget()

    def _forget(self) -> None:
        _, key, number = self._order.popleft()
        if self._numbers.get(key) == number:
            del self._numbers[key]
