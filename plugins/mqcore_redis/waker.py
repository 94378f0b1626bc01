"""Waking idle consumers by one blocked connection.

A publish leaves a token on the list `w` of its queue. One BLPOP waits for tokens of all queues that
have idle consumers here. A token wakes one consumer, which claims. A token without an idle consumer
is put back, because another process may have one, and its queue is left out until it is idle again:
a busy queue needs no BLPOP. A BLPOP under way is never cancelled. Its last key is a list of our
own, which ends it when another queue becomes idle.
"""

import asyncio
import random
from collections.abc import Callable

from mqcore.spi import new_id
from mqcore_redis.cluster import ClusterLink
from mqcore_redis.link import Link
from mqcore_redis.scripts import Call
from mqcore_redis.session import Session, raise_if_error

__all__ = ["Waker"]

BLOCK = 5
"""Seconds that one BLPOP waits."""
_Wake = Callable[[], None]
"""Makes an idle consumer claim, because there may be something."""


class Waker:
    """The idle consumers of one session, in one slot of a cluster or of a whole server."""

    def __init__(self, session: Session, group: str) -> None:
        self._session, self._keys = session, session.keys
        self._kick = f"{self._keys.kick(group)}:{new_id()}"
        self.phase = random.random()
        """When in a second idle consumers claim by themselves.

        All of a session at the same moment, and not together with those of other processes.
        """
        self._idle: dict[str, dict[_Wake, None]] = {}
        self._listened: dict[str, None] = {}
        self._asked: frozenset[str] = frozenset()
        self._kicked = False
        self._task: asyncio.Task[None] | None = None
        self._link: Link | ClusterLink | None = None

    def enter(self, queue: str, wake: _Wake) -> None:
        """Add an idle consumer, which a token of its queue may wake."""
        self._idle.setdefault(queue, {})[wake] = None
        self._listened[queue] = None
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._listen())
        elif self._asked and queue not in self._asked and not self._kicked:
            self._kicked = True
            self._session.main.call("RPUSH", self._kick, 1)
            self._session.main.call("EXPIRE", self._kick, 60)

    def leave(self, queue: str, wake: _Wake) -> None:
        """Remove a consumer that is not idle any more."""
        sleepers = self._idle.get(queue, {})
        sleepers.pop(wake, None)
        if not sleepers:
            self._idle.pop(queue, None)

    def forget(self, queue: str, wake: _Wake) -> None:
        """Remove a consumer that ends.

        Its queue is not listened to any more, unless others are idle there.
        """
        self.leave(queue, wake)
        if queue not in self._idle:
            self._listened.pop(queue, None)

    def pass_on(self, queue: str) -> None:
        """Give a token to another idle consumer of the queue, or put it back."""
        if sleepers := self._idle.get(queue):
            wake = next(iter(sleepers))
            self.leave(queue, wake)
            wake()
            return
        self._listened.pop(queue, None)
        if self._session.error is None:
            self._session.main.run([Call("wake", self._keys.of(queue), ())])

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
        except Exception as error:  # noqa: BLE001 - after any error no consumer would be woken: the session is broken
            self._session.broken(error)

    async def _wait_once(self, link: Link | ClusterLink) -> None:
        queues = list(self._listened)
        names = {self._keys.one(queue, "w"): queue for queue in queues}
        self._asked, self._kicked = frozenset(queues), False
        answer = raise_if_error(await link.call("BLPOP", *names, self._kick, BLOCK))
        self._asked = frozenset()
        queue = names.get(answer[0].decode()) if answer is not None else None
        if queue is not None:
            self._listened.pop(queue, None)
            self._listened[queue] = None  # to the end, because BLPOP serves the first key first
            self.pass_on(queue)
