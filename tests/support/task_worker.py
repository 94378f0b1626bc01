"""A worker on a task store alone, which its test kills: `python … URL NAME`.

It takes from the outbox what others take from a broker. It removes the entry when it begins a task,
so a worker that is killed between that and the end leaves a task which only the heartbeat shows to
be lost. Each ending is a line of the output.
"""

import asyncio
import random
import sys
import time

from mqcore.config.url import BrokerUrl
from mqcore.tasks.model.changes import Begin, Change, End, Recover, Sent, Spread
from mqcore.tasks.model.outcomes import Ended, Started
from mqcore.tasks.model.states import State
from mqcore.tasks.store.plugins import default_store_plugins
from mqcore.tasks.store.seam import Heartbeat, TaskStore

AT_ONCE = 20
ALIVE = 1.0
"""Seconds after its last heartbeat during which a worker counts as alive."""
LATE = 3.0
"""Seconds after which a task that should have been ready counts as lost."""


async def main(url: str, name: str) -> None:
    """Work until a signal comes."""
    store = default_store_plugins().store_for(BrokerUrl(url).scheme)(url)
    await store.open()
    number = 0
    while True:
        number += 1
        await store.heartbeat(Heartbeat(name, ALIVE))
        before = time.time() - LATE
        lost = [Recover(node, before) for node in await store.suspects(before)]
        await store.apply(lost)
        await work(store, name, number)


async def work(store: TaskStore, name: str, number: int) -> None:
    """Take some of the outbox, at random: others take the rest."""
    pending = [item.entry for item in await store.outbox(200)]
    some = random.sample(pending, min(AT_ONCE, len(pending)))
    slices = [Spread(it.node, it.start) for it in some if it.start is not None]
    messages = [it for it in some if it.start is None]
    token = f"{name}-{number}"

    begins: list[Change] = [Begin(it.node, it.run, 1, token, name) for it in messages]
    changes = [*begins, *slices, Sent([it.key for it in messages])]
    outcomes = (await store.apply(changes)).outcomes
    started = [
        it for it, outcome in zip(messages, outcomes, strict=False) if isinstance(outcome, Started)
    ]
    await asyncio.gather(*(end(store, it.node, token) for it in started))


async def end(store: TaskStore, node: str, token: str) -> None:
    """End one task, and say so."""
    applied = await store.apply([End(node, 0, token, State.SUCCEEDED, node.encode())])
    if applied.outcomes == [Ended()]:
        sys.stdout.write(f"{node}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
