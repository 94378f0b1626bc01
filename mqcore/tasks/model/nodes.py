"""The one kind of row: a node of a workflow's tree.

A task, a group, a chain and a task that was replaced are all nodes. A single task is a tree of one
node. The id of a child follows from the id of its parent, so no list of children is stored:

    7f3a        a chain
    7f3a.0      its first step, a group
    7f3a.0.5    the sixth member of the group
    7f3a.1      its second step, the body of the chord
    7f3a.1~     the call that replaced the body
    7f3a.-1     the call that is sent when the chain fails, and 7f3a.-2 when it ends
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from mqcore.tasks.model.states import ENDED, NEXT, IllegalTransition, State

__all__ = [
    "FOLLOWING",
    "ON_DONE",
    "ON_ERROR",
    "CancelFlag",
    "Kind",
    "Node",
    "Policy",
    "child_id",
    "replacement_id",
    "root_of",
]

ON_ERROR, ON_DONE = 1, 2
FOLLOWING = {ON_ERROR: -1, ON_DONE: -2}
"""The places of the calls that follow the end of a node. No member or step has such a place."""
_BELOW_ROOT = re.compile(r"[.~]")


class Kind(StrEnum):
    """What a node is."""

    TASK = "task"
    GROUP = "group"
    """Its members run beside each other."""
    CHAIN = "chain"
    """Its steps run one after the other, and each takes the result of the one before."""
    REPLACED = "replaced"
    """A task that returned another call in place of a result."""


class Policy(StrEnum):
    """What a group does when a member does not succeed."""

    FAIL = "fail"
    """The other members go on, then the group fails."""
    CANCEL = "cancel"
    """The other members are cancelled, and the group fails."""
    COLLECT = "collect"
    """The group succeeds, with a failure in place of the member's result."""


class CancelFlag(StrEnum):
    """Whether a node is to be cancelled. The flag holds for everything below the node."""

    NO = "no"
    ASKED = "asked"
    FAILURE = "failure"
    """A group of the policy `cancel`, one member of which did not succeed."""


@dataclass(kw_only=True)
class Node:
    """One row. A store returns copies, so a caller may keep what it has read."""

    id: str
    kind: Kind = Kind.TASK
    parent: str = ""
    index: int = 0
    """The place among the children of the parent; below 0 for a call that follows its end."""
    state: State = State.WAITING
    run: int = 0
    """How often its dead letter was redriven."""

    name: str = ""
    """The registered name of the task."""
    queue: str = ""
    priority: int | None = None
    payload: bytes = b""
    delay: float = 0.0
    """Seconds between the release of the node and its first start."""
    ttl: float | None = None
    unique: str = ""
    """The unique key. Only a root has one; it is claimed until the root has ended."""

    attempt: int = 0
    token: str = ""
    """Names the running attempt. Only its holder may end, retry or replace the task."""
    worker: str = ""
    copies: int = 0
    """How many further messages were published because one seemed to be lost."""
    due: float = 0.0
    """When the message should be ready, or when the attempt began."""
    turn: float = 0.0
    """When a task that waits for its turn of a rate may start; 0 for one that does not."""
    slot: str = ""
    """The key of the slots of which the task has one, or waits for one."""
    progress: bytes = b""
    progress_number: int = 0

    size: int = 0
    """How many members or steps there are; of an unsealed group, how many were added so far."""
    done: int = 0
    """How many of them have ended; of a chain, also the index of its current step."""
    bad: int = 0
    """How many of a group's members have ended without success."""
    is_sealed: bool = True
    """Whether all members of a group were added."""
    seal_by: float = 0.0
    """When an unsealed group counts as abandoned by its sender."""
    policy: Policy = Policy.FAIL
    follows: int = 0
    """Which calls follow its end: the sum of `ON_ERROR` and `ON_DONE`."""

    cancel: CancelFlag = CancelFlag.NO
    is_counted: bool = False
    """Whether the parent has counted the ending of this node. It counts only once (T3)."""
    input: str = ""
    """The node whose result this one takes. A result is never copied."""
    result: bytes | None = None
    reason: str = ""
    ended: float = 0.0

    @property
    def has_ended(self) -> bool:
        """Whether the state is terminal."""
        return self.state in ENDED

    def move_to(self, state: State) -> None:
        """Change the state. Raises `IllegalTransition` for one that cannot follow."""
        if state not in NEXT[self.state]:
            raise IllegalTransition(
                f"task {self.id!r} cannot become {state}, because it is {self.state}. This is a "
                "defect in mqcore: please report it"
            )
        self.state = state

    def copy(self) -> Node:
        """Return an independent copy."""
        other = object.__new__(Node)
        other.__dict__.update(self.__dict__)  # a tenth of the time of dataclasses.replace
        return other


def child_id(parent: str, index: int) -> str:
    """Return the id of a member or step."""
    return f"{parent}.{index}"


def replacement_id(task: str) -> str:
    """Return the id of the node that replaces a task."""
    return f"{task}~"


def root_of(node: str) -> str:
    """Return the id of the root of a node's tree."""
    return _BELOW_ROOT.split(node, maxsplit=1)[0]
