"""`mqcore schedule`: each command in this process, on a store in a file."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import pytest
from support.commands import write

if TYPE_CHECKING:
    from support.commands import Refused, Run

pytestmark = pytest.mark.usefixtures("own_folder", "shop")

SHOP = """
from mqcore import App
from mqcore.tasks import Tasks, cron, every

tasks = Tasks("shop", store="sqlite:///tasks.db")
app = App("shop", tasks=[tasks])
bare = App("bare")
forgetful = App("forgetful", tasks=[Tasks("forgetful")])
alone = App("alone", tasks=[Tasks("alone", store="memory://alone")])

@tasks.task(name="report")
async def report(days: int) -> int:
    return days
"""
FILL = """
import asyncio
from {module} import app, cron, every, report, tasks

async def fill():
    async with app.connect("memory://"):
        await tasks.schedules.put("monday", cron("30 7 * * 1", tz="Europe/Oslo"), report.s(7))
        await tasks.schedules.put("often", every(3600), report.s(1), missed="all", overlap="skip")

asyncio.run(fill())
"""


@pytest.fixture
def shop(own_folder: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write an application, store its schedules, and return the name of the module."""
    module = f"shop_{abs(hash(request.node.nodeid))}"
    write(f"{module}.py", SHOP)
    monkeypatch.syspath_prepend(".")
    exec(compile(FILL.format(module=module), "fill", "exec"), {})  # noqa: S102 - a program of this test
    return module


def test_the_schedules_are_listed(run: Run, shop: str) -> None:
    said = run("schedule", f"{shop}:app")
    assert said.out.splitlines()[0].split() == ["SCHEDULE", "WHEN", "NEXT", "IN", "LAST", "RUN"]
    assert [row[0] for row in said.rows] == ["monday", "often"]
    assert "30 7 * * 1 Europe/Oslo" in said.out
    assert " 07:30:00 CE" in said.out  # CET or CEST

    data = run("schedule", "list", f"{shop}:app", "--json").data
    assert [(it["schedule"], it["when"], it["paused"], it["last"]) for it in data] == [
        ("monday", "30 7 * * 1 Europe/Oslo", False, None),
        ("often", "every 3600 s", False, None),
    ]
    assert datetime.fromisoformat(data[0]["next"]).tzinfo is not None


def test_a_schedule_is_shown_with_its_next_ten_instants(run: Run, shop: str) -> None:
    said = run("schedule", "show", f"{shop}:app", "often")
    assert "missed runs   all, at most 100" in said.out
    assert "defined by    a call at run time" in said.out
    assert len(said.out.partition("next instants\n")[2].splitlines()) == 10

    data = run("schedule", "show", f"{shop}:app", "monday", "--next", "3", "--json").data
    assert data["task"] == "report"
    instants = [datetime.fromisoformat(each) for each in data["next_instants"]]
    assert instants == sorted(set(instants))
    assert len(instants) == 3


def test_a_schedule_is_paused_resumed_and_removed(run: Run, shop: str) -> None:
    assert run("schedule", "pause", f"{shop}:app", "often").out == "often is paused\n"
    assert "paused" in run("schedule", "list", f"{shop}:app").rows[1]
    assert "instants if it were resumed" in run("schedule", "show", f"{shop}:app", "often").out
    resumed = run("schedule", "resume", f"{shop}:app", "often")
    assert resumed.out.startswith("often is active; the next run is at 20")
    assert run("schedule", "pause", f"{shop}:app", "often", "--json").data["paused"] is True
    assert run("schedule", "remove", f"{shop}:app", "often").out == "often is removed\n"
    assert [row[0] for row in run("schedule", "list", f"{shop}:app").rows] == ["monday"]
    removed = run("schedule", "remove", f"{shop}:app", "monday", "--json").data
    assert removed == {"schedule": "monday", "removed": True}
    assert "no schedules are stored" in run("schedule", "list", f"{shop}:app").out


def test_a_schedule_is_sent_now(run: Run, shop: str) -> None:
    url = "sqlite:///queues.db"
    created = run("queues", "list", "--url", url)
    assert created.code in (0, 1, 2)
    said = run("schedule", "run", f"{shop}:app", "monday", "--url", url)
    assert said.out.startswith("monday is sent as task ")
    data = run("schedule", "run", f"{shop}:app", "monday", "--url", url, "--json").data
    shown = run("schedule", "show", f"{shop}:app", "monday", "--json").data
    assert shown["last_task"] == data["task"]
    assert len(run("peek", "default", "--url", url, "--json").data) == 2


def test_what_cannot_be_done_is_one_line(refused: Refused, shop: str) -> None:
    text = refused("schedule", "pause", f"{shop}:app", "nightly")
    assert "there is no schedule 'nightly' in this store; there are: monday, often" in text
    assert "has no tasks" in refused("schedule", "list", f"{shop}:bare")
    assert "have no store" in refused("schedule", "list", f"{shop}:forgetful")
    assert "lives in one process" in refused("schedule", "list", f"{shop}:alone")
    assert "memory:// lives in one process" in refused("schedule", "run", f"{shop}:app", "monday")
    assert "memory:// lives in one process" in refused("scheduler", f"{shop}:app")
    assert "has no tasks" in refused("worker", f"{shop}:bare", "--scheduler")
