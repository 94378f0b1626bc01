"""`mqcore tasks watch`: bars on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console
from support.task_commands import URL, work, written_shop

from mqcore import Settings
from mqcore.cli.watch import Tree, picture, reported, trees
from mqcore.tasks.model.changes import Add, Begin, End
from mqcore.tasks.model.nodes import Kind, Node
from mqcore.tasks.model.states import State
from mqcore.tasks.store.memory import MemoryTaskStore, Tables

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from support.commands import Refused, Run


@pytest.fixture
def shop(own_folder: None, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(".")
    return written_shop(f"watched_{abs(hash(request.node.nodeid))}")


def drawn(seen: Sequence[Tree], width: int, height: int = 24) -> list[str]:
    """Return what a terminal of this size shows."""
    screen = Console(width=width, file=io.StringIO(), record=True)
    screen.print(picture(seen, width, height))
    return [line.rstrip() for line in screen.export_text().splitlines()]


def task(id: str, state: State, **more: Any) -> Node:
    return Node(id=id, name="resize", state=state, **more)


def group(id: str, size: int) -> list[Node]:
    members = [Node(id=f"{id}.{n}", parent=id, index=n, name="resize") for n in range(size)]
    return [Node(id=id, kind=Kind.GROUP, size=size), *members]


def begin(id: str) -> Begin:
    return Begin(id, 0, 1, "token", "worker")


async def end(store: MemoryTaskStore, *members: str) -> None:
    for member in members:
        await store.apply([begin(member)])
        await store.apply([End(member, 0, "token", State.SUCCEEDED, b"1")])


async def test_each_change_of_a_group_and_its_members_is_a_line() -> None:
    store = MemoryTaskStore(tables=Tables())
    await store.apply([Add(group("all", 3))])

    async def looks() -> AsyncIterator[Sequence[Tree]]:
        yield await trees(store, ["all"])
        await store.apply([begin("all.1")])
        yield await trees(store, ["all"])
        yield await trees(store, ["all"])
        await store.apply([End("all.1", 0, "token", State.SUCCEEDED, b"1")])
        yield await trees(store, ["all"])
        await end(store, "all.0", "all.2")
        yield await trees(store, ["all"])

    lines: list[tuple[str, str, int]] = []
    watched = await reported(
        store, looks(), lambda node: lines.append((node.id, node.state, node.done))
    )
    assert lines[:4] == [
        ("all", "running", 0),
        *((f"all.{n}", "queued", 0) for n in range(3)),
    ]
    assert lines[4:] == [
        ("all.1", "running", 0),
        ("all", "running", 1),
        ("all.1", "succeeded", 0),
        ("all", "succeeded", 3),
        ("all.0", "succeeded", 0),
        ("all.2", "succeeded", 0),
    ]
    assert [node.id for node in watched] == ["all"]


async def test_of_a_large_group_what_runs_is_shown() -> None:
    store = MemoryTaskStore(tables=Tables())
    await store.apply([Add(group("all", 500))])
    await end(store, *(f"all.{n}" for n in range(300)))
    await store.apply([begin("all.350")])

    (tree,) = await trees(store, ["all"])
    assert tree.fraction == 0.6
    assert tree.below[0].node.id == "all.350"
    assert len(tree.below) + tree.hidden == 101
    text = "\n".join(drawn([tree], 120))
    assert "300 of 500, 93 more open" in text


def test_bars_fit_the_terminal() -> None:
    half = task("a" * 32, State.RUNNING, progress=b'{"done": 1, "total": 2, "text": "page"}')
    long = task("b" * 32, State.FAILED, reason="retries_exhausted: " + "no such room \x1b[31m" * 9)
    for width in (80, 140):
        lines = drawn([Tree(long), Tree(half), Tree(task("c" * 32, State.QUEUED))], width)
        assert max(map(len, lines)) <= width
        assert "1 of 2 page" in lines[1]
        assert ("a" * 32 in lines[1]) == (width == 140)
        assert lines[3].split()[-1].endswith("…")  # what has ended stands below
        assert "\x1b" not in lines[3]
        assert lines[-1] == "1 failed, 1 running, 1 queued"


def test_what_does_not_fit_is_counted() -> None:
    lines = drawn([Tree(task(f"{n}", State.QUEUED)) for n in range(30)], 100, height=10)
    assert len(lines) == 9
    assert lines[-1] == "30 queued; 23 lines do not fit"


def test_how_much_of_a_task_is_done() -> None:
    tasks = {
        None: task("1", State.RUNNING),
        0.0: task("2", State.QUEUED),
        0.25: task("3", State.RUNNING, progress=b'{"done": 1, "total": 4}'),
        1.0: task("4", State.RUNNING, progress=b'{"done": 9, "total": 4}'),
    }
    assert [Tree(node).fraction for node in tasks.values()] == list(tasks)


def test_the_command_ends_with_what_it_watches(run: Run, shop: Any) -> None:
    app = f"{shop.__name__}:app"
    good = run("tasks", "send", app, "add", '{"x": 2, "y": 3}', "--url", URL).out.strip()
    bad = run("tasks", "send", app, "fail", "--url", URL).out.strip()
    work(shop, good, bad)

    said = run("tasks", "watch", app, good)
    assert (said.code, said.out.split()[1:]) == (0, [good, "add", "succeeded"])
    said = run("tasks", "watch", app, good, bad, "--json")
    assert said.code == 1
    data = [json.loads(line) for line in said.out.splitlines()]
    assert [(it["id"], it["state"]) for it in data] == [(good, "succeeded"), (bad, "failed")]
    assert run("tasks", "watch", app).out == "no open tasks\n"
    assert run("tasks", "watch", app, "--json").out == ""


def test_a_task_that_does_not_exist_is_refused(refused: Refused, shop: Any) -> None:
    async def send() -> None:
        async with shop.app.connect(URL, settings=Settings()):
            await shop.add.send(1, 1)

    asyncio.run(send())
    assert "the store has no task 'nope'" in refused(
        "tasks", "watch", f"{shop.__name__}:app", "nope"
    )


def test_a_terminal_shows_bars(run: Run, shop: Any) -> None:
    app = f"{shop.__name__}:app"
    good = run("tasks", "send", app, "add", '{"x": 2, "y": 3}', "--url", URL).out.strip()
    work(shop, good)

    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "mqcore", "tasks", "watch", app, good]
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "90", "LINES": "20"}
    with subprocess.Popen(command, stdout=theirs, stderr=theirs, env=env) as process:
        os.close(theirs)
        screen = b""
        while True:
            try:
                screen += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
        assert process.wait(60) == 0
    os.close(ours)
    text = screen.decode()
    assert "━" in text
    assert "succeeded" in text
