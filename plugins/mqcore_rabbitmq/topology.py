"""What one open instance knows of queues and routers.

    layout(queue) ─► own temporary queue or `mq.lost` │ from the registry │ None: a foreign queue

This may be out of date, because others delete and declare too. A message that finds no queue shows
it: the instance asks again before the next one.
"""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import inf
from time import monotonic

from pika import spec

from mqcore.spi import Alterations, ConfigurationError, not_alterable
from mqcore_rabbitmq.confirms import PlannedMessage
from mqcore_rabbitmq.errors import missing
from mqcore_rabbitmq.ladder import exit_to, rungs
from mqcore_rabbitmq.layout import ALTERABLE, LOST, PARKED, Layout, compare
from mqcore_rabbitmq.plan import EXIT, LADDER
from mqcore_rabbitmq.registry import Registry, record_of
from mqcore_rabbitmq.rpc import Rpc

__all__ = ["Topology"]

_CANCELS_WITHIN = 0.5
"""Seconds in which RabbitMQ cancels the consumers of a deleted quorum queue.

If the queue is declared again sooner, its channel keeps these consumers, and messages to them never
arrive (seen on 3.10, also with pika alone).
"""
_FORGET = 2.0
"""Seconds for which an unknown queue counts as foreign without asking again."""


class Topology:
    """Queues and routers as one open instance sees them."""

    def __init__(self, rpc: Rpc, registry: Registry) -> None:
        self.rpc = rpc
        self.registry = registry
        self._own: dict[str, Layout] = {LOST: PARKED}
        """Queues that are not in the registry: own temporary ones, and `mq.lost`."""
        self._there: set[tuple[str, str]] = set()
        """Ladders, bindings to their exit and exchanges that exist."""
        self._look_at: dict[str, float] = {}
        """When to ask again: at once for doubtful queues, later for unknown ones."""
        self._missing: dict[str, float] = {}
        """When a message found these queues missing."""
        self._fresh = False
        self._lock = asyncio.Lock()

    def layout(self, queue: str) -> Layout | None:
        """Return the layout of a queue as far as it is known; None for a foreign queue."""
        return self._own.get(queue) or self.registry.picture.queues.get(queue)

    def is_own(self, queue: str) -> bool:
        """Whether it is a temporary queue of this instance."""
        return queue in self._own and queue != LOST

    def ttl(self, queue: str) -> float | None:
        """Return the ttl of a queue as far as it is known."""
        layout = self.layout(queue)
        return layout.spec.ttl if layout is not None else None

    # Finding out

    def knows(self, queues: Iterable[str]) -> bool:
        """Whether a publish to these queues needs no request first."""
        return self._fresh and not self._unknown(queues)

    async def look_up(self, *queues: str) -> None:
        """Ask for the queues among these that are not known."""
        if not self.knows(queues):
            await self.refresh(self._unknown(queues))

    def _unknown(self, queues: Iterable[str]) -> list[str]:
        now, known = monotonic(), self._look_at
        return [
            it for it in queues if known.get(it, 0.0 if self.layout(it) is None else inf) <= now
        ]

    async def refresh(self, queues: Sequence[str] = ()) -> None:
        """Read what others have declared, and note which of these queues are still unknown."""
        began = monotonic()
        await self.registry.refresh()
        self._fresh = True
        self._look_at = {name: at for name, at in self._look_at.items() if at > began}
        self._look_at |= {queue: began + _FORGET for queue in queues if self.layout(queue) is None}

    async def ensure(self, kind: str, name: str) -> bool:
        """Whether a ladder, a binding to the exit or an exchange exists.

        A missing ladder or binding is created where possible.
        """
        if (kind, name) in self._there:
            return True
        if kind == LADDER:
            async with self._lock:
                if (kind, name) not in self._there:
                    await self.rpc.run(*rungs(name))
        elif not await self.rpc.has(
            exit_to(name) if kind == EXIT else spec.Exchange.Declare(exchange=name, passive=True)
        ):
            return False
        self._there.add((kind, name))
        return True

    def mark_doubtful(self, sending: PlannedMessage) -> None:
        """Note that this message found no queue: ask again for its destination."""
        self._look_at[sending.queue] = self._missing[sending.queue] = monotonic()
        layout = self.layout(sending.queue)
        self._there.difference_update(
            sending.needs, _exits(layout.queues if layout else [sending.queue])
        )

    def was_missing(self, queue: str) -> bool:
        """Whether a message of this instance has found no queue of this name."""
        return queue in self._missing

    def forget_missing(self, queues: Iterable[str]) -> None:
        """Trust these queues again, until a message does not find them."""
        for queue in queues:
            self._missing.pop(queue, None)

    # Declaring

    async def declare(self, layouts: Sequence[Layout]) -> None:
        """Declare queues and record them for others. Raises `TopologyMismatch`."""
        own = {layout.name: layout for layout in layouts if layout.spec.role == "temporary"}
        lasting = [layout for layout in layouts if layout.name not in own]
        if lasting:
            await self.refresh()
            lasting = [await self._reconciled(layout) for layout in lasting]
        await self._let_consumers_end(lasting)
        await self.rpc.declare([*lasting, *own.values()])
        self._own |= own
        known = self.registry.picture.queues
        await self.registry.append(
            [layout.record() for layout in lasting if known.get(layout.name) != layout]
        )

    async def _let_consumers_end(self, layouts: Sequence[Layout]) -> None:
        """Wait until the broker has cancelled the consumers of quorum queues that were missing."""
        found = [self._missing.pop(layout.name, -inf) for layout in layouts if layout.quorum]
        wait = max(found, default=-inf) + _CANCELS_WITHIN - monotonic()
        if wait > 0:
            await asyncio.sleep(wait)

    async def alter(self, queue: str, settings: Alterations) -> None:
        """Record settings that mqcore itself applies.

        Raises `QueueNotFound`, and `TopologyMismatch` for settings that RabbitMQ cannot change.
        """
        await self.refresh()
        have = self.registry.picture.queues.get(queue)
        if not await self.rpc.counts([queue]):
            raise missing(queue)
        if have is None:
            raise ConfigurationError(
                f"queue {queue!r} was not declared by mqcore, so mqcore cannot alter its settings"
            )
        for setting, value in settings.items():
            if setting not in ALTERABLE and (old := getattr(have.spec, setting)) != value:
                raise not_alterable(queue, setting, old, value)
        altered = replace(have, spec=replace(have.spec, **settings))
        if altered != have:
            await self.registry.append([altered.record()])

    async def _reconciled(self, want: Layout) -> Layout:
        """Return the layout that others have declared, if it is as wanted or better."""
        have = self.registry.picture.queues.get(want.name)
        if have is None or have == want:
            return want
        try:
            compare(have, want)
        except ConfigurationError:
            if await self.rpc.counts([have.name]):
                raise
            return want  # deleted without mqcore: the registry is out of date
        return have

    async def forget(self, queues: Sequence[str]) -> None:
        """Remove deleted queues, for others too."""
        self._there.difference_update(_exits(queues))
        for queue in queues:
            self._own.pop(queue, None)
        picture, owner = self.registry.picture, self.registry.owner
        await self.registry.append(
            [
                *({"gone": queue} for queue in queues if queue in picture.queues),
                *(
                    {"unbind": record_of(binding), "owner": owner}
                    for binding, its_owner in picture.passing.items()
                    if its_owner == owner and binding.queue in queues
                ),
            ]
        )


def _exits(queues: Iterable[str]) -> set[tuple[str, str]]:
    return {(EXIT, queue) for queue in queues}
