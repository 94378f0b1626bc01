"""`mqcore tasks watch`: the progress of tasks and workflows, live, until they have ended.

On a terminal it draws a bar for each. In a pipe it prints a line for each change, and with --json
an object.
"""

from __future__ import annotations

import asyncio
import json as json_
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import typer
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mqcore.cli.common import Json
from mqcore.cli.output import ago, console, escaped, iso, print_json, span
from mqcore.cli.task_rows import node_data, node_of, open_tasks, progress_text
from mqcore.cli.tasks_of import Target, with_store
from mqcore.tasks.api import Tasks
from mqcore.tasks.model.nodes import Kind, Node, replacement_id, root_of
from mqcore.tasks.model.states import State
from mqcore.tasks.store.seam import StoreError, TaskStore

__all__ = ["Tree", "picture", "reported", "trees", "watch"]

_MEMBERS = 8
"""Open members of a group that are shown."""
_WINDOW = 100
"""Members before and after the number of those that have ended: what runs is most likely there."""
_DEPTH = 4
"""Levels of a workflow that are shown."""
_WIDE = 110
"""Columns of a terminal from which on ids are shown."""
_NAME, _BAR, _GAP = 32, 16, 2
_UNDER_WAY = (State.RUNNING, State.RETRYING, State.DELEGATED)
_STYLES = {
    State.RUNNING: "cyan",
    State.RETRYING: "yellow",
    State.SUCCEEDED: "green",
    State.FAILED: "red",
    State.EXPIRED: "red",
    State.CANCELLED: "yellow",
}


@dataclass(frozen=True)
class Tree:
    """A task, or a workflow with those of its members that are open."""

    node: Node
    below: Sequence[Tree] = ()
    hidden: int = field(default=0)
    """Open members that were read and are not in `below`."""

    def __iter__(self) -> Iterator[Tree]:
        """Yield it and everything below it."""
        yield self
        for tree in self.below:
            yield from tree

    @property
    def fraction(self) -> float | None:
        """How much of it is done, from 0 to 1; None when it cannot be known."""
        node = self.node
        if node.has_ended:
            return 1.0
        if node.kind is Kind.REPLACED:
            return self.below[0].fraction if self.below else None
        if node.kind is not Kind.TASK:
            parts = sum(tree.fraction or 0.0 for tree in self.below)
            return min((node.done + parts) / node.size, 1.0) if node.size else 0.0
        report = json_.loads(node.progress or b"{}")
        if report.get("total"):
            return min(max(float(report["done"]) / float(report["total"]), 0.0), 1.0)
        return None if node.state is State.RUNNING else 0.0


def watch(
    target: Target,
    tasks: Annotated[
        list[str] | None,
        typer.Argument(metavar="[ID]...", help="Tasks or workflows; without any, all open ones."),
    ] = None,
    *,
    every: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="How often the store is read.")
    ] = 0.5,
    json: Json = False,
) -> int:
    """Show the progress of tasks and workflows until they have ended.

    Without a terminal it prints a line for each change. The exit code is 1 when one of the tasks
    that were named did not succeed.
    """
    named = list(dict.fromkeys(tasks or ()))

    async def work(_: Tasks, store: TaskStore) -> Sequence[Node]:
        for task in named:
            await node_of(store, task)  # raises
        looks = _looks(store, named, every)
        if sys.stdout.isatty() and not json:
            return await _draw(looks)
        return await reported(store, looks, _print_data if json else _print_line)

    ended = with_store(target, work, patience=None)
    if not ended and not json:
        print("no open tasks")
    failed = [node for node in ended if node.id in named and node.state is not State.SUCCEEDED]
    return 1 if failed else 0


async def _looks(
    store: TaskStore, named: Sequence[str], every: float
) -> AsyncIterator[Sequence[Tree]]:
    """Yield all that is watched, again and again, until it has ended.

    Without names, what is sent meanwhile is watched too. While the store is away, nothing comes.
    """
    watched = dict.fromkeys(named)
    is_first = True
    while True:
        try:
            if not named:
                watched |= dict.fromkeys(root_of(node.id) for node in await open_tasks(store))
            seen = await trees(store, list(watched))
        except StoreError:
            if is_first:
                raise
        else:
            yield seen
            is_first = False
            if all(tree.node.has_ended for tree in seen):
                return
        await asyncio.sleep(every)


async def trees(store: TaskStore, ids: Sequence[str]) -> Sequence[Tree]:
    """Read tasks and workflows with their open members. What was removed is left out."""
    nodes = await store.nodes(ids)
    return [await _tree(store, node, _DEPTH) for node in nodes if node is not None]


async def _tree(store: TaskStore, node: Node, depth: int) -> Tree:
    if node.has_ended or node.kind is Kind.TASK or not depth:
        return Tree(node)

    if node.kind is Kind.REPLACED:
        below = [each for each in await store.nodes([replacement_id(node.id)]) if each is not None]
    else:
        # The number of a chain's ended steps is the index of the one that runs.
        window = 0 if node.kind is Kind.CHAIN else _WINDOW
        start = max(node.done - window, 0)
        below = list(await store.children(node.id, start, min(node.done + window + 1, node.size)))

    unended = [each for each in below if not each.has_ended]
    unended.sort(key=lambda each: each.state not in _UNDER_WAY)
    shown = unended[:_MEMBERS]
    return Tree(
        node, [await _tree(store, each, depth - 1) for each in shown], len(unended) - len(shown)
    )


