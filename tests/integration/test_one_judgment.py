"""What a handler raises means the same in loop, thread and process (G4, G10, G11)."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from support import processed
from support.processed import RAISED, raised, raises
from support.waiting import eventually

from mqcore import App, Broker, Settings, Worker


async def coroutine(what: str) -> None:
    raises(what)


def in_a_thread(what: str) -> None:
    raises(what)


async def in_a_task_group(what: str) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(coroutine(what))
        group.create_task(asyncio.sleep(60))


@pytest.mark.parametrize(
    "handler",
    [coroutine, in_a_thread, in_a_task_group, None],
    ids=["async", "thread", "task group", "process"],
)
async def test_what_a_handler_raises_means_the_same_everywhere(
    url: str, handler: Callable[[str], Awaitable[None] | None] | None
) -> None:
    app = processed.app
    if handler is not None:
        app = App("test")
        app.register(raised, handler, {})

    wanted = {what: (reason, attempts) for what, (_, reason, attempts) in RAISED.items()}
    if handler is in_a_task_group:
        del wanted["exit"]  # asyncio itself lets SystemExit out of a task's task end the event loop

    async def all_dead() -> bool:
        return (await broker.counts("raised.dlq"))[0].ready == len(wanted)

    async with Broker.connect(url, settings=Settings()) as broker:
        async with Worker(app, broker, queues=["raised"], grace=0):
            await broker.publish_many(raised, list(wanted))
            await eventually(all_dead, within=30)
        letters = await broker.dead_letters(raised).list()
    assert {letter.body.decode(): (letter.reason, letter.attempts) for letter in letters} == wanted
