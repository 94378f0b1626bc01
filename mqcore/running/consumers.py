"""The consumers of a running worker: they are resized, added and removed, one change at a time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mqcore.consuming.grace import Grace
from mqcore.errors import ConfigurationError
from mqcore.log import log
from mqcore.queue import queue_name
from mqcore.rules.capabilities import Capability
from mqcore.rules.checks import check_count

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mqcore.clock import Clock
    from mqcore.queue import Queue
    from mqcore.rules.capabilities import Capabilities
    from mqcore.running.handlers import HandlerSpec
    from mqcore.running.runner import Runner

__all__ = ["Consumers", "warn_of_long_hold"]


class Consumers:
    """Changes the list of a worker's runners."""

    def __init__(
        self,
        where: str,
        clock: Clock,
        specs: list[HandlerSpec],
        runners: list[Runner],
        beside: list[Runner],
        make: Callable[[HandlerSpec], Awaitable[Sequence[Runner]]],
        launch: Callable[[Sequence[Runner]], None],
    ) -> None:
        """`where` names the worker in errors, and `specs` are what it consumes, or tries to.

        `runners` consume the broker, those in `beside` a spool. `make` makes the runner of a
        consumer, and one for its spool if that is consumed; `launch` lets them run.
        """
        self.is_open = False
        """Whether the worker runs, so that its consumers may be changed."""
        self.removed = 0
        """Runs of handlers whose consumers were removed: `max_messages` does not forget them."""
        self._where = where
        self._clock = clock
        self._specs = specs
        self._runners = runners
        self._beside = beside
        self._make = make
        self._launch = launch
        self._changing = asyncio.Lock()
        self._removing: set[asyncio.Task[None]] = set()

    @property
    def queues(self) -> dict[str, int]:
        """The concurrency of each consumer, by the name of its queue."""
        return {runner.spec.queue.name: runner.spec.concurrency for runner in self._runners}

    async def resize(
        self,
        queue: Queue[Any] | str,
        concurrency: int,
        prefetch: int | None,
        check: Callable[[HandlerSpec], None],
    ) -> None:
        """Resize the consumer of a queue; `check` may warn of the new one."""
        where = f"{self._where}: resizing queue {queue_name(queue, self._where)!r}"
        check_count("concurrency", concurrency, where)
        check_count("prefetch", 1 if prefetch is None else prefetch, where)

        async with self._changing:
            runner = self._find(queue_name(queue, self._where), where)
            spec = runner.spec.with_concurrency(concurrency)
            if prefetch is not None:
                spec = replace(spec, prefetch=max(prefetch, spec.batch))
            check(spec)
            await runner.resize(spec.concurrency, spec.prefetch)

    async def add(self, spec: HandlerSpec) -> None:
        """Add a consumer, unless the queue is consumed already."""
        async with self._changing:
            self._check_open(f"{self._where}: adding queue {spec.queue.name!r}")
            if spec.queue.name in self.queues:
                return

            made = await self._make(spec)
            runner, *beside = made
            self._runners.append(runner)
            self._beside += beside
            try:
                for each in made:
                    await each.start()
            except BaseException:
                self._forget(made)
                await self._drain(made, 0.0)
                raise
            self._launch(made)
            self._specs.append(spec)
            if not self.is_open:  # the worker was stopped meanwhile, and may not have seen this one
                await self._drain(made, 0.0)

    async def _drain(self, runners: Sequence[Runner], grace: float) -> None:
        until = Grace(self._clock, grace)
        await asyncio.gather(*(runner.drain(until) for runner in runners))

    def _forget(self, runners: Sequence[Runner]) -> None:
        for runner in runners:
            (self._beside if runner in self._beside else self._runners).remove(runner)

    async def remove(self, name: str, grace: float) -> None:
        """Drain and forget the consumer of a queue, and that of its spool.

        When the caller is cancelled, this goes on: a consumer is removed whole.
        """
        removing = asyncio.create_task(self._remove(name, grace))
        self._removing.add(removing)
        removing.add_done_callback(self._removing.discard)
        await asyncio.shield(removing)

    async def _remove(self, name: str, grace: float) -> None:
        async with self._changing:
            self._check_open(f"{self._where}: removing queue {name!r}")
            runners = (*self._runners, *self._beside)
            found = [runner for runner in runners if runner.spec.queue.name == name]
            await self._drain(found, grace)

            self._forget(found)
            self.removed += sum(runner.handled for runner in found)
            self._specs[:] = [spec for spec in self._specs if spec.queue.name != name]

    def _find(self, name: str, where: str) -> Runner:
        self._check_open(where)
        for runner in self._runners:
            if runner.spec.queue.name == name:
                return runner
        raise ConfigurationError(
            f"{where}: this worker does not consume it. It consumes "
            f"{', '.join(sorted(self.queues)) or 'nothing'}; see Worker.add"
        )

    def _check_open(self, where: str) -> None:
        if not self.is_open:
            raise ConfigurationError(f"{where}: the worker is not running, or its broker is away")


def warn_of_long_hold(spec: HandlerSpec, capabilities: Capabilities) -> None:
    """Warn when messages may be held for longer than the broker allows.

    The broker would then end the consumer and take its messages from running handlers.
    """
    limit = capabilities[Capability.LEASE].limits.get("held_at_most")
    if isinstance(limit, int | float) and spec.longest_hold > limit:
        log().warning(
            "handler %s of queue %r may hold a message for %g s (prefetch %d, concurrency %d, "
            "timeout %s), and %s ends a consumer that holds one for %g s. Give it a shorter "
            "timeout or a smaller prefetch",
            spec.name,
            spec.queue.name,
            spec.longest_hold,
            spec.prefetch,
            spec.concurrency,
            spec.timeout,
            capabilities.server,
            limit,
        )
