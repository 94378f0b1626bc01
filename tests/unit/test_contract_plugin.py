"""The contract's pytest plugin runs cases beside each other where the harness allows it."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from mqcore.contract import Case, Harness, MemoryHarness, Result, UrlHarness
from mqcore.contract.pytest_plugin import Contract, pytest_configure


class TwoAtOnce(Harness):
    at_once = 2


def made(*cases: Case) -> list[Any]:
    """Return items as pytest makes them of cases."""
    return [
        SimpleNamespace(callspec=SimpleNamespace(params={"contract_case": case})) for case in cases
    ]


def case(name: str, *hooks: str, alone: bool = False) -> Case:
    return Case(name, "core", (), (), "", lambda _: None, hooks=hooks, alone=alone)  # type: ignore[arg-type,return-value]  # it never runs


@pytest.fixture
def contract(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Callable[[Callable[[Case], None]], Contract]]:
    """Return what makes a Contract in which running a case is what the test says."""
    found = []

    def make(work: Callable[[Case], None]) -> Contract:
        def run_case(one: Case, *_: object) -> Result:
            work(one)
            return Result(one, "passed")

        monkeypatch.setattr("mqcore.contract.run.run_case", run_case)
        found.append(Contract([], "here"))
        return found[-1]

    yield make
    for one in found:
        one.end()


def results(contract: Contract, harness: Harness, cases: Sequence[Case]) -> list[str]:
    return [contract.run(one, harness, made(*cases)).case.name for one in cases]


def test_several_cases_run_at_once(contract: Callable[..., Contract]) -> None:
    together = threading.Barrier(2)
    cases = [case("a"), case("b"), case("c"), case("d")]
    run = contract(lambda _: together.wait(10))
    assert results(run, TwoAtOnce(), cases) == ["a", "b", "c", "d"]


def test_a_case_that_kills_the_broker_is_alone_with_it(contract: Callable[..., Contract]) -> None:
    running, beside = set[str](), []
    lock = threading.Lock()

    def work(one: Case) -> None:
        with lock:
            running.add(one.name)
        if one.hooks or one.alone:
            beside.append(sorted(running))
        threading.Event().wait(0.01)
        with lock:
            running.discard(one.name)

    cases = [
        case("x", "restart"),
        case("a"),
        case("b"),
        case("c"),
        case("y", "cut"),
        case("z", alone=True),
    ]
    assert results(contract(work), TwoAtOnce(), cases) == ["x", "a", "b", "c", "y", "z"]
    assert beside == [["x"], ["y"], ["z"]]


def test_by_default_cases_run_in_turn(
    contract: Callable[..., Contract],
) -> None:
    ran: list[str] = []
    run = contract(lambda one: ran.append(one.name))
    one, other = case("a"), case("b")
    run.run(one, Harness(), made(one, other))
    assert ran == ["a"]


def test_a_deselected_case_is_not_run(contract: Callable[..., Contract]) -> None:
    ran: list[str] = []
    run = contract(lambda one: ran.append(one.name))
    one, other = case("a"), case("b")
    run.run(one, TwoAtOnce(), made(one))
    assert ran == ["a"]
    run.run(
        other, TwoAtOnce(), made(one)
    )  # asked for again, as a plugin that repeats failures does
    assert ran == ["a", "b"]


# waivers


def configured(*lines: str) -> Contract:
    """Return what a run with these `contract_waivers` makes of a module."""
    config = SimpleNamespace(getini=lambda _: list(lines), stash={})
    pytest_configure(config)  # type: ignore[arg-type]  # as much of one as it looks at
    (contracts,) = config.stash.values()
    found: Contract = contracts.of("here")
    return found


def test_a_waiver_applies_to_its_case_only() -> None:
    name = "delivery.messages_keep_their_order"
    (waiver,) = configured(f"{name}: it shuffles: always has").waivers
    assert (waiver.case, waiver.reason) == (name, "it shuffles: always has")
    assert configured().waivers == []


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("delivery.mesages_keep_their_order", "delivery.messages_keep_their_order"),
        ("messages_keep_their_order", "delivery.messages_keep_their_order"),
        (
            "bounds.prefetch_is_an_exact_ceiling",
            "bounds.prefetch_is_an_exact_ceiling[3]",
        ),  # it has variants
        ("what it is not", "prints the names"),
    ],
)
def test_a_waiver_of_an_unknown_case_is_an_error_with_similar_names(wrong: str, near: str) -> None:
    with pytest.raises(
        pytest.UsageError, match=re.escape(f"no case is named {wrong!r}")
    ) as refused:
        configured("core.classify_takes_any_exception: right", f"{wrong}: why")
    assert near in str(refused.value)


# An address where nobody listens


@pytest.mark.parametrize(
    ("url", "closed"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:1/0"),
        ("redis://:secret@[::1]:6379/0?prefix=x", "redis://:secret@[::1]:1/0?prefix=x"),
        ("amqp://guest:guest@localhost/", "amqp://guest:guest@localhost:1/"),
        ("amqp://me@one:5672,two:5673/v", "amqp://me@one:1/v"),
    ],
)
def test_a_closed_port_is_made_of_a_url(url: str, closed: str) -> None:
    harness = UrlHarness(url)
    assert harness.has("make_unreachable")
    assert harness.make_unreachable().url == closed


def test_a_backend_in_this_process_has_no_closed_port() -> None:
    assert not MemoryHarness().has("make_unreachable")
    assert not Harness().has("make_unreachable")
