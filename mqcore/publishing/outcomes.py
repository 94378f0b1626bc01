"""How a publish ended: stored in all its queues, certainly in none, or unknown (G1)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mqcore.errors import (
    Blocked,
    MessageTooLarge,
    MqcoreError,
    PublishFailed,
    PublishUnknown,
    QueueFull,
    QueueNotFound,
    Unroutable,
)
from mqcore.publishing.options import Receipt
from mqcore.queue import Queue, name_of
from mqcore.router import Router
from mqcore.spi import ErrorKind, Failed, Outcome, Stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.events import Events
    from mqcore.publishing.outbound import Outbound

__all__ = ["ending", "only", "pending_receipt", "receipt"]

_ERRORS: dict[ErrorKind, type[PublishFailed]] = {
    ErrorKind.NOT_FOUND: QueueNotFound,
    ErrorKind.FULL: QueueFull,
    ErrorKind.TOO_LARGE: MessageTooLarge,
    ErrorKind.TRANSIENT: Blocked,
}


def ending(
    to: Queue[Any] | Router[Any] | str,
    sent: Outbound,
    hint: str,
    events: Events,
    *,
    drops: bool = False,
) -> Receipt | MqcoreError:
    """Return the receipt of a message that was sent, or its error, and emit the event.

    `hint` is added to an error's text. With `drops`, a message that no binding takes has a receipt.
    """
    message, plan, outcomes = sent.message, sent.plan, list(sent.outcomes.values())
    if drops and not hint and _is_unroutable(to, sent):
        events.emit("message.unrouted", name_of(to), message.id)
        return Receipt(message.id, ())
    if isinstance(plan, Unroutable):
        events.emit("publish.failed", name_of(to), message.id, error=f"{plan}{hint}")
        return Unroutable(f"{plan}{hint}", id=message.id) if hint else plan

    if sent.is_stored:
        duplicate = all(getattr(outcome, "duplicate", False) for outcome in outcomes)
        return receipt(message.id, sent.names, events, duplicate=duplicate)

    failed = [outcome for outcome in outcomes if isinstance(outcome, Failed)]
    if len(failed) == len(outcomes):
        error = _failure(to, message.id, failed[0], hint)
        events.emit("publish.failed", name_of(to), message.id, error=_reason(to, failed[0], hint))
        return error

    return _unknown(message.id, sent.names, outcomes, events)


def _is_unroutable(to: Queue[Any] | Router[Any] | str, sent: Outbound) -> bool:
    """Whether core or the broker has found no binding of the router that takes the message."""
    if isinstance(sent.plan, Unroutable):
        return True
    failed = [each for each in sent.outcomes.values() if isinstance(each, Failed)]
    return len(failed) == len(sent.outcomes) and all(
        _error_class(to, each) is Unroutable for each in failed
    )


def only(results: Sequence[Receipt | MqcoreError]) -> Receipt:
    """Return the receipt of the only message of a batch, or raise its error."""
    (result,) = results
    if isinstance(result, MqcoreError):
        raise result
    return result


def receipt(id: str, names: tuple[str, ...], events: Events, *, duplicate: bool) -> Receipt:
    """Return the receipt of a message that these queues have stored, and emit the event."""
    events.emit("message.published", names[0], id, duplicate=duplicate)
    return Receipt(id, names, duplicate)


def pending_receipt(sent: Outbound, names: tuple[str, ...], events: Events) -> Receipt:
    """Return the receipt of a message that is in a transaction, and emit the event."""
    duplicate = all(getattr(outcome, "duplicate", False) for outcome in sent.outcomes.values())
    events.emit("message.enlisted", names[0], sent.message.id, duplicate=duplicate)
    return Receipt(sent.message.id, names, duplicate, pending=True)


def _unknown(
    id: str, names: tuple[str, ...], outcomes: list[Outcome], events: Events
) -> PublishUnknown:
    """At least one queue gave no answer, or the queues of a router gave different ones."""
    by_queue = {name: _describe(outcome) for name, outcome in zip(names, outcomes, strict=True)}
    text = ", ".join(f"{name!r}: {description}" for name, description in by_queue.items())
    events.emit("publish.unknown", names[0], id, error=text)

    error = PublishUnknown(
        f"message {id} may or may not be stored ({text}). Publish it again with id={id!r} to be "
        "sure",
        id=id,
        outcomes=by_queue,
    )
    error.__cause__ = next(
        (outcome.cause for outcome in outcomes if not isinstance(outcome, Stored)), None
    )
    return error


def _failure(
    to: Queue[Any] | Router[Any] | str, id: str, failed: Failed, hint: str
) -> PublishFailed:
    """The message is certainly not stored."""
    error = _error_class(to, failed)(
        f"message {id} for {name_of(to)!r} is not stored: {_reason(to, failed, hint)}", id=id
    )
    error.__cause__ = failed.cause
    return error


def _error_class(to: Queue[Any] | Router[Any] | str, failed: Failed) -> type[PublishFailed]:
    if failed.kind is ErrorKind.NOT_FOUND and isinstance(to, Router):
        return Unroutable
    return _ERRORS.get(failed.kind, PublishFailed)


def _reason(to: Queue[Any] | Router[Any] | str, failed: Failed, hint: str) -> str:
    if _error_class(to, failed) is QueueNotFound:
        if isinstance(to, Queue) and not to.declare:
            return (
                "the queue does not exist, and declare=False says not to create it. Start the "
                f"program that declares it{hint}"
            )

        if not hint:
            return (
                "the queue does not exist. Publish to a Queue(...) to declare it, or start its "
                "consumer once"
            )

    return f"{failed.text}{hint}"


def _describe(outcome: Outcome) -> str:
    if isinstance(outcome, Stored):
        return "stored"
    word = "not stored" if isinstance(outcome, Failed) else "unknown"
    return f"{word} ({outcome.text})"
