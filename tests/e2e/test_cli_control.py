"""`mqcore tasks control`: each command in this process, to a worker on a broker in a file."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support.task_commands import URL, written_shop
from support.waiting import eventually

from mqcore import Settings, Worker

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.commands import Refused, Run, Said


@pytest.fixture
def shop(own_folder: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(".")
    return written_shop(f"controlled_{abs(hash(request.node.nodeid))}")


def during(shop: Any, work: Callable[[Worker], Any]) -> Any:
    """Do blocking work in a thread while a worker runs here."""

    async def run() -> Any:
        async with (
            shop.app.connect(URL, settings=Settings()) as broker,
            Worker(shop.app, broker, grace=0, control=True) as worker,
        ):

            async def listens() -> bool:
                return bool(await broker.bindings("mq.control"))

            await eventually(listens, within=60)
            (connected,) = shop.tasks.connections
            await connected._upkeep.beat()
            return await asyncio.to_thread(work, worker)

    return asyncio.run(run())


def test_the_answers_of_workers_are_printed(run: Run, shop: Any) -> None:
    app = f"{shop.__name__}:app"

    def work(worker: Worker) -> list[Said]:
        assert worker.control is not None
        name = ("--worker", worker.control.name)
        words = [
            ("ping", app),
            ("grow", app, "2", "--json"),
            ("shrink", app, "--queue", "default", "--json", *name),
            ("time-limit", app, "add", "5", "--soft", "4", "--json"),
            ("rate", app, "add", "10/m", "--json"),
            ("rate", app, "add", "off", "--json"),
            ("autoscale", app, "2", "4", "--json"),
            ("cancel-consumer", app, "default", "--json"),
            ("add-consumer", app, "default", "--json"),
            ("shutdown", app, "--json"),
        ]
        patience = ("--url", URL, "--timeout", "60")
        return [run("tasks", "control", *each, *patience) for each in words]

    ping, *others = during(shop, work)
    assert (ping.code, ping.rows[0][1]) == (0, "ok")
    assert "queues default=10" in ping.out

    answers = [said.data[0]["answer"] for said in others]
    assert all(said.code == 0 for said in others)
    assert answers[0] == {"queues": {"default": 12}}
    assert answers[1] == {"queues": {"default": 11}}
    assert answers[2] == {"task": "add", "timeout": 5, "soft_timeout": 4}
    assert answers.pop(3) == {"task": "add", "rate": "10 in 60 s"}
    assert answers.pop(3) == {"task": "add", "rate": None}
    assert answers[3] == {"queues": {"default": 4}, "autoscale": [2, 4]}
    assert answers[4] == {"queues": {}}
    assert answers[5] == {"queues": {"default": 10}}
    assert answers[6] == {"draining": ["default"], "running": {"default": 0}}


def test_an_error_of_a_worker_is_shown_and_fails_the_command(run: Run, shop: Any) -> None:
    app = f"{shop.__name__}:app"

    def work(_: Worker) -> tuple[Said, Said]:
        words = ("tasks", "control", "add-consumer", app, "defualt", "--url", URL)
        return run(*words, "--timeout", "60"), run(*words, "--timeout", "60", "--json")

    text, data = during(shop, work)
    assert text.code == data.code == 1
    assert "did you mean 'default'?" in text.out
    assert data.data[0]["ok"] is False


def test_where_no_worker_runs_the_command_fails(run: Run, refused: Refused, shop: Any) -> None:
    app = f"{shop.__name__}:app"
    run("tasks", "send", app, "add", '{"x": 1, "y": 2}', "--url", URL)
    said = run("tasks", "control", "ping", app, "--url", URL)
    assert (said.code, said.out) == (1, "no worker has answered\n")
    assert run("tasks", "control", "ping", app, "--url", URL, "--json").data == []
    assert "memory:// lives in one process" in refused("tasks", "control", "ping", app)
    assert "is not a rate" in refused("tasks", "control", "rate", app, "add", "10/d", "--url", URL)
    assert "two numbers" in refused("tasks", "control", "autoscale", app, "3", "--url", URL)
