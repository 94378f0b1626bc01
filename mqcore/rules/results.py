"""What an exception means for its message. The only place for this rule, for every executor.

An exception means the same from a handler in the event loop, in a thread and in a process.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import replace
from typing import Any

from mqcore.clock import seconds
from mqcore.errors import HandlerTimeout, Postpone, Reject, Retry
from mqcore.rules.retry import Ending, Failure, HandlerResult, exceptions_in

__all__ = ["ChildRunFailed", "result_of"]


class ChildRunFailed(Exception):
    """Raised for a run in another process that did not succeed, with the result it has reported."""

    def __init__(self, result: HandlerResult) -> None:
        """The text is the failure's."""
        super().__init__(result.failure.text if result.failure else result.ending.value)
        self.result = result


_DECISIONS = (ChildRunFailed, Retry, Postpone, Reject, HandlerTimeout)


def result_of(error: BaseException) -> HandlerResult:
    """Return what an exception out of a handler or a middleware means. Never raises."""
    decision = _decision_in(error)
    if isinstance(decision, ChildRunFailed):
        return decision.result

    failure = Failure.of(decision)
    if decision is not error:
        failure = replace(failure, traceback=Failure.of(error).traceback)

    if isinstance(decision, Retry):
        return _delayed(Ending.RETRY, decision, failure)
    if isinstance(decision, Postpone):
        return _delayed(Ending.POSTPONED, decision, failure)
    if isinstance(decision, Reject):
        return HandlerResult(Ending.REJECTED, failure)
    if isinstance(decision, HandlerTimeout):
        return HandlerResult(Ending.TIMED_OUT, failure)
    return HandlerResult(Ending.FAILED, failure)


def _delayed(ending: Ending, decision: Retry | Postpone, failure: Failure) -> HandlerResult:
    """Return the result with the delay that the handler has asked for.

    A delay that cannot be read is the handler's failure.
    """
    try:
        asked = getattr(decision, "delay", None)  # a subclass need not call our __init__
        if isinstance(decision, Postpone):
            # What was postponed has not failed, so its event has no error.
            return HandlerResult(ending, None, _postponed_by(asked))
        return HandlerResult(ending, failure, None if asked is None else seconds(asked))
    except Exception as wrong:  # noqa: BLE001 - a handler's value, and what it raises is its failure
        unusable = Failure.of(wrong)
        name = "Retry" if ending is Ending.RETRY else "Postpone"
        text = f"the delay of {name} is not usable; give seconds or a timedelta: {unusable.text}"
        return HandlerResult(Ending.FAILED, replace(unusable, text=text))


def _postponed_by(asked: Any) -> float:
    """Return the delay in seconds. NaN raises: the message would come back at once."""
    if math.isnan(delay := seconds(asked)):
        raise ValueError("NaN")
    return delay


def _decision_in(error: BaseException) -> BaseException:
    """Return the one decision in an exception group, or else the exception itself.

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
