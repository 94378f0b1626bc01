"""Workflows in a store whose processes are killed at random moments: each of them ends, once."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from support.task_process import TTL, TaskProcess, opened

from mqcore.contract.store.workflows import ChainPlan, GroupPlan, Plan, TaskPlan, rows_of
from mqcore.tasks.model.changes import Add
from mqcore.tasks.model.nodes import Kind
from mqcore.tasks.model.states import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.store.seam import TaskStore

__all__ = ["run_and_kill"]

_TASK = TaskPlan()
_CHORD = ChainPlan([GroupPlan([_TASK] * 3), _TASK])
_PLANS: Sequence[Plan] = (
    ChainPlan([GroupPlan([_TASK] * 12), _TASK]),
    ChainPlan([_TASK, GroupPlan([_CHORD, _TASK, _CHORD]), _TASK]),
    GroupPlan([_CHORD, ChainPlan([_TASK, _TASK])]),
)
_PROCESS = Path(__file__).with_name("task_process.py")
_STEPS = 60
"""How many steps a process makes at most before it is killed."""


async def run_and_kill(url: str, *, workflows: int, kills: int, seed: int, at_once: int = 3) -> int:
    """Run workflows in processes that are killed; return how many steps these had made.

    Raises an `AssertionError` when a workflow does not end, or when something is counted twice.
    """
    choose, store = random.Random(seed), await opened(url)
    lines: Counter[str] = Counter()
    try:
        await store.clear()
        rows = [rows_of(_PLANS[it % len(_PLANS)], f"w{it}") for it in range(workflows)]
        await store.apply([Add(tree) for tree in rows])
        await asyncio.gather(
            *[
                _one_after_the_other(url, choose.randrange(10**6), kills // at_once, lines)
                for _ in range(at_once)
            ]
        )
        steps = lines.total()
        await _to_the_end(store, [tree[0].id for tree in rows], lines)
        await _check(store, [node for tree in rows for node in tree], lines)
    finally:
        await store.close()
    return steps


async def _one_after_the_other(url: str, seed: int, kills: int, lines: Counter[str]) -> None:
    choose = random.Random(seed)
    for number in range(kills):
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(_PROCESS), url, str(seed + number)),
            stdout=asyncio.subprocess.PIPE,
        )
        output = process.stdout
        assert output is not None
        try:
            for _ in range(choose.randrange(1, _STEPS)):
                line = await output.readline()
                assert line, "the process has ended by itself"
                lines[line.decode().strip()] += 1
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        rest = (await output.read()).decode()
        lines.update(rest.splitlines() if rest.endswith("\n") else rest.splitlines()[:-1])
        await process.wait()


class _Counting(TaskProcess):
    """The process that does what is left, in this one."""

    lines: Counter[str]

    def step(self, *words: object) -> None:
        self.lines[" ".join(map(str, words))] += 1


async def _to_the_end(store: TaskStore, roots: Sequence[str], lines: Counter[str]) -> None:
    last = _Counting(store, seed=0)
    last.lines = lines
    while not all(node is not None and node.has_ended for node in await store.nodes(roots)):
        if not await last.turn():
            await asyncio.sleep(TTL / 5)  # until the heartbeats of the dead are old


async def _check(store: TaskStore, added: Sequence[Node], lines: Counter[str]) -> None:
    found = await store.nodes([node.id for node in added])
    for node in found:
        assert node is not None
        assert node.state is State.SUCCEEDED, node
        if node.kind is not Kind.TASK:
            assert (node.done, node.bad) == (node.size, 0), node
        elif node.parent:
            assert node.is_counted, node
    assert not await store.outbox()

    # the entry of a large group moves on with each slice; every other one is made once
    once = {line: count for line, count in lines.items() if " " in line and ":members" not in line}
    twice = {line: count for line, count in once.items() if count > 1}
    assert not twice, twice
