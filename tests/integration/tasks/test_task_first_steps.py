"""What new users of tasks meet: names in the log, hints, the store of the environment."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest

from mqcore import App, ConfigurationError, RetryPolicy, Settings, Worker
from mqcore.tasks import Scheduled, TaskFailed, Tasks, every
from mqcore.testing import VirtualClock, memory_url

if TYPE_CHECKING:
    from pathlib import Path


def warnings(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [each for each in caplog.records if each.levelno == logging.WARNING]


async def test_a_failure_is_logged_with_the_name_of_its_task(
    shop: Any, caplog: pytest.LogCaptureFixture
) -> None:
    @shop.tasks.task(name="shop.room", retry=RetryPolicy(1))
    async def room() -> None:
        raise ValueError("no such room")

    async with shop.serve():
        job = await room.send()
        await shop.clock.advance(1)
        with pytest.raises(TaskFailed):
            await job.result(1)
    found = [each for each in warnings(caplog) if "shop.room" in each.getMessage()]
    (record,) = found
    assert record.getMessage() == (
        f"task shop.room ({job.id}) of queue 'default' failed in attempt 1"
    )
    assert record.exc_info is not None
    assert isinstance(record.exc_info[1], ValueError)


async def test_what_is_sent_without_a_broker_is_warned_of_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("MQCORE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    tasks = Tasks("shop", store=memory_url())
    app = App("shop", tasks=[tasks])

    @tasks.task(name="add")
    async def add(x: int) -> int:
        return x

    async with app.connect(clock=VirtualClock()):
        await add.send(1)
        await add.send(2)
    (record,) = warnings(caplog)
    assert "task 'add' is sent to memory://, because no broker is configured" in (
        record.getMessage()
    )

    caplog.clear()
    async with app.connect(memory_url(), clock=VirtualClock(), settings=Settings()) as broker:
        await add.send(1)
        async with Worker(app, broker, grace=0):
            await add.send(2)
    assert not warnings(caplog)


def test_the_store_may_be_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MQCORE_STORE", raising=False)
    assert Tasks("shop").store is None
    monkeypatch.setenv("MQCORE_STORE", "sqlite:///tasks.db")
    assert Tasks("shop").store == "sqlite:///tasks.db"
    assert Tasks("shop", store="memory://one").store == "memory://one"
    monkeypatch.setenv("MQCORE_STORE", "tasks.db")
    with pytest.raises(ConfigurationError, match="MQCORE_STORE"):
        Tasks("shop")


async def test_a_name_that_is_almost_right_is_named(shop: Any) -> None:
    @shop.tasks.task(name="shop.report")
    async def report() -> None: ...

    shop.tasks.schedules.define("nightly", Scheduled("shop.raport", every(30)))
    with pytest.raises(ConfigurationError, match=r"did you mean 'shop\.report'"):
        shop.tasks.schedules.specs()
    async with shop.open() as broker:
        with pytest.raises(ConfigurationError, match="did you mean 'default'"):
            Worker(shop.app, broker, queues=["defualt"])
