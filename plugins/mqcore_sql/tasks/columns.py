"""A node as a row: the names and types of its columns, and how a value is written and read."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from operator import attrgetter, itemgetter
from typing import Any

from mqcore.tasks.spi import CancelFlag, Kind, Node, Policy, State
from mqcore_sql.database import Columns

__all__ = ["COLUMNS", "DEFAULTS", "Values", "columns_of", "node_of", "values_of"]

Values = tuple[Any, ...]
"""The values of a node's fields, in the order of `COLUMNS`."""

_FIELDS = tuple(field.name for field in fields(Node))
_RENAMED = {"index": "place", "unique": "unique_key"}
COLUMNS = tuple(_RENAMED.get(name, name) for name in _FIELDS)
_TYPES = {
    **dict.fromkeys(("payload", "progress", "result"), "{bytes}"),
    **dict.fromkeys(("delay", "ttl", "due", "turn", "seal_by", "ended"), "double precision"),
    **dict.fromkeys(
        ("index", "run", "priority", "attempt", "copies", "progress_number", "size", "done", "bad"),
        "integer",
    ),
    **dict.fromkeys(("follows", "is_sealed", "is_counted"), "integer"),
}
_KINDS = {str(kind): kind for kind in Kind}
_STATES = {str(state): state for state in State}
_POLICIES = {str(policy): policy for policy in Policy}
_FLAGS = {str(flag): flag for flag in CancelFlag}
_CHOICES = ("kind", "state", "policy", "cancel")
_KIND, _STATE, _POLICY, _CANCEL = map(_FIELDS.index, _CHOICES)
_SEALED, _COUNTED = map(_FIELDS.index, ("is_sealed", "is_counted"))

_values: Callable[[dict[str, Any]], Values] = itemgetter(*_FIELDS)


def values_of(node: Node) -> Values:
    """Return the values of a node's fields."""
    return _values(node.__dict__)


DEFAULTS = values_of(Node(id=""))


def node_of(values: Values) -> Node:
    """Return the node of a row."""
    node = object.__new__(Node)
    node.__dict__.update(zip(_FIELDS, values))  # noqa: B905 - the columns are the fields
    node.kind = _KINDS[values[_KIND]]
    node.state = _STATES[values[_STATE]]
    node.policy = _POLICIES[values[_POLICY]]
    node.cancel = _FLAGS[values[_CANCEL]]
    node.is_sealed = bool(values[_SEALED])
    node.is_counted = bool(values[_COUNTED])
    return node


def columns_of(places: Sequence[int], rows: Sequence[Values]) -> Columns:
    """Return the columns with these places, as `Database.insert` and `update` take them."""
    table = list(zip(*rows, strict=True))
    found: dict[str, tuple[str, Sequence[Any]]] = {}
    for place in places:
        field = _FIELDS[place]
        write = _WRITERS.get(field)
        values = table[place] if write is None else list(map(write, table[place]))
        found[COLUMNS[place]] = (_TYPES.get(field, "text"), values)
    return found


def _stored_text(text: str) -> str:
    """Return a text that every database stores: no zero character, no half of a character."""
    if text.isascii() and "\0" not in text:
        return text
    return text.encode(errors="replace").decode().replace("\0", "\N{REPLACEMENT CHARACTER}")


_WRITERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(_CHOICES, attrgetter("value")),
    "is_sealed": int,
    "is_counted": int,
    "reason": _stored_text,
}
