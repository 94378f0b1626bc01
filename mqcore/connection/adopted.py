"""Checks an adopted queue: one that another program declares (`declare=False`).

Its options in code and configuration are compared with the queue on the broker. An option that
cannot be checked is refused, so no option of an adopted queue is ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mqcore.errors import ConfigurationError, TopologyMismatch

if TYPE_CHECKING:
    from mqcore.queue import Queue
    from mqcore.spi import QueueSpec

__all__ = ["check_adopted", "given"]

_OF_THE_QUEUE = ("ttl", "max_length", "overflow")


def given(queue: Queue[Any], option: str) -> bool:
    """Whether code or configuration has this option."""
    return option in queue.options


def check_adopted(queue: Queue[Any], have: QueueSpec | None, letters: QueueSpec | None) -> None:
    """Compare an adopted queue's options with its settings on the broker.

    `have` is what the queue was declared with, `letters` what its dead-letter queue was declared
    with; None where the broker cannot tell. Raises `TopologyMismatch` for a different setting, and
    `ConfigurationError` for an option that cannot be checked.
    """
    for setting in _OF_THE_QUEUE:
        if given(queue, setting):
            _check(queue, setting, getattr(queue, setting), have)
    if given(queue, "retention"):
        _check(queue, "retention", queue.retention, letters)

    # A queue without a dead-letter queue may get one here, because consumers do the dead-lettering.
    # A queue that has another one keeps it.
    if (
        given(queue, "dead_letter")
        and have is not None
        and have.role == "work"
        and have.dead_letter is not None
    ):
        _check(queue, "dead_letter", queue.dead_letter, have)


def _check(queue: Queue[Any], setting: str, value: object, have: QueueSpec | None) -> None:
    if have is None:
        raise ConfigurationError(
            f"queue {queue.name!r}: {setting}={value!r} can be neither set nor checked. "
            "declare=False adopts a queue as it is, and mqcore did not declare this one. Leave the "
            "option out, or set it where the queue is made"
        )

    if (actual := getattr(have, setting)) != value:
        raise TopologyMismatch(
            f"queue {have.name!r} exists with {setting}={actual!r}, but the code adopts "
            f"{queue.name!r} with {setting}={value!r} and declare=False. Leave the option out to "
            "take the queue as it is, or use the same value"
        )
