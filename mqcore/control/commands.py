"""`Commands`: what a worker does for each command."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from mqcore.control.autoscale import Autoscaler
from mqcore.errors import ConfigurationError, MqcoreError
from mqcore.log import log
from mqcore.rules.checks import check_count, closest

if TYPE_CHECKING:
    from mqcore.clock import Clock

__all__ = ["Commands", "Controlled", "Extension", "such"]

Extension = Callable[[Mapping[str, Any]], Mapping[str, Any] | None]
"""A command of what accompanies the worker. It returns None when the command does not concern it,
and raises `ConfigurationError` for wrong arguments."""

_MOST = 1_000
"""The largest concurrency that a command may set."""
_SOON = 1.0
"""Seconds after which a consumer that is still being drained is answered as such."""


class Controlled(Protocol):
    """The worker, as commands see it."""

    recycle: bool
    is_shut_down: bool

    @property
    def queues(self) -> dict[str, int]:
        """The concurrency of each consumer."""

    @property
    def running(self) -> dict[str, int]:
        """How many handlers of each consumer run now."""

    @property
    def consumable(self) -> Sequence[str]:
        """The queues that it may consume."""

    async def resize(self, queue: str, concurrency: int, /) -> None:
        """Change the concurrency of a consumer."""

    async def add(self, queue: str, /) -> None:
        """Start to consume a queue."""

    async def remove(self, queue: str, /) -> None:
        """Stop to consume a queue."""

    def stop(self) -> None:
        """Begin to drain."""


class Commands:
    """Executes the commands to one worker."""

    def __init__(
        self,
        worker: Controlled,
        clock: Clock,
        facts: Mapping[str, Any],
        extensions: Mapping[str, Sequence[Extension]],
    ) -> None:
        """`facts` are answered to a ping. `extensions` are commands of what accompanies it."""
        self.autoscaler = Autoscaler(worker, clock)
        self._worker = worker
        self._clock = clock
        self._began = clock.monotonic()
        self._facts = facts
        self._extensions = extensions
        self._removing: set[asyncio.Task[None]] = set()
        self._own: dict[str, Callable[..., Awaitable[Mapping[str, Any]]]] = {
            "ping": self._ping,
            "grow": self._grow,
            "shrink": self._shrink,
            "autoscale": self._autoscale,
            "add_consumer": self._add,
            "cancel_consumer": self._cancel,
            "recycle": self._recycle,
            "shutdown": self._shutdown,
        }

    async def execute(self, name: str, arguments: Mapping[str, Any]) -> Mapping[str, Any]:
        """Execute a command, and return its answer.

        Raises `ConfigurationError` for a command that does not exist and for wrong arguments.
        """
        own, extensions = self._own.get(name), self._extensions.get(name, ())
        if own is None and not extensions:
            known = sorted({*self._own, *self._extensions})
            raise ConfigurationError(
                f"this worker knows no command {name!r:.60}{such(name, known)}"
            )
        log().info("command %s %s", name, dict(arguments))
        if own is not None:
            try:
                return await own(**arguments)
            except TypeError as error:
                raise ConfigurationError(f"command {name!r}: wrong arguments: {error}") from error
        answers = [extension(arguments) for extension in extensions]
        for answer in answers:
            if answer is not None:
                return answer
        raise ConfigurationError(
            f"command {name!r}: this worker has no task named {arguments.get('task')!r:.100}"
        )

    async def _ping(self) -> Mapping[str, Any]:
        return {
            **self._facts,
            "pid": os.getpid(),
            "python": platform.python_version(),
            "uptime": round(self._clock.monotonic() - self._began, 1),
            "queues": self._worker.queues,
            "running": self._worker.running,
            "autoscale": {queue: list(each) for queue, each in self.autoscaler.bounds.items()},
        }

    async def _grow(self, count: int = 1, queue: str | None = None) -> Mapping[str, Any]:
        check_count("count", count, "command 'grow'")
        return await self._resize_by(count, queue)

    async def _shrink(self, count: int = 1, queue: str | None = None) -> Mapping[str, Any]:
        check_count("count", count, "command 'shrink'")
        return await self._resize_by(-count, queue)

    async def _resize_by(self, change: int, queue: str | None) -> Mapping[str, Any]:
        """Change the concurrency of a consumer, or of all; one place is left at least."""
        chosen = self._chosen(queue)
        for name in chosen:
            self.autoscaler.leave(name)
            size = min(max(self._worker.queues[name] + change, 1), _MOST)
            await self._worker.resize(name, size)
        return {"queues": self._worker.queues}

    async def _autoscale(
        self, low: int | None = None, high: int | None = None, queue: str | None = None
    ) -> Mapping[str, Any]:
        chosen = self._chosen(queue)
        if low is None or high is None:
            for name in chosen:
                self.autoscaler.leave(name)
            return {"queues": self._worker.queues, "autoscale": None}

        check_count("low", low, "command 'autoscale'")
        check_count("high", high, "command 'autoscale'")
        if not low <= high <= _MOST:
            raise ConfigurationError(
                f"command 'autoscale': {low} to {high} is not a range of at most {_MOST}"
            )
        for name in chosen:
            self.autoscaler.keep(name, low, high)
        await self.autoscaler.adjust()
        return {"queues": self._worker.queues, "autoscale": [low, high]}

    def _chosen(self, queue: str | None) -> Sequence[str]:
        queues = self._worker.queues
        if queue is None:
            return list(queues)
        if queue not in queues:
            raise ConfigurationError(
                f"this worker does not consume queue {queue!r:.100}{such(queue, queues)}"
            )
        return [queue]

    async def _add(self, queue: str) -> Mapping[str, Any]:
        consumable = self._worker.consumable
        if queue not in consumable:
            raise ConfigurationError(
                f"this worker's app has no consumer for queue {queue!r:.100}"
                f"{such(queue, consumable)}"
            )
        await self._worker.add(queue)
        return {"queues": self._worker.queues}

    async def _cancel(self, queue: str) -> Mapping[str, Any]:
        (name,) = self._chosen(queue)
        self.autoscaler.leave(name)
        removing = asyncio.create_task(self._worker.remove(name))
        self._removing.add(removing)
        removing.add_done_callback(self._removed)
        await asyncio.wait([removing], timeout=_SOON)
        if not removing.done():
            return {"queues": self._worker.queues, "draining": name}
        removing.result()
        return {"queues": self._worker.queues}

    def _removed(self, removing: asyncio.Task[None]) -> None:
        self._removing.discard(removing)
        if not removing.cancelled() and isinstance(error := removing.exception(), MqcoreError):
            log().warning("command cancel_consumer: %s", error)

    async def _recycle(self) -> Mapping[str, Any]:
        self._worker.recycle = True
        return self._stop()

    async def _shutdown(self) -> Mapping[str, Any]:
        self._worker.is_shut_down = True
        return self._stop()

    def _stop(self) -> Mapping[str, Any]:
        """Drain, after the answer is on its way."""
        asyncio.get_running_loop().call_later(0.0, self._worker.stop)
        return {"draining": sorted(self._worker.queues), "running": self._worker.running}


def such(name: str, known: Collection[str]) -> str:
    """Return what to add to the error about a name: the closest one that exists, and all."""
    close = closest(name, known)
    hint = f"; did you mean {close!r}?" if close else "."
    return f"{hint} There is: {', '.join(sorted(known)) or 'none'}"