# Lines


async def reported(
    store: TaskStore, looks: AsyncIterator[Sequence[Tree]], show: Callable[[Node], None]
) -> Sequence[Node]:
    """Show each change, of members too, and return what was watched."""
    known: dict[str, tuple[object, ...]] = {}
    seen: Sequence[Tree] = ()
    async for seen in looks:
        nodes = {tree.node.id: tree.node for whole in seen for tree in whole}
        # Members that have ended since are not in a tree any more.
        others = await store.nodes([id_ for id_ in known if id_ not in nodes])
        nodes |= {node.id: node for node in others if node is not None}
        for node in nodes.values():
            if (now := _status(node)) != known.get(node.id):
                known[node.id] = now
                show(node)
            if node.has_ended and node.parent:
                del known[node.id]
    return [tree.node for tree in seen]


def _status(node: Node) -> tuple[object, ...]:
    return node.state, node.attempt, node.run, node.progress, node.size, node.done, node.bad


def _print_data(node: Node) -> None:
    print_json({"at": iso(time.time()), **node_data(node)}, line=True)


def _print_line(node: Node) -> None:
    words = iso(time.time()), node.id, node.name or node.kind, node.state, _text(node) or ""
    print(escaped("  ".join(map(str, words)).rstrip()), flush=True)


def _text(node: Node) -> str | None:
    """Return how far a task or workflow is, in words."""
    if node.has_ended:
        return node.reason or None
    if node.kind in {Kind.GROUP, Kind.CHAIN}:
        failed = f", {node.bad:,} failed" if node.bad else ""
        return f"{node.done:,} of {node.size:,}{failed}"
    return progress_text(node)


# Bars


async def _draw(looks: AsyncIterator[Sequence[Tree]]) -> Sequence[Node]:
    """Draw the bars on the terminal, and return what was watched."""
    from rich.live import Live  # noqa: PLC0415 - slow to import, and no other command needs it

    screen = console()
    seen: Sequence[Tree] = ()
    with Live(console=screen, auto_refresh=False) as live:
        async for seen in looks:
            live.update(picture(seen, screen.width, screen.height), refresh=True)
    return [tree.node for tree in seen]


def picture(seen: Sequence[Tree], width: int, height: int) -> RenderableType:
    """Return the bars of what is watched, those that are open first, for a terminal."""
    ordered = sorted(seen, key=lambda tree: tree.node.has_ended)
    lines = [line for tree in ordered for line in _lines(tree, 0)]
    room = max(height - 3, 1)  # the head, the last line, and one for what is left out
    has_ids = width >= _WIDE
    names = ("task", *(("id",) if has_ids else ()), "progress", "state", "for")
    rows = [list(_cells(indent, tree, has_ids=has_ids)) for indent, tree in lines[:room]]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, _GAP, 0, 0))
    rest = width
    for at, name in enumerate(names):
        texts = [cell for row in rows if isinstance(cell := row[at], Text)]
        widest = max([len(name), *(cell.cell_len for cell in texts), *([] if texts else [_BAR])])
        widest = min(widest, _NAME) if name == "task" else widest
        table.add_column(name, no_wrap=True, width=widest)
        rest -= widest + _GAP
    # Only the last column is cut, where the terminal is too narrow.
    table.add_column("", no_wrap=True, width=max(rest, _BAR))
    for row in rows:
        table.add_row(*row)

    total = Counter(tree.node.state for tree in seen)
    summary = ", ".join(f"{count:,} {state}" for state, count in total.items())
    left_out = f"; {len(lines) - room:,} lines do not fit" if len(lines) > room else ""
    return Group(table, Text(f"{summary or 'no open tasks'}{left_out}", style="dim"))


def _lines(tree: Tree, indent: int) -> Iterator[tuple[int, Tree]]:
    yield indent, tree
    for each in tree.below:
        yield from _lines(each, indent + 1)


def _cells(indent: int, tree: Tree, *, has_ids: bool) -> Iterator[RenderableType]:
    node = tree.node
    name = f"{'  ' * indent}{escaped(node.name or node.kind)}"
    yield Text(name, no_wrap=True, overflow="ellipsis")
    if has_ids:
        yield Text(escaped(node.id))
    fraction = tree.fraction
    yield ProgressBar(
        completed=fraction or 0.0,
        total=1.0,
        width=_BAR,
        pulse=fraction is None,
        pulse_style="cyan",
        complete_style=_STYLES.get(node.state, "cyan"),
        finished_style=_STYLES.get(node.state, "green"),
    )
    yield Text(node.state, style=_STYLES.get(node.state, "dim"))
    yield Text(_since(node) or "", style="dim")
    hidden = f"{tree.hidden:,} more open" if tree.hidden else None
    words = ", ".join(filter(None, (_text(node), hidden)))
    yield Text(escaped(words), no_wrap=True, overflow="ellipsis")


def _since(node: Node) -> str | None:
    """Return since when it runs or waits, or until when it is delayed."""
    if node.has_ended or not node.due:
        return None
    left = node.due - time.time()
    return f"in {span(left)}" if left > 0 else ago(node.due)
