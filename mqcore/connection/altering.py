"""Which settings of a queue change, and on which physical queue: those of dead letters are the dead-letter queue's."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypedDict, cast

from mqcore.errors import ConfigurationError
from mqcore.rules.checks import check_count, check_options, check_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta
    from typing import Literal

    from mqcore.spi import Alterations, QueueCounts

__all__ = ["AlterOptions", "checked_alterations", "for_each_queue"]


class AlterOptions(TypedDict, total=False):
    """Settings that an existing queue can be given, as in `QueueOptions`; None takes one away, one that is left out stays.

    `retention` is for the dead-letter queue, by its own name or by that of its queue.
    """

    ttl: float | timedelta | None
    max_length: int | None
    overflow: Literal["reject", "dead_letter"]
    retention: float | timedelta | None


def checked_alterations(options: AlterOptions, queue: str) -> Alterations:
    """Return the settings in seconds.

    Raises `ConfigurationError` for an unknown or unusable one, and for none.
    """
    where = f"altering queue {queue!r}"
    check_options(options, AlterOptions, where)
    if not options:
        raise ConfigurationError(
            f"{where}: nothing to change; give ttl, max_length, overflow or retention, or the "
            "Queue that says them"
        )

    found: dict[str, object] = dict(options)
    for name in ("ttl", "retention"):
        if found.get(name) is not None:
            found[name] = check_seconds(name, found[name], where)
    if found.get("max_length") is not None:
        check_count("max_length", found["max_length"], where)
    if found.get("overflow", "reject") not in ("reject", "dead_letter"):
        raise ConfigurationError(
            f"{where}: overflow={found['overflow']!r:.60} is unknown; it is 'reject' or "
            "'dead_letter'"
        )
    return cast("Alterations", found)


def for_each_queue(counts: QueueCounts, settings: Alterations) -> Mapping[str, Alterations]:
    """Return which settings change on which queue.

    Raises `ConfigurationError` for one that the queue has no use for.
    """
    own = {name: value for name, value in settings.items() if name != "retention"}
    letters = counts.name if counts.role == "dead_letter" else counts.dead_letter
    what = f"queue {counts.name!r}"

    if counts.role not in ("work", "dead_letter"):
        raise ConfigurationError(
            f"{what} is a {counts.role} queue, whose settings mqcore itself chooses"
        )
    if own and counts.role == "dead_letter":
        raise ConfigurationError(
            f"{what} is a dead-letter queue: it has a retention, and no {', '.join(own)}"
        )
    if "retention" in settings and letters is None:
        raise ConfigurationError(
            f"{what} has no dead-letter queue, so a retention would do nothing"
        )
    if own.get("overflow") == "dead_letter" and letters is None:
        raise ConfigurationError(
            f"{what} has no dead-letter queue, so overflow='dead_letter' cannot be kept"
        )

    found: dict[str, Alterations] = {}
    if own:
        found[counts.name] = cast("Alterations", own)
    if letters is not None and "retention" in settings:
        found[letters] = {"retention": settings["retention"]}
    return found
