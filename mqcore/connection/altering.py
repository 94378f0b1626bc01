"""Which settings of a queue are altered, and on which queue of the broker.

A queue's `retention` is a setting of its dead-letter queue.
"""

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
    """The settings that `Broker.alter` can change; their meaning is that of `QueueOptions`.

    None removes a setting; one that is left out stays. `retention` is a setting of the dead-letter
    queue: give the name of that queue, or of the queue that it belongs to.
    """

    ttl: float | timedelta | None
    max_length: int | None
    overflow: Literal["reject", "dead_letter"]
    retention: float | timedelta | None


def checked_alterations(options: AlterOptions, queue: str) -> Alterations:
    """Return the settings, with times in seconds.

    Raises `ConfigurationError` for an unknown or wrong setting, and when there is none.
    """
    where = f"altering queue {queue!r}"
    check_options(options, AlterOptions, where)
    if not options:
        raise ConfigurationError(
            f"{where}: nothing to change; give ttl, max_length, overflow or retention, or a Queue "
            "with its settings"
        )

    settings: dict[str, object] = dict(options)
    for name in ("ttl", "retention"):
        if settings.get(name) is not None:
            settings[name] = check_seconds(name, settings[name], where)
    if settings.get("max_length") is not None:
        check_count("max_length", settings["max_length"], where)
    if settings.get("overflow", "reject") not in ("reject", "dead_letter"):
        raise ConfigurationError(
            f"{where}: overflow={settings['overflow']!r:.60} is unknown; it is 'reject' or "
            "'dead_letter'"
        )
    return cast("Alterations", settings)


def for_each_queue(counts: QueueCounts, settings: Alterations) -> Mapping[str, Alterations]:
    """Return for each queue on the broker the settings to alter.

    Raises `ConfigurationError` for a setting that has no effect on this kind of queue.
    """
    own = {name: value for name, value in settings.items() if name != "retention"}
    letters = counts.name if counts.role == "dead_letter" else counts.dead_letter
    what = f"queue {counts.name!r}"

    if counts.role not in ("work", "dead_letter"):
        raise ConfigurationError(
            f"{what} is a {counts.role} queue: mqcore itself chooses its settings"
        )
    if own and counts.role == "dead_letter":
        raise ConfigurationError(
            f"{what} is a dead-letter queue: only its retention can be altered, not "
            f"{', '.join(own)}"
        )
    if "retention" in settings and letters is None:
        raise ConfigurationError(
            f"{what} has no dead-letter queue, so a retention would have no effect"
        )
    if own.get("overflow") == "dead_letter" and letters is None:
        raise ConfigurationError(
            f"{what} has no dead-letter queue, so overflow='dead_letter' cannot be kept"
        )

    alterations: dict[str, Alterations] = {}
    if own:
        alterations[counts.name] = cast("Alterations", own)
    if letters is not None and "retention" in settings:
        alterations[letters] = {"retention": settings["retention"]}
    return alterations
