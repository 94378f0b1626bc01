"""What the commands about tasks print of a task and of a worker."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from mqcore.cli.output import amount, iso
from mqcore.tasks.errors import UnknownTask
from mqcore.tasks.listing import open_tasks
from mqcore.tasks.listing import worker_info as info_of
from mqcore.tasks.model.nodes import Kind, Node
from mqcore.tasks.store.seam import Heartbeat, TaskStore

__all__ = [
    "ended_tasks",
    "info_of",
    "is_alive",
    "node_data",
    "node_facts",
    "node_of",
    "open_tasks",
    "progress_text",
    "worker_data",
]

_MOST_ENDED, _PAGE = 100_000, 500
"""Ended tasks that are read before the filters, and how many of them at once."""


async def ended_tasks(
    store: TaskStore, times: tuple[float, float], is_wanted: Callable[[Node], bool], limit: int
) -> list[Node]:
    """Return the tasks and workflows that ended in that time, newest first, without their members.

    At most `limit` of those that are wanted.
    """
    found: list[Node] = []
    for start in range(0, _MOST_ENDED, _PAGE):
        ids = await store.ended(*times, _PAGE, start)
        nodes = [node for node in await store.nodes(ids) if node is not None]
        found += [node for node in nodes if node.has_ended and is_wanted(node)]
        if len(ids) < _PAGE or len(found) >= limit:
            break
    return found[:limit]


async def node_of(store: TaskStore, task: str) -> Node:
    """Return a row of the store. Raises `UnknownTask`."""
    node = (await store.nodes([task]))[0]
    if node is None:
        raise UnknownTask(
            f"the store has no task {task!r:.140}: it never existed, or its retention is over"
        )
    return node


def is_alive(beat: Heartbeat) -> bool:
    """Whether the last heartbeat of a worker still holds."""
    return time.time() < beat.at + beat.ttl


def progress_text(node: Node) -> str | None:
    """Return the last report of progress for people, or None before the first."""
    report: dict[str, Any] = json.loads(node.progress or b"{}")
    if report.get("done") is None:
        return None
    total = report.get("total")
    done = f"{report.get('done'):g}" + ("" if total is None else f" of {total:g}")
    return f"{done} {report.get('text', '')}".rstrip()


def node_facts(node: Node) -> dict[str, object]:
    """Return what `mqcore tasks show` prints of a row."""
    facts: dict[str, object] = {
        "id": node.id,
        "task": node.name or node.kind,
        "state": node.state,
        "queue": node.queue or None,
        "attempt": node.attempt or None,
        "worker": node.worker or None,
        "progress": progress_text(node),
        "reason": node.reason or None,
        "ended": iso(node.ended or None),
    }
    if node.kind is not Kind.TASK:
        facts["members"] = (
            f"{amount(node.size, 'member')}, {node.done:,} ended, {node.bad:,} failed"
        )
    return facts


def node_data(node: Node) -> dict[str, object]:
    """Return a row for programs."""
    return {
        "id": node.id,
        "kind": node.kind,
        "task": node.name or None,
        "state": node.state,
        "queue": node.queue or None,
        "attempt": node.attempt,
        "run": node.run,
        "priority": node.priority,
        "due": iso(node.due or None),
        "ended": iso(node.ended or None),
        "worker": node.worker or None,
        "progress": json.loads(node.progress or b"null"),
        "reason": node.reason or None,
        "size": node.size,
        "done": node.done,
        "failed": node.bad,
    }


def worker_data(beat: Heartbeat, nodes: Mapping[str, Node]) -> dict[str, object]:
    """Return a worker for programs; `nodes` are the rows of what it runs."""
    info = info_of(beat)
    active = [
        each | {"since": iso(nodes[each["id"]].due) if each["id"] in nodes else None}
        for each in info["active"]
    ]
    return {
        "worker": beat.worker,
        "alive": is_alive(beat),
        "seen": iso(beat.at),
        "queues": info["queues"],
        "registered": info["registered"],
        "active": active,
        "counts": info["counts"],
    }
