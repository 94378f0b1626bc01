"""Creating queues as they were declared, and comparing those that exist."""

from collections.abc import Sequence
from typing import Any

from mqcore.spi import (
    HIDDEN_ROLES,
    Alterations,
    ConfigurationError,
    QueueCounts,
    QueueSpec,
    TopologyMismatch,
    mismatch,
)
from mqcore_redis.session import Session

__all__ = ["alter", "declare", "read_counts"]


async def declare(session: Session, specs: Sequence[QueueSpec]) -> None:
    """Create missing queues, all or none of those that share a slot.

    Raises `TopologyMismatch` and `ConfigurationError`. A queue that exists writes nothing, so a
    full server refuses only new ones.
    """
    keys = session.keys
    groups: dict[str, list[QueueSpec]] = {}
    for spec in specs:
        if spec.max_length is not None and spec.overflow == "dead_letter":
            _check_slot(session, spec.name, spec.dead_letter)
        groups.setdefault(keys.group(spec.name), []).append(spec)
    listed = [spec.name for spec in specs if spec.role not in HIDDEN_ROLES]
    # First, because `count` leaves out a listed queue that is missing, but cannot find another.
    await _list(session, listed)
    for group in groups.values():
        settings = [keys.one(spec.name, "q") for spec in group]
        words = [word for spec in group for word in _fields(spec)]
        clash = await session.run("declare", settings, *words)
        if clash:
            number, field, found = clash
            raise _mismatch(group[number - 1], field.decode(), found.decode())
    await _list(session, listed)  # a delete meanwhile has removed the name


async def alter(session: Session, queue: str, settings: Alterations) -> None:
    """Change settings of a queue.

    Raises `QueueNotFound`, and `ConfigurationError` where a cluster cannot keep them.
    """
    keys = session.keys
    key = keys.one(queue, "q")
    if settings.get("overflow") == "dead_letter":
        letters = await session.command("HGET", key, "dead_letter")
        _check_slot(session, queue, letters.decode() if letters else None)
    words = [word for field, value in settings.items() for word in (field, _word(field, value))]
    if await session.run("alter", [key], *words) == -1:
        raise session.missing(queue)


def _check_slot(session: Session, queue: str, letters: str | None) -> None:
    """Refuse an overflow from one slot of a cluster into another."""
    if letters is not None and session.keys.group(letters) != session.keys.group(queue):
        raise ConfigurationError(
            f"queue {queue!r} overflows into {letters!r}, which is in another slot of the cluster: "
            "use its own dead-letter queue, overflow='reject', or ?tag=NAME in the URL"
        )


async def _list(session: Session, names: Sequence[str]) -> None:
    """Make sure that queues are in the list of all queues."""
    if names:
        known = await session.command("SMISMEMBER", session.keys.queues, *names)
        if new := [name for name, there in zip(names, known, strict=True) if not there]:
            await session.command("SADD", session.keys.queues, *new)


def _fields(spec: QueueSpec) -> list[Any]:
    """Return a spec as the script reads it."""
    fields = ("name", "role", "ttl", "max_length", "overflow", "dead_letter", "retention")
    return [_word(field, getattr(spec, field)) for field in fields]


def _word(field: str, value: Any) -> Any:
    """Return a setting as scripts read it: empty for None, times in microseconds."""
    if value is None:
        return ""
    return round(value * 1e6) if field in ("ttl", "retention") else value


def read_counts(name: str, found: dict[str, Any]) -> QueueCounts:
    """Read the counts of the script, with the settings of the queue."""
    settings = {
        field: found.pop(field)
        for field in ("ttl", "retention", "max_length", "overflow")
        if field in found
    }
    settings |= {
        field: settings[field] / 1e6 for field in ("ttl", "retention") if field in settings
    }
    spec = QueueSpec(
        name=name, role=found["role"], dead_letter=found.get("dead_letter"), **settings
    )
    return QueueCounts(name=name, **found, spec=spec)


def _mismatch(spec: QueueSpec, field: str, found: str) -> TopologyMismatch:
    """Return the error for an existing queue whose `field` has another value."""
    have: object = found or None
    if found and field in ("ttl", "retention", "max_length"):
        have = int(found) if field == "max_length" else int(found) / 1e6
    return mismatch(
        spec.name, field, have, getattr(spec, field), alterable=field in Alterations.__annotations__
    )
