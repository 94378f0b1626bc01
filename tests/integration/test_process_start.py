"""A handler process that cannot start costs no attempt, and no drain waits for it."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support import processed
from support.processed import Deed, deeds, plain

from mqcore import Broker, ConfigurationError, RemoteError, Settings, SystemClock, Worker
from mqcore.config.plugins import default_plugins
from mqcore.running.executors import executor_for


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():  # noqa: ASYNC110 - what it waits for happens in another process
            await asyncio.sleep(0.005)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


async def test_a_process_that_does_not_come_up_again_costs_no_attempt_and_no_time_at_the_end(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = tmp_path / "seen"
    async with Broker.connect(url, settings=Settings()) as broker:
        worker = Worker(processed.app, broker, queues=["deeds"])
        await worker.start()
        monkeypatch.setenv(
            "MQCORE_TEST_DIE", "1"
        )  # every process from now on dies while it imports its handlers
        await broker.publish(deeds, Deed(what="exit", path=str(seen)))
        await until(lambda: broker.health().counts.get("message.retried") == 1)
        await asyncio.sleep(0.3)
        began = time.monotonic()
        await worker.drain(0)
        assert time.monotonic() - began < 5
        (entry,) = await broker.peek(deeds)
    assert len(lines(seen)) == 1
    assert (entry.state, entry.message.attempt) == ("ready", 2)


async def test_each_message_that_is_handed_out_finds_its_process_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[object] = []

    class Slot:
        def __init__(self, *_: object) -> None:
            """As a `ProcessSlot`."""

        async def start(self) -> None:
            if self not in started:
                started.append(self)

    monkeypatch.setattr("mqcore.running.executors.ProcessSlot", Slot)
    [spec] = [spec for spec in processed.app.handlers if spec.queue.name == "deeds"]
    executor = executor_for(
        replace(spec, concurrency=3), SystemClock(), default_plugins().codecs([]), lambda: None
    )
    await executor.ready(0)
    assert len(started) == 1
    await executor.ready(1)  # its run has not begun: the next message needs a second process
    assert len(started) == 2
    await executor.ready(0)
    assert len(started) == 2


async def test_a_shrink_closes_a_slot_that_a_message_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slot:
        def __init__(self, *_: object) -> None:
            self.closed = asyncio.Event()

        async def start(self) -> None:
            await self.closed.wait()
            raise RuntimeError("the process slot is closed")

        async def close(self) -> None:
            self.closed.set()

    monkeypatch.setattr("mqcore.running.executors.ProcessSlot", Slot)
    [spec] = [spec for spec in processed.app.handlers if spec.queue.name == "deeds"]
    executor: Any = executor_for(
        replace(spec, concurrency=2), SystemClock(), default_plugins().codecs([]), lambda: None
    )
    executor._idle.pop()  # a run has this one
    ready = asyncio.create_task(executor.ready(0))
    await asyncio.sleep(0)
    executor.resize(1)
    async with asyncio.timeout(10):
        await ready


async def test_neighbours_go_on_beside_the_dying(url: str, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    processed.neighbours.clear()
    async with (
        Broker.connect(url, settings=Settings()) as broker,
        Worker(processed.app, broker, queues=["deeds", "plain"], grace=0) as worker,
    ):
        await broker.publish_many(plain, ["a", "b"])
        with pytest.raises(RemoteError) as told:
            await broker.request(deeds, Deed(what="segfault", path=str(seen)), timeout=10)
        assert (told.value.reason, "SIGSEGV" in told.value.text) == ("crashed", True)
        assert await broker.request(deeds, Deed(what="more"), timeout=10) == "did more"
        assert worker.health().ok
        assert broker.health().counts.get("message.quarantined", 0) == 0
    assert sorted(processed.neighbours) == ["a", "b"]
    assert [line.split()[1] for line in lines(seen)] == ["1", "2"]
    assert len({line.split()[2] for line in lines(seen)}) == 2


@pytest.mark.parametrize(
    ("what", "kind", "text"),
    [
        (
            "publish",
            "mqcore.errors.ConfigurationError",
            "publish from process=True handlers is not possible",
        ),
        ("object", "mqcore.errors.ValidationError", "no way is known to write"),
        ("sys.exit", "SystemExit", "7"),
    ],
)
async def test_what_is_refused_in_a_process_is_told(
    url: str, what: str, kind: str, text: str
) -> None:
    async with (
        Broker.connect(url, settings=Settings()) as broker,
        Worker(processed.app, broker, queues=["deeds"], grace=0),
    ):
        with pytest.raises(RemoteError) as told:
            await broker.request(deeds, Deed(what=what), timeout=10)
    assert (told.value.reason, told.value.type) == ("retries_exhausted", kind)
    assert text in told.value.text


async def test_a_handler_that_no_process_can_import_fails_at_the_start(url: str) -> None:
    async with Broker.connect(url, settings=Settings()) as broker:
        with pytest.raises(ConfigurationError, match=r"support\.no_such_module"):
            await Worker(processed.lost, broker).start()
        assert broker.health().consuming == {}
