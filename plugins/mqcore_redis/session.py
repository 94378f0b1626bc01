"""The scripts run: by their digest, and once more by their text when the server has forgotten them (NOSCRIPT: nothing ran).

A session lives from `open` to `close` of the backend, or until its connection breaks.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from redis.exceptions import NoScriptError, ReadOnlyError

from mqcore.spi import ConnectionLost
from mqcore_redis.cluster import ClusterLink
from mqcore_redis.dial import dial
from mqcore_redis.link import PATIENCE, Answer, Caller, Link
from mqcore_redis.options import Place, RedisOptions
from mqcore_redis.scripts import NAMES, script

__all__ = ["Call", "Session"]


class Call(NamedTuple):
    """A script to be run, its keys and its arguments."""

    name: str
    keys: Sequence[str]
    args: Sequence[Any]


class Session:
    """Connections to one server, made by `open`; `lost` is called once when the first of them breaks."""

    def __init__(self, place: Place, options: RedisOptions, lost: Callable[[Exception], None]) -> None:
        self.place, self.options = place, options
        self.error: Exception | None = None
        self.on_broken: Callable[[], None] = lambda: None
        self._lost = lost
        self._callers: list[Caller] = []
        self._main: Caller

    async def open(self) -> None:
        """Connect and load the scripts. Raises the driver's own exception; the caller closes then."""
        self._main = await self.caller()
        for answers in await self.everywhere(*(("SCRIPT LOAD", script(name).text) for name in NAMES)):
            _raise(answers)

    async def everywhere(self, *commands: tuple[Any, ...]) -> list[list[Answer]]:
        """Run plain commands (the name may have several words) on each master; for each command an answer of each."""
        if isinstance(self._main, ClusterLink):
            return [await self._main.everywhere(*command) for command in commands]
        answers = [self._main.call(*name.split(), *args) for name, *args in commands]
        return [[await answer] for answer in answers]

    async def caller(self, patience: int = PATIENCE) -> Caller:
        """Return a connection more, for what blocks; it is closed with the session. A cluster has the one alone."""
        if self.place.kind == "cluster" and self._callers:
            return self._callers[0]
        if self.place.kind == "cluster":
            nodes = ClusterLink(self.place, self.options, self.broken)
            await nodes.connect()
            self._callers.append(nodes)
            return nodes
        link = Link(await dial(self.place, self.options), self.broken, patience)
        self._callers.append(link)
        if self.error is not None:
            await link.close()
        return link

    async def close(self) -> None:
        """Let go of all connections."""
        self.error = self.error or ConnectionLost("open it again")
        callers, self._callers = self._callers, []
        await asyncio.gather(*(caller.close() for caller in callers))

    def broken(self, error: Exception) -> None:
        """Take note that the session has come to its end: a connection broke, or the server is a master no more."""
        if self.error is None:
            self.error = error
            self.on_broken()
            self._lost(error)

    def check(self) -> None:
        """Raise when the session is over."""
        if self.error is not None:
            raise ConnectionLost(
                f"the connection to Redis at {self.place.shown} is closed: {self.error}"
            ) from self.error

    async def command(self, *command: Any) -> Answer:
        """Run one plain command. Raises its error."""
        self.check()
        answer = await self._main.call(*command)
        _raise([answer])
        return answer

    def send(self, *command: Any) -> "asyncio.Future[Answer]":
        """Send one plain command, for who waits for several or for none."""
        return self._main.call(*command)

    async def run(self, name: str, keys: Sequence[str], *args: Any) -> Answer:
        """Run one script. Raises its error."""
        self.check()
        (answer,) = await self.gather([Call(name, keys, args)])
        _raise([answer])
        return answer

    async def gather(self, calls: Sequence[Call], timeout: float | None = None) -> list[Answer]:
        """Run scripts in their order; an answer for each, an exception among them, None for what has none in `timeout` seconds."""
        if not calls:
            return []
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        answers = await self._wait([self._evaluate(call) for call in calls], timeout)
        forgotten = [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if forgotten:
            left = None if deadline is None else deadline - loop.time()
            again = await self._wait([self._evaluate(calls[index], by_text=True) for index in forgotten], left)
            for index, answer in zip(forgotten, again, strict=True):
                answers[index] = answer
        demoted = next((answer for answer in answers if isinstance(answer, ReadOnlyError)), None)
        if demoted is not None:
            self.broken(demoted)
        return answers

    def _evaluate(self, call: Call, *, by_text: bool = False) -> "asyncio.Future[Answer]":
        found = script(call.name)
        start = ("EVAL", found.text) if by_text else ("EVALSHA", found.digest)
        return self._main.call(*start, len(call.keys), *call.keys, *call.args)

    @staticmethod
    async def _wait(futures: Sequence["asyncio.Future[Answer]"], timeout: float | None) -> list[Answer]:
        await asyncio.wait(futures, timeout=timeout)
        return [future.result() if future.done() else None for future in futures]


def _raise(answers: Sequence[Answer]) -> None:
    for answer in answers:
        if isinstance(answer, BaseException):
            raise answer
