"""`Supervisor`: N processes of one worker command, kept alive until a stop.

It knows nothing of messages. Each place has a process, its exit code says what comes next: a worker
that died is started again after a wait that grows while it keeps dying, one that recycled itself
(`RECYCLE`) at once, and one that cannot start as it is configured ends them all. SIGTERM and SIGINT
are passed on, the workers drain (G13), and a worker that is late is killed.

Each process leads a group of its own, so that Ctrl-C on a terminal reaches it once, through here.
Its standard input is a pipe that ends when the supervisor does, however that came about: a worker
that looks at it need not outlive its supervisor.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mqcore.clock import Clock, SystemClock
from mqcore.defaults import GRACE
from mqcore.errors import ConfigurationError
from mqcore.log import log
from mqcore.rules.checks import check_count, check_seconds
from mqcore.rules.retry import exponential
from mqcore.running.process_slot import describe_exit
from mqcore.running.signals import call_at_stop_signals
from mqcore.running.threads import ThreadPool

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MISCONFIGURED", "RECYCLE", "SHUT_DOWN", "Supervisor", "resident_memory"]

MISCONFIGURED = 2
"""Exit code of a worker that cannot start as it is configured."""
RECYCLE = 75
"""Exit code of a worker that has drained and wants a fresh process (EX_TEMPFAIL)."""
SHUT_DOWN = 76
"""Exit code of a worker that has drained for good, because of a command."""
_HEALTHY = 60.0
"""Seconds after which a death is not taken for one of a series."""
_BACKOFF = exponential(0.5, cap=30.0)
_LATE = 1.0
"""Seconds between the end of the grace, or the second signal, and the kill."""
_GONE = 2.0
"""Seconds that a killed process may take to disappear."""
_STATM = Path("/proc/self/statm")


class Supervisor:
    """Runs `processes` copies of `command`; each is started again when it ends, until `stop`.

    `grace` is what the workers take at most to drain, in seconds. Raises `ConfigurationError` for
    figures that make no sense.
    """

    def __init__(
        self,
        command: Sequence[str],
        processes: int,
        *,
        grace: float = GRACE,
        clock: Clock | None = None,
    ) -> None:
        if not command:
            raise ConfigurationError(
                "supervisor: the command is empty; give the words that start a worker"
            )

        check_count("processes", processes, "supervisor")
        check_seconds("grace", grace, "supervisor", zero=True)
        self._command = list(command)
        self._processes = processes
        self._grace = grace
        self._clock = clock or SystemClock()
        self._threads = ThreadPool(processes, "mqcore-supervisor")
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._code = 0
        self._lifeline = -1

    @property
    def pids(self) -> list[int]:
        """The ids of the processes that run now."""
        return [process.pid for process in self._running.values()]

    async def run(self) -> int:
        """Keep the workers running until `stop`, SIGTERM or SIGINT; return this process' exit code.

        0 when all have drained, 1 when one had to be killed or failed while draining, 2 when one
        could not start as it is configured (what it wrote is on standard error). Called on the main
        thread, once. When cancelled, the workers are killed.
        """
        loop = asyncio.get_running_loop()
        with ExitStack() as stack:
            self._lifeline, ours = os.pipe()
            stack.callback(os.close, self._lifeline)
            stack.callback(os.close, ours)
            stack.callback(self._threads.close)
            stack.enter_context(call_at_stop_signals(self.stop, loop))
            async with asyncio.TaskGroup() as group:
                places = [group.create_task(self._keep(place)) for place in range(self._processes)]
                limit = asyncio.create_task(self._limit(places))
                stack.callback(limit.cancel)
        return self._code

    def stop(self) -> None:
        """Let the workers drain, and `run` return when they have.

        Called again: let them end at once.
        """
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)

    async def _keep(self, place: int) -> None:
        """Have a process in one place until it is time to stop."""
        deaths = 0
        while not self._stopping.is_set():
            began = self._clock.monotonic()
            code = await self._one(place)
            healthy = self._clock.monotonic() - began >= _HEALTHY
            if self._stopping.is_set():
                self._note_drained(place, code)
                return
            if code == MISCONFIGURED and not healthy:
                log().error(
                    "worker %d cannot start as it is configured; what it wrote above says why",
                    place,
                )
                self._code = MISCONFIGURED
                self.stop()
                return
            if code == SHUT_DOWN:
                log().info("worker %d was shut down by a command", place)
                return
            if code == RECYCLE:
                log().info("worker %d asked for a fresh process", place)
                continue
            deaths = 1 if healthy else deaths + 1
            wait = _BACKOFF.wait(deaths, random.random())
            log().error(
                "worker %d ended: %s; the next is started in %.1f s",
                place,
                describe_exit(code),
                wait,
            )
            with suppress(TimeoutError):
                async with self._clock.timeout(wait):
                    await self._stopping.wait()

    async def _one(self, place: int) -> int | None:
        """Run one process to its end; return its exit code, None when it could not be started."""
        try:
            process = subprocess.Popen(self._command, stdin=self._lifeline, process_group=0)  # noqa: ASYNC220, S603 - it returns at once; the command is the operator's own
        except (FileNotFoundError, PermissionError) as error:
            log().error("worker %d cannot be started: %s", place, error)
            return MISCONFIGURED
        except OSError as error:
            log().error("worker %d could not be started: %s", place, error)
            return None

        self._running[place] = process
        log().info("worker %d is process %d", place, process.pid)

        try:
            return await self._threads.run(process.wait)
        finally:
            if process.poll() is None:
                process.kill()  # the wait was cancelled; its thread sees the end
            del self._running[place]

    async def _limit(self, places: Sequence[asyncio.Task[None]]) -> None:
        """After a stop, kill workers that are late, and do not wait for what cannot be killed."""
        await self._stopping.wait()
        with suppress(TimeoutError):
            async with self._clock.timeout(self._grace + _LATE):
                await self._hurry.wait()
                await self._clock.sleep(_LATE)

        for place, process in self._running.items():
            log().error(
                "worker %d (process %d) did not end in time and is killed", place, process.pid
            )
            process.kill()

        await self._clock.sleep(_GONE)
        self._code = self._code or 1
        for task in places:
            task.cancel()

    def _note_drained(self, place: int, code: int | None) -> None:
        """Once it is time to stop.

        A worker that SIGTERM killed had not come as far as to look at signals.
        """
        if code not in {0, RECYCLE, SHUT_DOWN, -signal.SIGTERM}:
            log().error("worker %d ended while draining: %s", place, describe_exit(code))
            self._code = self._code or 1


def resident_memory() -> int | None:
    """Return the memory of this process in bytes; None on a system without /proc."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
