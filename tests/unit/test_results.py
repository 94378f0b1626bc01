"""What an exception means for its message, by itself and inside a group."""

from datetime import timedelta
from typing import Any

import pytest

from mqcore.errors import HandlerTimeout, Postpone, Reject, Retry
from mqcore.rules.results import ChildRunFailed, result_of
from mqcore.rules.retry import Ending, Failure, HandlerResult, RetryPolicy


def group(*errors: BaseException) -> BaseExceptionGroup[BaseException]:
    return BaseExceptionGroup("in a task group", errors)


class Unreadable:
    def __float__(self) -> float:
        raise ZeroDivisionError


class Careless(Retry):
    def __init__(self) -> None:
        pass


class Impatient(Postpone):
    def __init__(self) -> None:
        pass


@pytest.mark.parametrize(
    ("error", "ending", "delay"),
    [
        (ValueError("x"), Ending.FAILED, None),
        (KeyboardInterrupt(), Ending.FAILED, None),
        (Reject("no"), Ending.REJECTED, None),
        (Retry(), Ending.RETRY, None),
        (Retry(delay=2), Ending.RETRY, 2.0),
        (Retry(delay=timedelta(minutes=1)), Ending.RETRY, 60.0),
        (Retry(delay=10**400), Ending.FAILED, None),
        (Retry(delay="soon"), Ending.FAILED, None),  # type: ignore[arg-type]  # what is tested
        (Retry(delay=Unreadable()), Ending.FAILED, None),  # type: ignore[arg-type]  # what is tested
        (Careless(), Ending.RETRY, None),
        (HandlerTimeout("late"), Ending.TIMED_OUT, None),
        (group(Reject("no")), Ending.REJECTED, None),
        (group(ValueError("x"), Reject("no"), OSError()), Ending.REJECTED, None),
        (group(group(Retry(delay=5)), ValueError()), Ending.RETRY, 5.0),
        (group(Reject("no"), group(Reject("never"))), Ending.REJECTED, None),
        (group(Reject("no"), Retry(delay=5)), Ending.FAILED, None),
        (group(Retry(delay=1), Retry(delay=5)), Ending.FAILED, None),
        (group(HandlerTimeout("late")), Ending.TIMED_OUT, None),
        (group(ValueError("x"), OSError("y")), Ending.FAILED, None),
        (group(KeyboardInterrupt()), Ending.FAILED, None),
    ],
    ids=[
        *(
            "failure",
            "interrupt",
            "reject",
            "retry",
            "retry with delay",
            "retry with timedelta",
            "endless delay",
        ),
        *("delay in words", "delay that raises", "retry of a careless subclass", "timeout"),
        *(
            "group of a reject",
            "reject beside failures",
            "retry in a group of a group",
            "two rejects",
        ),
        *(
            "reject beside retry",
            "two retries",
            "group of a timeout",
            "group of failures",
            "group of an interrupt",
        ),
    ],
)
def test_what_an_exception_means(error: BaseException, ending: Ending, delay: float | None) -> None:
    result = result_of(error)
    assert (result.ending, result.delay) == (ending, delay)
    assert result.failure is not None


@pytest.mark.parametrize(
    ("error", "ending", "delay"),
    [
        (Postpone(2), Ending.POSTPONED, 2.0),
        (Postpone(timedelta(minutes=1)), Ending.POSTPONED, 60.0),
        (group(ValueError(), group(Postpone(5))), Ending.POSTPONED, 5.0),
        (group(Postpone(5), Postpone(5)), Ending.FAILED, None),
        (group(Postpone(5), Retry(delay=5)), Ending.FAILED, None),
        (Postpone("soon"), Ending.FAILED, None),  # type: ignore[arg-type]  # what is tested
        (Postpone(float("nan")), Ending.FAILED, None),
        (Impatient(), Ending.FAILED, None),
    ],
    ids=["seconds", "timedelta", "group", "two", "beside retry", "words", "nan", "without a delay"],
)
def test_a_postponed_message_has_not_failed(
    error: BaseException, ending: Ending, delay: float | None
) -> None:
    result = result_of(error)
    assert (result.ending, result.delay) == (ending, delay)
    assert (result.failure is None) == (ending is Ending.POSTPONED)


def test_a_delay_that_cannot_be_used_is_named() -> None:
    failure = result_of(Retry(delay="soon")).failure  # type: ignore[arg-type]  # the mistake
    assert failure is not None
    assert failure.text.startswith(
        "the delay of Retry is not usable; give seconds or a timedelta: could not convert"
    )


def test_a_decision_in_a_group_is_recorded_with_its_text_and_the_traceback_of_all() -> None:
    failure = result_of(group(ValueError("beside"), Reject("no such customer"))).failure
    assert failure is not None
    assert (failure.type, failure.text) == ("mqcore.errors.Reject", "no such customer")
    assert "ValueError: beside" in failure.traceback


def test_the_outcome_of_another_process_is_found_in_a_group() -> None:
    result = HandlerResult(Ending.CRASHED, Failure((), "died"))
    assert result_of(group(ChildRunFailed(result))) is result


@pytest.mark.parametrize(
    ("policy", "errors", "retried"),
    [
        ({"retry_on": (OSError,)}, [ConnectionError()], True),
        ({"retry_on": (OSError,)}, [group(ConnectionError()), FileNotFoundError()], True),
        ({"retry_on": (OSError,)}, [ConnectionError(), ValueError()], False),
        ({"retry_on": (OSError,)}, [ValueError()], False),
        ({"retry_on": (Exception,)}, [ValueError()], True),
        ({"retry_on": (Exception,)}, [KeyboardInterrupt()], False),
        ({"retry_on": (BaseExceptionGroup,)}, [ValueError()], True),
        ({"give_up_on": (OSError,)}, [ValueError()], True),
        ({"give_up_on": (OSError,)}, [group(ConnectionError()), ValueError()], False),
        ({"give_up_on": (BaseExceptionGroup,)}, [ValueError()], False),
        (
            {"retry_on": (OSError,), "give_up_on": (PermissionError,)},
            [ConnectionError(), PermissionError()],
            False,
        ),
    ],
)
def test_a_policy_looks_into_groups(
    policy: dict[str, Any], errors: list[BaseException], *, retried: bool
) -> None:
    assert RetryPolicy(**policy).retries(Failure.of(group(*errors))) is retried


def test_the_text_of_a_group_names_what_is_in_it() -> None:
    failure = Failure.of(group(ValueError("a"), group(OSError("b"))))
    assert failure.text == "in a task group (2 sub-exceptions): ValueError: a; OSError: b"
    assert failure.type == "ExceptionGroup"
    assert [names[0] for names in failure.members] == ["builtins.ValueError", "builtins.OSError"]


def test_a_group_of_very_many_is_described_in_bounds() -> None:
    failure = Failure.of(group(*(ValueError("x" * 100) for _ in range(10_000))))
    assert len(failure.text) <= 2_000
    assert len(failure.traceback) <= 4_000
    assert len(failure.members) == 1, "each kind once"
