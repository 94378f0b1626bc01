"""The result of a node, read down its tree: a group's is the list of its members' results."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mqcore.tasks.model.nodes import Kind, child_id, replacement_id
from mqcore.tasks.model.states import State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.tasks.model.nodes import Node
    from mqcore.tasks.store.seam import TaskStore

__all__ = ["Failure", "Value", "value_below", "value_of"]


@dataclass(frozen=True, slots=True)
class Failure:
    """Stands in the place of a result when the node did not succeed."""

    node: str
    state: State
    reason: str


Value = bytes | None | Failure | list["Value"]


async def value_of(store: TaskStore, node: str) -> Value:
    """Return the result of a node, with those of a group's members in their order."""
    found = (await store.nodes([node]))[0]
    return None if found is None else await value_below(store, found)


async def value_below(store: TaskStore, node: Node) -> Value:
    """Return the result of a node that was read already."""
    while node.state is State.SUCCEEDED and node.kind in {Kind.CHAIN, Kind.REPLACED}:
        is_chain = node.kind is Kind.CHAIN
        last = child_id(node.id, node.size - 1) if is_chain else replacement_id(node.id)
        below = (await store.nodes([last]))[0]
        if below is None:
            return None
        node = below

    if node.state is not State.SUCCEEDED:
        return Failure(node.id, node.state, node.reason)
    if node.kind is Kind.GROUP:
        return await _values(store, await store.children(node.id, 0, node.size))
    return node.result


async def _values(store: TaskStore, nodes: Sequence[Node]) -> list[Value]:
    return [
        node.result
        if node.kind is Kind.TASK and node.state is State.SUCCEEDED
        else await value_below(store, node)
        for node in nodes
    ]
