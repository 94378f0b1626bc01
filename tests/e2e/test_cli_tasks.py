"""`mqcore tasks`: each command in this process, on a store in a file."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support.task_commands import URL, work, worked, written_shop

from mqcore import Settings

if TYPE_CHECKING:
    from support.commands import Refused, Run

pytestmark = pytest.mark.usefixtures("own_folder")


@pytest.fixture
def shop(own_folder: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write an application, and return its module."""
    monkeypatch.syspath_prepend(".")
    return written_shop(f"tasks_{abs(hash(request.node.nodeid))}")


def test_a_task_is_sent_listed_and_shown(run: Run, shop: Any) -> None:
    app = f"{shop.__name__}:app"
    sent = run("tasks", "send", app, "add", '{"x": 2, "y": 3}', "--url", URL, "--priority", "7")
    task = sent.out.strip()
    (row,) = run("tasks", app).rows
    assert row[:3] == [task, "add", "queued"]
    (data,) = run("tasks", "list", app, "--name", "a*", "--state", "queued", "--json").data
    assert (data["id"], data["priority"], data["state"]) == (task, 7, "queued")
    assert run("tasks", "list", app, "--state", "running").out == "no open tasks\n"

    work(shop, task)
    assert run("tasks", "list", app).out == "no open tasks\n"
    shown = run("tasks", "show", app, task)
    assert "state     succeeded" in shown.out
    assert "result  5" in shown.out.replace("    ", "  ").replace("   ", "  ")
    assert run("tasks", "show", app, task, "--json").data["result"] == 5


def test_sending_waits_for_the_result_as_long_as_asked(run: Run, shop: Any) -> None:
    app = f"{shop.__name__}:app"
    words = ("tasks", "send", app, "add", '{"x": 2, "y": 3}', "--url", URL)
    answers = []

    async def sent() -> bool:
        answers.append(await asyncio.to_thread(run, *words, "--wait", "3600"))
        return True

    asyncio.run(worked(shop, sent))
    assert answers[0].out == "5\n"


def test_a_wait_that_is_too_short_says_that_the_task_goes_on(run: Run, shop: Any) -> None:
    app = f"{shop.__name__}:app"
    said = run("tasks", "send", app, "add", '{"x": 2, "y": 3}', "--url", URL, "--wait", "0.1")
    ((task, *_),) = run("tasks", "list", app).rows
    assert (said.code, said.out) == (1, "")
    assert said.err == f"mqcore: task {task} has not ended within 0.1 s; it goes on\n"


def test_what_has_ended_is_listed_by_state_name_and_time(run: Run, shop: Any) -> None:
    app = f"{shop.__name__}:app"
    good = run("tasks", "send", app, "add", '{"x": 2, "y": 3}', "--url", URL).out.strip()
    bad = run("tasks", "send", app, "fail", "--url", URL).out.strip()
    still = run("tasks", "send", app, "add", '{"x": 1, "y": 1}', "--url", URL, "--delay", "600")
    work(shop, good, bad)

    def listed(*words: str) -> set[str]:
        return {each["id"] for each in run("tasks", "list", app, *words, "--json").data}

    assert listed() == {still.out.strip()}
    assert listed("--ended") == listed("--since", "1h") == {good, bad}
    assert listed("--state", "failed") == listed("--ended", "--name", "f*") == {bad}
    assert listed("--state", "failed", "--state", "scheduled") == {bad, still.out.strip()}
    assert listed("--until", "1h") == listed("--ended", "--name", "nothing") == set()
    assert listed("--since", "2020-01-01T00:00:00Z", "--until", "2020-01-02T00:00:00Z") == set()
    assert len(listed("--ended", "--limit", "1")) == 1
    said = run("tasks", "list", app, "--ended", "--limit", "1")
    assert said.out.splitlines()[-1] == "there are more: --limit"
    assert said.rows[0][2] in {"succeeded", "failed"}
    assert " ago " in said.out


def test_a_time_that_cannot_be_read_is_refused(refused: Refused, shop: Any) -> None:
    app = f"{shop.__name__}:app"
    assert "--since='yesterday' is not usable" in refused(
        "tasks", "list", app, "--since", "yesterday"
    )
    assert "the time has no zone" in refused("tasks", "list", app, "--since", "2026-01-01T00:00:00")


