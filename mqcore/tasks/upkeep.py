"""What a worker does for tasks beside running them: heartbeats, the relay, and recovery.

every 5 s    heartbeat: this worker is alive, and which of its runs are to be cancelled
every 2 s    relay: publishes what has been in the outbox for 2 s
every 15 s   recovery: publishes tasks again whose messages seem to be lost
every 60 s   removes tasks that ended longer than `result_ttl` ago
"""

from __future__ import annotations

import asyncio
import json
import math
from contextlib import suppress
from typing import TYPE_CHECKING

from mqcore.broker import session_of
from mqcore.errors import MqcoreError
from mqcore.log import log
from mqcore.tasks.model.changes import Recover
from mqcore.tasks.store.seam import Heartbeat

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mqcore.tasks.connected import Connected

__all__ = ["Upkeep"]

HEARTBEAT, RELAY, RECOVERY, PURGE = 5.0, 2.0, 15.0, 60.0
_LATE = 300.0
"""Seconds after which a task that should have been ready, and is not running, counts as lost.

A queue may have a backlog. A task that is published again before its turn is published once too
often; its second message finds that it runs, or has ended.
"""
_GAP, _STEADY = 10.0, 20.0
"""Seconds without a heartbeat after which this worker's view is not trusted, and until it is again.

After the store was away, workers that have not sent a heartbeat yet look dead.
"""
_MOST = 1_000
_COUNTS = ("started", "done", "retried", "postponed", "dead")
"""The events that a heartbeat counts, of all queues of the worker."""


class Upkeep:
    """The background work of one worker."""

    def __init__(self, connected: Connected) -> None:
        self._connected = connected
        self._hurry = asyncio.Event()
        self._beaten = self._steady_since = -math.inf
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def is_steady(self) -> bool:
        """Whether heartbeats have been regular for a while, so that others' are believed."""
        now = self._connected.clock.monotonic()
        return now - self._beaten <= _GAP and now - self._steady_since >= _STEADY

    async def start(self) -> None:
        """Send the first heartbeat, so that this worker counts as alive, and start the rest."""
        await self.beat()
        loop = asyncio.get_running_loop()
        for name, every, work in (
            ("heartbeat", HEARTBEAT, self.beat),
            ("relay", RELAY, self.relay),
            ("recovery", RECOVERY, self.recover),
            ("purge", PURGE, self.purge),
        ):
            self._tasks.append(loop.create_task(self._repeat(name, every, work)))

    async def stop(self) -> None:
        """End everything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def hurry(self) -> None:
        """Look now for runs that are to be cancelled."""
        self._hurry.set()

    async def _repeat(self, name: str, every: float, work: Callable[[], Awaitable[None]]) -> None:
        clock = self._connected.clock
        while True:
            if name != "heartbeat":
                await clock.sleep(every)
            else:
                with suppress(TimeoutError):
                    async with clock.timeout(every):
                        await self._hurry.wait()
                        self._hurry.clear()
            try:
                await work()
            except MqcoreError as error:
                log().warning("tasks: the %s failed, and is tried again: %s", name, error)
            except Exception:  # noqa: BLE001 - a defect of a driver must not end it for good
                log().exception("tasks: the %s failed, and is tried again", name)

    async def beat(self) -> None:
        """Store the heartbeat, and cancel what is to be cancelled."""
        connected = self._connected
        running, started = connected.runs.running, connected.clock.monotonic()
        beat = Heartbeat(connected.worker, info=json.dumps(self._info()).encode())
        asked = set(await connected.store.heartbeat(beat))
        if started - self._beaten > _GAP:
            self._steady_since = started
        self._beaten = started
        for run in list(running.values()):
            if run.context.id in asked and not run.is_cancelled:
                run.cancel()

        if leftovers := connected.runs.leftovers.due():
            await connected.writer.apply(*leftovers)
            connected.runs.leftovers.confirm(leftovers)

    def _info(self) -> dict[str, object]:
        """Return what `mqcore tasks inspect` shows of this worker."""
        connected = self._connected
        contexts = [run.context for run in connected.runs.running.values()]
        counts = session_of(connected.broker).events.counts
        return {
            "tasks": connected.tasks.name,
            "control": session_of(connected.broker).controlled,
            "queues": sorted(connected.tasks.queues),
            "active": [
                {"id": each.id, "name": each.name, "queue": each.queue, "attempt": each.attempt}
                for each in contexts
            ],
            "registered": sorted(connected.tasks.registered),
            "counts": {name: counts[f"message.{name}"] for name in _COUNTS},
        }

    async def relay(self) -> None:
        """Publish what others have left in the outbox."""
        connected = self._connected
        before = connected.clock.now() - RELAY
        pending = await connected.store.outbox(_MOST, before)
        if pending:
            await connected.writer.publish(await connected.writer.publish_entries(pending))

    async def recover(self) -> None:
        """Publish lost tasks again, and give up groups whose senders have died."""
        connected = self._connected
        if not self.is_steady:
            return
        before = connected.clock.now() - _LATE
        suspects = await connected.store.suspects(before)
        if suspects:
            await connected.writer.apply(*(Recover(node, before) for node in suspects))

    async def purge(self) -> None:
        """Remove what ended longer than `result_ttl` ago (T5)."""
        connected = self._connected
        await connected.store.purge(connected.clock.now() - connected.tasks.result_ttl, _MOST)
