"""Mutants that leave something in the process after a close, or in the broker afterwards."""

from __future__ import annotations

import asyncio
import atexit
import socket
import threading
from collections.abc import Callable

from mutants.mutant import mutant
from mutants.silence import NetBackend

from mqcore.spi import Capabilities, ConnectionLost
from mqcore_memory.queue import Copy, MemoryQueue
from mqcore_memory.store import MemoryStore

_CLOSED = "leftovers.nothing_of_an_instance_is_left_after_its_close"
_REFUSED = "leftovers.an_address_where_nobody_listens_is_an_error_soon"
_SETTLED = "leftovers.nothing_that_was_settled_is_left_in_the_broker"


async def watch_the_peer() -> None:
    """Wait as a watchdog does."""
    await asyncio.Event().wait()


@mutant("G14", _CLOSED)
class LeavesATask(NetBackend):
    """The watchdog of a connection is not ended by its close."""

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        self.watchdog = asyncio.create_task(watch_the_peer())
        return await super().open(lost)


@mutant("G14", _CLOSED)
class LeavesAThread(NetBackend):
    """The thread that reads is not ended by the close."""

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        threading.Thread(
            target=threading.Event().wait, args=(5.0,), name="reader", daemon=True
        ).start()
        return await super().open(lost)


@mutant("G14", _CLOSED)
class LeavesASocket(NetBackend):
    """The second connection, for publishing, is not closed."""

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        for end in socket.socketpair():
            atexit.register(end.close)
        return await super().open(lost)


@mutant("G14", "leftovers.nothing_is_left_of_an_open_that_was_cancelled")
class ACancelledOpenLeavesATask(NetBackend):
    """`close` does not know what an unfinished `open` has started."""

    watchdog: asyncio.Task[None] | None = None

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        watchdog = asyncio.create_task(watch_the_peer())
        await asyncio.sleep(0)
        capabilities = await super().open(lost)
        self.watchdog = watchdog
        return capabilities

    async def close(self) -> None:
        if self.watchdog is not None:
            self.watchdog.cancel()
        await super().close()


@mutant("G14", _REFUSED)
class AsksAClosedPortForEver(NetBackend):
    """The driver retries a refused connection again and again."""

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        while True:
            try:
                return await super().open(lost)
            except ConnectionLost:
                await self._clock.sleep(0.5)


@mutant("G14", _REFUSED)
class ARefusalLeavesATask(NetBackend):
    """A failed open does not undo what it has started."""

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        watchdog = asyncio.create_task(watch_the_peer())
        capabilities = await super().open(lost)
        watchdog.cancel()
        return capabilities


@mutant("G2", _SETTLED)
class KeepsWhatIsSettled(MemoryQueue):
    """A settled message is marked, and stays in the store."""

    def remove(self, copy: Copy) -> None:
        super().remove(copy)
        self.__dict__.setdefault("done", []).append(copy)


@mutant("G2", _SETTLED)
class ADeleteLeavesAPlace(MemoryStore):
    """A deleted queue cannot be reached, and stays in the store."""

    def _remove(self, queue: MemoryQueue) -> None:
        super()._remove(queue)
        self.__dict__.setdefault("removed", {})[queue.spec.name] = queue
