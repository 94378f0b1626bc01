"""The connections to one server, and the scripts that run over them.

A session lives from `open` to `close` of the backend, or until its connection breaks.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from mqcore.spi import ConnectionLost, QueueNotFound
from mqcore_redis.cluster import ClusterLink
from mqcore_redis.dial import client, dial
from mqcore_redis.keys import Keys
from mqcore_redis.link import PATIENCE, Answer, Deadlines, Link
from mqcore_redis.options import Place
from mqcore_redis.scripts import NAMES, Call, script

__all__ = ["Session", "raise_if_error"]


class Session:
    """The connections to one server, made by `open`.

    `lost` is called once, when the first of them breaks. `scripts` are loaded at the start.
    """

    def __init__(
        self,
        place: Place,
        lost: Callable[[Exception], None],
        scripts: Sequence[str] = NAMES,
    ) -> None:
        self.place, self._scripts = place, scripts
        self.keys = Keys(place.options.prefix, place.options.tag, spread=place.kind == "cluster")
        self.error: Exception | None = None
        self.on_broken: Callable[[], None] = lambda: None
        self.main: Link | ClusterLink
        self._lost = lost
        self._links: list[Link | ClusterLink] = []
        self._client: Redis | None = None
        self._deadlines = Deadlines()

    async def open(self) -> None:
        """Connect and load the scripts.

        Raises the driver's own exception; the caller closes then.
        """
        self.main = await self.connect()
        loading = [("SCRIPT LOAD", script(name).text) for name in self._scripts]
        for answers in await self.main.everywhere(*loading):
            for answer in answers:
                raise_if_error(answer)

    async def connect(self, patience: int = PATIENCE) -> Link | ClusterLink:
        """Return one more connection, for a command that blocks. It is closed with the session.

        A cluster has a single one.
        """
        if self.place.kind == "cluster":
            if not self._links:
                nodes = ClusterLink(self.place, self.broken)
                await nodes.connect()
                self._links.append(nodes)
            return self._links[0]
        link = Link(await dial(self.place), self.broken, patience)
        self._links.append(link)
        if self.error is not None:
            await link.close()
        return link

    async def close(self) -> None:
        """Close all connections."""
        self.error = self.error or ConnectionLost("open it again")
        links, self._links = self._links, []
        try:
            await asyncio.gather(*(link.close() for link in links))
        finally:
            if self._client is not None:
                await self._client.aclose()

    def client(self) -> Redis | RedisCluster:
        """Return redis-py's client for the application.

        It has its own connections, or is the client of the cluster.
        """
        if isinstance(self.main, ClusterLink):
            return self.main.client
        if self._client is None:
            self._client = client(self.place, self.main.connection)
        return self._client

    def broken(self, error: Exception) -> None:
        """End the session: a connection broke, or the server is a replica now."""
        if self.error is None:
            self.error = error
            self.on_broken()
            self._lost(error)

    def check(self) -> None:
        """Raise when the session is over."""
        if self.error is not None:
            text = f"the connection to Redis at {self.place.shown} is closed: {self.error}"
            raise ConnectionLost(text) from self.error

    def missing(self, queue: str) -> QueueNotFound:
        """Return the error for a queue that does not exist."""
        return QueueNotFound(
            f"there is no queue {queue!r} at {self.place.shown}, or it was deleted"
        )

    async def command(self, *command: Any) -> Answer:
        """Run one plain command. Raises its error."""
        self.check()
        return raise_if_error(await self.main.call(*command))

    async def run(self, name: str, keys: Sequence[str], *args: Any) -> Answer:
        """Run one script. Raises its error."""
        self.check()
        (answer,) = await self.gather([Call(name, tuple(keys), args)])
        return raise_if_error(answer)

    async def ask(self, name: str, queue: str, *args: Any, also: str = "") -> Answer:
        """Run a script on one queue, or on it and a second one.

        Raises `QueueNotFound` when the queue does not exist.
        """
        keys = self.keys.of(queue) + (self.keys.of(also) if also else ())
        answer = await self.run(name, keys, *args)
        if answer == -1:
            raise self.missing(queue)
        return answer

    async def gather(self, calls: Sequence[Call], deadline: float | None = None) -> list[Answer]:
        """Run scripts in their order, and return an answer for each.

        An answer may be an exception. It is None when there is none by the deadline.
        """
        futures = self.main.run(calls, at_once=True)
        if deadline is not None:
            self._deadlines.add(deadline, futures)
        return [await future for future in futures]


def raise_if_error(answer: Answer) -> Answer:
    """Return an answer, or raise it when it is an error."""
    if isinstance(answer, BaseException):
        raise answer
    return answer
