"""What an exception means for its message: one judgment for every executor, here and nowhere else.

A handler in the event loop, in a thread and in a process of its own raises the same things, so they
mean the same.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

from mqcore.clock import seconds
from mqcore.errors import DecodeError, HandlerTimeout, Reject, Retry, ValidationError
from mqcore.rules.retry import Failure, Happened, Outcome, exceptions_in

__all__ = ["Ended", "outcome_of", "outcome_of_decoding"]


class Ended(Exception):
    """Raised for a run in another process that did not succeed: its outcome, as the process itself has reported it."""

    def __init__(self, outcome: Outcome) -> None:
        """The text is the failure's."""
        super().__init__(outcome.failure.text if outcome.failure else outcome.happened.value)
        self.outcome = outcome


_DECISIONS = (Ended, Retry, Reject, HandlerTimeout)


def outcome_of(error: BaseException) -> Outcome:
    """Return what an exception out of a handler or a middleware means. Never raises."""
    decision = _decision_in(error)
    if isinstance(decision, Ended):
        return decision.outcome

    failure = Failure.of(decision)
    if decision is not error:
        failure = replace(failure, traceback=Failure.of(error).traceback)

    if isinstance(decision, Retry):
        try:
            wanted = getattr(decision, "delay", None)  # a subclass need not call our __init__
            delay = None if wanted is None else seconds(wanted)
        except Exception as wrong:  # noqa: BLE001 - a handler's value; a delay that cannot be read is the handler's failure
            unusable = Failure.of(wrong)
            text = f"the delay of Retry is not usable; give seconds or a timedelta: {unusable.text}"
            return Outcome(Happened.FAILED, replace(unusable, text=text))
        return Outcome(Happened.RETRY, failure, delay)
    if isinstance(decision, Reject):
        return Outcome(Happened.REJECTED, failure)
    if isinstance(decision, HandlerTimeout):
        return Outcome(Happened.TIMED_OUT, failure)
    return Outcome(Happened.FAILED, failure)


def outcome_of_decoding(error: BaseException) -> Outcome:
    """Return what an exception out of decoding means: `undecodable`, `invalid`, or a failure of the payload type's own code."""
    if isinstance(error, DecodeError):
        return Outcome(Happened.UNDECODABLE, Failure.of(error))
    if isinstance(error, ValidationError):
        return Outcome(Happened.INVALID, Failure.of(error))
    return Outcome(Happened.FAILED, Failure.of(error))


def _decision_in(error: BaseException) -> BaseException:
    """Return the one decision that an exception group holds, whatever failed beside it; else the exception itself.

    A task group wraps what its tasks raise. Decisions that differ cancel each other out, and the
    group is a failure.
    """
    if not isinstance(error, BaseExceptionGroup):
        return error

    with suppress(Exception):  # a group class of the user's may break what is asked of it
        decisions = [each for each in exceptions_in(error) if isinstance(each, _DECISIONS)]
        if decisions and (
            len(decisions) == 1 or all(isinstance(each, Reject) for each in decisions)
        ):
            return decisions[0]
    return error
