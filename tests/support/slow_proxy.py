"""A TCP proxy on 127.0.0.1 that delays a server's answers, each by a random time, in order."""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from typing import Self

STEADY_AFTER = 1.5
"""Seconds from the start of a connection during which answers are not late, so that a handshake of
ten round trips does not decide how long a campaign takes."""


class SlowProxy:
    """Listens on `port`; answers of the server arrive `least` to `late` seconds later."""

    def __init__(self, host: str, port: int, late: float, seed: int) -> None:
        self._goal = (host, port)
        self._random = random.Random(seed)
        self.least = 0.0
        self.late = late
        """Seconds that each answer is late at least, and at most; both may change at any time."""
        self.deaf = False
        """Whether what clients send is dropped silently."""
        self.port = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # the sockets are closed a turn later

    def reset(self) -> None:
        """Reset every connection and stop dropping; new ones may be made."""
        self.deaf = False
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _accept(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        try:
            server, ask = await asyncio.open_connection(*self._goal)
        except OSError:
            answer.transport.abort()
            return

        self._writers |= {answer, ask}
        for work in (self._pass_on(client, ask), self._pass_on_late(server, answer)):
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pass_on(self, source: asyncio.StreamReader, goal: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if not self.deaf:
                    goal.write(data)
        goal.close()

    async def _pass_on_late(self, source: asyncio.StreamReader, goal: asyncio.StreamWriter) -> None:
        """Forward answers in order, each when its time has come."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, data = await waiting.get()
                await asyncio.sleep(max(due - loop.time(), 0))
                if not data:
                    break
                goal.write(data)
            goal.close()

        delivering = asyncio.create_task(deliver())
        try:
            with suppress(OSError):
                while data := await source.read(65536):
                    settled = loop.time() - began > STEADY_AFTER
                    late = self._random.uniform(self.least, self.late) if settled else 0.0
                    waiting.put_nowait((loop.time() + late, data))
            waiting.put_nowait((loop.time(), b""))
            with suppress(OSError):
                await delivering
        finally:
            delivering.cancel()
