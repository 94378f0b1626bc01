"""Mistakes with tasks are found where they are made, and their errors travel between processes."""

import pickle

import pytest

from mqcore import ConfigurationError
from mqcore.tasks import (
    DuplicateTask,
    State,
    TaskCancelled,
    TaskFailed,
    Tasks,
    Unique,
    group,
)
from mqcore.tasks.model.states import ENDED


@pytest.fixture
def tasks() -> Tasks:
    return Tasks("shop")


def test_two_tasks_of_one_name_are_refused(tasks: Tasks) -> None:
    def add(x: int, y: int) -> int:
        return x + y

    def other(text: str) -> str:
        return text

    tasks.task(name="shop.add")(add)
    tasks.task(name="shop.add")(add)  # its module was loaded again
    with pytest.raises(ConfigurationError, match=r"two tasks have the name 'shop.add': .*other"):
        tasks.task(name="shop.add")(other)


def test_the_decorator_without_its_call_says_how_it_is_written(tasks: Tasks) -> None:
    with pytest.raises(ConfigurationError, match=r"write @tasks\.task\(\)"):
        tasks.task(print)  # type: ignore[arg-type]  # the mistake


def test_an_unknown_policy_of_a_group_names_those_there_are(tasks: Tasks) -> None:
    @tasks.task()
    def add(x: int, y: int) -> int:
        return x + y

    with pytest.raises(ConfigurationError, match="'ignore' is not known; there are fail, cancel"):
        group(add.s(1, 2), policy="ignore")  # type: ignore[call-overload]  # the mistake


def test_a_name_in_place_of_names_is_not_taken_for_letters() -> None:
    with pytest.raises(ConfigurationError, match=r"by=\('name',\)"):
        Unique(by="name")  # type: ignore[arg-type]  # the mistake
    with pytest.raises(ConfigurationError, match="'wait' is not known"):
        Unique(policy="wait")  # type: ignore[arg-type]  # the mistake


@pytest.mark.parametrize(
    "error",
    [
        TaskFailed("7f", State.FAILED, "rejected", "KeyError", "'order'"),
        TaskCancelled("7f", State.CANCELLED, "too late"),
        DuplicateTask("it is open already", "7f"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_that_was_pickled_is_the_same(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - its own text
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_a_state_says_whether_it_is_terminal() -> None:
    assert {state for state in State if state.has_ended} == ENDED
