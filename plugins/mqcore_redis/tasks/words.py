"""Changes as the words of a script call, and rows and outcomes read from its answer.

`lua/tasks/rows.lua` explains how a row is stored, `lua/tasks/changes.lua` reads the words.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, cast

from mqcore.tasks.spi import (
    Announcement,
    CancelFlag,
    Heartbeat,
    Kind,
    Node,
    OutboxEntry,
    Policy,
    Schedule,
    State,
    changes,
    outcomes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mqcore.tasks.spi import Change, Outcome, RateLimit, SlotLimit

__all__ = [
    "INSERTS",
    "announcement_of",
    "heartbeat_of",
    "node_of",
    "outbox_entry_of",
    "outcome_of",
    "schedule_of",
    "words_of",
]

INSERTS = (changes.Add, changes.More, changes.Replace, changes.Fire)
"""The changes that insert rows."""

_Words = list[str | int | bytes]
_BLANK = Node(id="")
_DEFAULTS = dict(_BLANK.__dict__)
_TIMES = ("delay", "ttl", "due", "turn", "seal_by", "ended")
"""Fields that are stored as text: cjson would round a number to 14 digits."""
_NOT_IN_JSON = ("id", "payload", "result", "progress")
_PARENT = re.compile(r"(.*)[.~][^.~]*", re.DOTALL)
_ENUMS: dict[str, dict[str, Any]] = {
    "kind": {it.value: it for it in Kind},
    "state": {it.value: it for it in State},
    "policy": {it.value: it for it in Policy},
    "cancel": {it.value: it for it in CancelFlag},
}


# Rows


def _parent_of(node: str) -> str:
    found = _PARENT.fullmatch(node)
    return found[1] if found else ""


def _packed(node: Node) -> bytes:
    """Return the JSON of a row: what differs from the defaults, and from what its id says."""
    fields = {name: value for name, value in node.__dict__.items() if value != _DEFAULTS[name]}
    for name in _NOT_IN_JSON:
        fields.pop(name, None)
    for name in _TIMES:
        if name in fields:
            fields[name] = repr(float(fields[name]))

    fields.pop("parent", None)
    if node.parent != _parent_of(node.id):
        fields["parent"] = node.parent
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode(
        "utf-8", "surrogatepass"
    )


def node_of(id: str, row: Sequence[bytes | None]) -> Node:
    """Return the row with this id from its JSON, payload, result and progress."""
    packed, payload, result, progress = row
    fields: dict[str, Any] = _json(packed)
    for name in _TIMES:
        if name in fields:
            fields[name] = float(fields[name])
    for name, members in _ENUMS.items():
        if name in fields:
            fields[name] = members[fields[name]]
    if "progress_number" in fields:
        fields["progress_number"] = int(fields["progress_number"])

    fields["id"] = id
    fields.setdefault("parent", _parent_of(id))
    fields["payload"], fields["result"], fields["progress"] = (
        payload or b"",
        result,
        progress or b"",
    )
    node = _BLANK.copy()
    node.__dict__.update(fields)
    return node


def _json(packed: bytes | None) -> Any:
    return json.loads((packed or b"{}").decode("utf-8", "surrogatepass"))


def _rows(rows: Sequence[Node], group: str | None = None) -> _Words:
    """Return the words of rows to insert. `group` is the group that they are added to."""
    words: _Words = [len(rows)]
    for row in rows:
        mark = "" if row.is_sealed else "u"
        if group is not None and row.parent == group:
            mark += "m"
        words += (row.id, mark, _packed(row), row.payload)
    return words


# Changes


def _optional(value: bytes | None) -> _Words:
    return ["", ""] if value is None else ["1", value]


def _add(it: changes.Add) -> _Words:
    return ["add", "1" if it.waits else "", *_rows(it.rows)]


def _more(it: changes.More) -> _Words:
    return ["more", it.group, "1" if it.seal else "", *_rows(it.rows, it.group)]


def _begin(it: changes.Begin) -> _Words:
    missing = [] if it.missing is None else [it.missing]
    words = (it.task, it.run, it.attempt, it.token, it.worker)
    limits = (*_rate(it.rate), *_slot(it.slot))
    return ["begin", *words, "1" if it.is_redelivered else "", *_rows(missing), *limits]


def _rate(it: RateLimit | None) -> _Words:
    return [""] if it is None else [it.key, repr(float(it.interval)), it.burst]


def _slot(it: SlotLimit | None) -> _Words:
    if it is None:
        return [""]
    return [it.key, it.count, "1" if it.keeps else "", "1" if it.takes_over else ""]


def _end(it: changes.End) -> _Words:
    ending = (it.state.value, it.reason, *_optional(it.result))
    return ["done", it.task, it.run, it.token, *ending]  # `end` is a keyword of Lua


def _gone(it: changes.Gone) -> _Words:
    return ["gone", it.task, it.run, it.state.value, it.reason]


def _back(it: changes.Back) -> _Words:
    return ["back", it.task, it.run, it.token, it.state.value, repr(float(it.delay))]


def _replace(it: changes.Replace) -> _Words:
    return ["replace", it.task, it.run, it.token, *_rows(it.rows)]


def _cancel(it: changes.Cancel) -> _Words:
    return ["cancel", it.node, it.reason]


def _progress(it: changes.Progress) -> _Words:
    return ["progress", it.task, it.run, it.token, it.number, it.value]


def _spread(it: changes.Spread) -> _Words:
    return ["spread", it.group, it.start]


def _recover(it: changes.Recover) -> _Words:
    return ["recover", it.node, repr(float(it.before))]


def _fire(it: changes.Fire) -> _Words:
    next_at = "" if it.next_at is None else repr(float(it.next_at))
    return ["fire", it.schedule, it.version, next_at, *_optional(it.definition), *_rows(it.rows)]


def _sent(it: changes.Sent) -> _Words:
    return ["sent", len(it.keys), *it.keys]


_WORDS: dict[type, Callable[[Any], _Words]] = {
    changes.Add: _add,
    changes.More: _more,
    changes.Begin: _begin,
    changes.End: _end,
    changes.Gone: _gone,
    changes.Back: _back,
    changes.Replace: _replace,
    changes.Cancel: _cancel,
    changes.Progress: _progress,
    changes.Spread: _spread,
    changes.Recover: _recover,
    changes.Fire: _fire,
    changes.Sent: _sent,
}


def words_of(change: Change) -> _Words:
    """Return the words of a change."""
    return _WORDS[type(change)](change)


# Answers

_OUTCOMES: dict[bytes, Outcome] = {
    type(it).__name__.lower().encode(): it
    for it in (
        outcomes.Ok(),
        outcomes.Added(),
        outcomes.Exists(),
        outcomes.Closed(),
        outcomes.Cancelled(),
        outcomes.Stale(),
        outcomes.Unknown(),
        outcomes.Ended(),
        outcomes.Refused(),
        outcomes.Busy(),
        outcomes.Asked(),
        outcomes.Done(),
        outcomes.Fired(),
        outcomes.Lost(),
    )
}


def outcome_of(change: Change, answer: Any) -> Outcome:
    """Return the outcome of a change."""
    if isinstance(answer, bytes):
        return _OUTCOMES[answer]
    name, *given = answer
    match name:
        case b"later":
            return outcomes.Later(float(given[0]) if given[0] else None)
        case b"started":
            return outcomes.Started(node_of(cast("changes.Begin", change).task, given))
        case b"terminal":
            return outcomes.Terminal(_ENUMS["state"][given[0].decode()])
    return outcomes.Conflict(given[0].decode())


def outbox_entry_of(key: str, answer: Sequence[bytes]) -> OutboxEntry:
    """Return an outbox entry from its time, run, start and node."""
    written, run, start, node = (word.decode() for word in answer)
    return OutboxEntry(key, node, int(run), None if start == "-" else int(start), float(written))


def announcement_of(text: bytes) -> Announcement:
    """Return the rows that a transaction has published."""
    ended, moved = text.decode().split("\n")
    return Announcement(ended.split(), moved.split())


def schedule_of(name: bytes, stored: bytes) -> Schedule:
    """Return a schedule."""
    head, _, definition = stored.partition(b"\n")
    found = _json(head)
    next_at = float(found["next_at"]) if found["next_at"] else None
    return Schedule(name.decode(), found["version"], next_at, definition)


def heartbeat_of(worker: bytes, stored: bytes) -> Heartbeat:
    """Return a heartbeat."""
    head, _, info = stored.partition(b"\n")
    found = _json(head)
    return Heartbeat(worker.decode(), float(found["ttl"]), info, float(found["at"]))
