"""What a queue remembers of the copies that it has stored (G1)."""

from collections import deque

__all__ = ["Window"]

Key = tuple[str, int, str]
"""`Message.copy_name`: what tells one stored copy from all others."""


class Window:
    """The names of the copies stored in the last `seconds`, at most the last `size` of them; after their ack as well.

    Each name goes with the number of the entry that was stored. It tells a Move its own successor
    from a copy of an earlier life: an id that its owner uses again when its window is over may meet
    the hops of its first retries.
    """

    __slots__ = ("_numbers", "_order", "_seconds", "_size")

    def __init__(self, seconds: float, size: int) -> None:
        self._seconds = seconds
        self._size = size
        self._numbers: dict[Key, int] = {}
        self._order: deque[tuple[float, Key, int]] = deque()

    def add(self, key: Key, number: int, now: float) -> None:
        """Remember that `key` was stored at `now` as entry `number`."""
        self._numbers[key] = number
        self._order.append((now, key, number))
        if len(self._order) > self._size:
            self._forget()

    def has(self, key: Key, since: int = 0) -> bool:
        """Whether `key` was stored inside the window, and after the entry `since`."""
        return self._numbers.get(key, 0) > since

    def trim(self, now: float) -> None:
        """Forget what the window has left behind."""
        order = self._order
        while order and order[0][0] <= now - self._seconds:
            self._forget()

    def _forget(self) -> None:
        _, key, number = self._order.popleft()
        if self._numbers.get(key) == number:
            del self._numbers[key]
