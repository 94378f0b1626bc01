"""A process that runs the tasks of a store until it is killed: its outbox is the queue.

It prints a line before each step, so that the one who kills it can choose the moment.
"""

from __future__ import annotations

import asyncio
import random
import sys
from typing import TYPE_CHECKING

from mqcore.config.url import BrokerUrl
from mqcore.messages.message import new_id
from mqcore.tasks.model.changes import Begin, Change, End, Recover, Sent, Spread
from mqcore.tasks.model.outcomes import Ended, Started
from mqcore.tasks.model.states import State
from mqcore.tasks.store.plugins import default_store_plugins
from mqcore.tasks.store.seam import Heartbeat

if TYPE_CHECKING:
    from mqcore.tasks.store.seam import Applied, Pending, TaskStore

__all__ = ["SLICE", "TTL", "TaskProcess", "opened"]

SLICE = 5
TTL = 0.5
"""Seconds after which a worker without a heartbeat counts as dead."""


async def opened(url: str) -> TaskStore:
    """Return the open store of a URL, which treats large groups in small slices."""
    store = default_store_plugins().store_for(BrokerUrl(url).scheme)(url, slice_size=SLICE)
    await store.open()
    return store


class TaskProcess:
    """Relay, worker and reconciler in one."""

    def __init__(self, store: TaskStore, seed: int) -> None:
        """Take the name of a worker."""
        self.store = store
        self.worker = new_id()
        self.choose = random.Random(seed)

    def step(self, *words: object) -> None:
        """Print what comes next."""
        sys.stdout.write(" ".join(map(str, words)) + "\n")
        sys.stdout.flush()

    async def apply(self, *changes: Change) -> Applied:
        """Make changes; print what they did, of which nothing may happen twice."""
        self.step("apply")
        applied = await self.store.apply(changes)
        for change, outcome in zip(changes, applied.outcomes, strict=True):
            if isinstance(change, End) and outcome == Ended():
                self.step("ended", change.task)
        for key in applied.keys:
            self.step("made", key)
        return applied

    async def turn(self) -> int:
        """Run what is in the outbox, and publish what was lost again; return how much it was."""
        await self.store.heartbeat(Heartbeat(self.worker, TTL))
        entries = list(await self.store.outbox(limit=20))
        self.choose.shuffle(entries)
        await asyncio.gather(*map(self.handle, entries))

        (beat,) = [it for it in await self.store.workers() if it.worker == self.worker]
        lost = await self.store.suspects(beat.at - 2 * TTL)
        if lost:
            await self.apply(*[Recover(node, beat.at - 2 * TTL) for node in lost])
        return len(entries) + len(lost)

    async def handle(self, pending: Pending) -> None:
        """Do what an outbox entry asks for. A process that dies after `Sent` loses the message."""
        entry = pending.entry
        if entry.start is not None:
            await self.apply(Spread(entry.node, entry.start))
            return
        await self.apply(Sent([entry.key]))
        token = new_id()
        begun = await self.apply(Begin(entry.node, entry.run, 1, token, self.worker))
        if isinstance(begun.outcomes[0], Started):
            await self.apply(End(entry.node, entry.run, token, State.SUCCEEDED, b"result"))


async def main(url: str, seed: int) -> None:
    """Run until a signal ends it."""
    process = TaskProcess(await opened(url), seed)
    while True:
        await process.turn()
        process.step("turn")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
