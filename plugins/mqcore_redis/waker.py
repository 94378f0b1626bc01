"""Who is idle, and one blocked connection that wakes them.

A publish leaves a token on its queue's list `w`. One BLPOP waits for tokens of all queues at which
somebody here is idle; a token wakes one consumer, which claims. A token that finds nobody idle any
more is put back, for somebody elsewhere may be, and its queue is left out until it is idle again: a
busy queue pays for no BLPOP. A BLPOP under way is never cancelled; a list of our own, among its
keys, ends it when another queue becomes idle.
"""

import asyncio
import random
from typing import Protocol

from mqcore.spi import new_id
from mqcore_redis.cluster import ClusterLink
from mqcore_redis.link import Link
from mqcore_redis.session import Session, told

__all__ = ["Sleeper", "Waker"]

BLOCK = 5
"""Seconds that one BLPOP waits."""


class Sleeper(Protocol):
    """A consumer that may be idle."""

    queue: str

    def wake(self) -> None:
        """Look whether there is something."""


class Waker:
    """The idle consumers of one session, in one slot of a cluster or of a whole server."""

    def __init__(self, session: Session, group: str) -> None:
        self._session, self._keys = session, session.keys
        self._kick = f"{self._keys.kick(group)}:{new_id()}"
        self.phase = random.random()
        """When in a second its sleepers look by themselves: at the same moment, and not with those of other processes.
        """
        self._idle: dict[str, dict[Sleeper, None]] = {}
        self._listened: dict[str, None] = {}
        self._asked: frozenset[str] = frozenset()
        self._kicked = False
        self._task: asyncio.Task[None] | None = None
        self._link: Link | ClusterLink | None = None

    def enter(self, sleeper: Sleeper) -> None:
        """Wake this one when a token comes."""
        queue = sleeper.queue
        self._idle.setdefault(queue, {})[sleeper] = None
        self._listened[queue] = None
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._listen())
        elif self._asked and queue not in self._asked and not self._kicked:
            self._kicked = True
            self._session.main.call("RPUSH", self._kick, 1)
            self._session.main.call("EXPIRE", self._kick, 60)

    def leave(self, sleeper: Sleeper) -> None:
        """Wake this one no more."""
        sleepers = self._idle.get(sleeper.queue, {})
        sleepers.pop(sleeper, None)
        if not sleepers:
            self._idle.pop(sleeper.queue, None)

    def forget(self, sleeper: Sleeper) -> None:
        """Wake this one no more, and listen for its queue no more unless others are idle there."""
        self.leave(sleeper)
        if sleeper.queue not in self._idle:
            self._listened.pop(sleeper.queue, None)

    def pass_on(self, queue: str) -> None:
        """Give a token to another who is idle here, or back to the queue."""
        sleepers = self._idle.get(queue)
        if sleepers:
            sleeper = next(iter(sleepers))
            self.leave(sleeper)
            sleeper.wake()
            return
        self._listened.pop(queue, None)
        if self._session.error is None:
            self._session.tell("wake", queue)

    async def close(self) -> None:
        """Stop listening."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _listen(self) -> None:
        try:
            if self._link is None:
                self._link = await self._session.connect(patience=BLOCK + 3)
            while self._idle and self._session.error is None:
                await self._wait_once(self._link)
        except Exception as error:  # noqa: BLE001 - whatever breaks here, nobody would be woken: the session is broken
            self._session.broken(error)

    async def _wait_once(self, link: Link | ClusterLink) -> None:
        queues = list(self._listened)
        names = {self._keys.one(queue, "w"): queue for queue in queues}
        self._asked, self._kicked = frozenset(queues), False
        answer = told(await link.call("BLPOP", *names, self._kick, BLOCK))
        self._asked = frozenset()
        queue = names.get(answer[0].decode()) if answer is not None else None
        if queue is not None:
            self._listened.pop(queue, None)
            self._listened[queue] = None  # BLPOP serves the first key first: to the end with it
            self.pass_on(queue)
