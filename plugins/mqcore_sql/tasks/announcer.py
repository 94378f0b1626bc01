"""Announces changed rows to other processes through PostgreSQL's NOTIFY.

A transaction that notifies takes a lock of the whole server at its commit. So the rows of 50 ms are
announced together, after their transactions. The end of a task is announced at once, if nothing was
in the last 50 ms.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence

from mqcore.tasks.spi import Announcement, StoreError

__all__ = ["Announcer", "announcement_of"]

_EVERY = 0.05
"""Seconds between two notifications of a process."""
_TOGETHER = 60
"""Ids in one notification, which has 8,000 bytes at most."""
_ENDED, _MOVED = "ended", "moved"


class Announcer:
    """Gathers what one store has changed."""

    def __init__(self, notify: Callable[[Sequence[str]], Awaitable[None]]) -> None:
        """`notify` sends notifications with these texts."""
        self._notify = notify
        self._ended: dict[str, None] = {}
        self._moved: dict[str, None] = {}
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._sending: asyncio.Task[None] | None = None

    def add(self, announcement: Announcement) -> None:
        """Announce these rows soon."""
        self._ended |= dict.fromkeys(announcement.ended)
        self._moved |= dict.fromkeys(announcement.moved)
        if announcement.ended:
            self._send_at(self._last + _EVERY)
        elif announcement.moved:
            self._send_at(asyncio.get_running_loop().time() + _EVERY)

    def _send_at(self, when: float) -> None:
        if self._sending is not None and not self._sending.done():
            return  # what is gathered meanwhile follows
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(when, self._start)

    def _start(self) -> None:
        self._timer = None
        self._sending = asyncio.get_running_loop().create_task(self._send())

    async def _send(self) -> None:
        loop = asyncio.get_running_loop()
        while self._ended or self._moved:
            texts = [*_texts(_MOVED, self._moved), *_texts(_ENDED, self._ended)]
            self._ended, self._moved = {}, {}
            self._last = loop.time()
            try:
                await self._notify(texts)
            except StoreError:
                return  # other processes look at the rows from time to time
            await asyncio.sleep(self._last + _EVERY - loop.time())

    async def close(self) -> None:
        """Announce nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.gather(self._sending, return_exceptions=True)


def _texts(kind: str, rows: dict[str, None]) -> Iterator[str]:
    ids = list(rows)
    for start in range(0, len(ids), _TOGETHER):
        yield " ".join([kind, *ids[start : start + _TOGETHER]])


def announcement_of(text: str) -> Announcement | None:
    """Return what a notification says; None for one of another program."""
    kind, *ids = text.split(" ")
    if kind == _ENDED:
        return Announcement(ended=ids)
    return Announcement(moved=ids) if kind == _MOVED else None