def test_a_delayed_task_is_cancelled(run: Run, shop: Any) -> None:
    app = f"{shop.__name__}:app"
    sent = run(
        "tasks", "send", app, "add", '{"x": 2, "y": 3}', "--url", URL, "--delay", "600", "--json"
    )
    task = sent.data["id"]
    (row,) = run("tasks", "list", app).rows
    assert row[2:5] == ["scheduled", "-", "in"]
    assert run("tasks", "cancel", app, task, "--reason", "wrong room").out == (
        f"{task} is being cancelled\n"
    )
    data = run("tasks", "show", app, task, "--json").data
    assert (data["state"], data["reason"]) == ("cancelled", "wrong room")
    again = run("tasks", "cancel", app, task, "--json")
    assert (again.code, again.data) == (
        1,
        {"id": task, "cancelled": False, "ended_as": "cancelled"},
    )


def test_a_failed_task_is_retried(run: Run, shop: Any) -> None:
    app = f"{shop.__name__}:app"
    task = run("tasks", "send", app, "fail", "--url", URL).out.strip()
    work(shop, task)
    shown = run("tasks", "show", app, task)
    assert "reason    retries_exhausted: ValueError: no such room" in shown.out
    assert run("tasks", "retry", app, task, "--url", URL).out == f"{task} is sent again\n"

    async def succeeded() -> bool:
        (node,) = await shop.tasks.connected().store.nodes([task])
        return str(node.state) == "succeeded"

    asyncio.run(worked(shop, succeeded))
    assert run("tasks", "show", app, task, "--json").data["result"] == "mended"


def test_what_a_worker_runs_is_inspected(run: Run, shop: Any) -> None:
    app = f"{shop.__name__}:app"
    task = run("tasks", "send", app, "slow", "--url", URL).out.strip()
    answers: dict[str, Any] = {}

    async def inspected() -> bool:
        (node,) = await shop.tasks.connected().store.nodes([task])
        if not shop.started or not node.progress:
            return False
        for connected in shop.tasks.connections:
            if connected._upkeep is not None:
                await connected._upkeep.beat()
        words = {"inspect": ["inspect", app], "list": ["list", app], "show": ["show", app, task]}
        for name, command in words.items():
            answers[name] = await asyncio.to_thread(run, "tasks", *command, "--json")
        return True

    asyncio.run(worked(shop, inspected))
    (worker,) = answers["inspect"].data
    assert worker["alive"] is True
    assert [(each["id"], each["name"]) for each in worker["active"]] == [(task, "slow")]
    assert worker["registered"] == ["add", "fail", "slow"]
    assert worker["counts"]["started"] == 1
    (listed,) = answers["list"].data
    assert (listed["state"], listed["worker"]) == ("running", worker["worker"])
    assert answers["show"].data["progress"] == {"done": 1, "total": 3, "text": "one of three"}

    said = run("tasks", "inspect", app)
    assert said.out.splitlines()[0].split()[:4] == ["WORKER", "STATE", "SEEN", "ACTIVE"]


def test_a_workflow_is_shown_with_its_members(run: Run, shop: Any) -> None:
    app = f"{shop.__name__}:app"

    async def send() -> str:
        async with shop.app.connect(URL, settings=Settings()):
            job = await shop.group(shop.add.s(1, 1), shop.add.s(2, 2)).send()
            return str(job.id)

    flow = asyncio.run(send())
    work(shop, flow)
    shown = run("tasks", "show", app, flow)
    assert "members   2 members, 2 ended, 0 failed" in shown.out
    assert f"{flow}.1" in shown.out
    data = run("tasks", "show", app, flow, "--json").data
    assert (data["result"], [it["state"] for it in data["members"]]) == ([2, 4], ["succeeded"] * 2)


def test_what_cannot_be_done_is_one_line(refused: Refused, run: Run, shop: Any) -> None:
    app = f"{shop.__name__}:app"
    assert "no task is registered as 'ad'; registered are: add, fail, slow" in refused(
        "tasks", "send", app, "ad", "--url", URL
    )
    text = refused("tasks", "send", app, "add", '{"x": "two", "y": 1}', "--url", URL)
    assert "task 'add': the payload does not match add: x: Input should be a valid int" in text
    assert "the store has no task 'nope'" in refused("tasks", "show", app, "nope")
    assert "the store has no task 'nope'" in refused("tasks", "cancel", app, "nope")
    assert "there is nothing at sqlite:///" in refused("tasks", "list", f"{shop.__name__}:fresh")
    assert "memory:// lives in one process" in refused("tasks", "send", app, "fail")
    task = run("tasks", "send", app, "add", '{"x": 2, "y": 3}', "--url", URL).out.strip()
    assert "only a failed or expired task" in refused("tasks", "retry", app, task, "--url", URL)
