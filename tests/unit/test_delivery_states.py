"""The states of a delivery: the transition table itself, and what follows from it."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mqcore.consuming.held import HeldDelivery
from mqcore.consuming.states import TRANSITIONS, DeliveryState, Step
from mqcore.messages.delivery import Delivery
from mqcore.messages.message import Message

FINAL = {state for state in DeliveryState if state.is_final}
PAGE = Path(__file__).parents[2] / "docs" / "delivery-states.md"
STEPS = st.lists(st.sampled_from(Step), max_size=30)


class Subscription:
    """As much of a subscription as a delivery uses."""

    rules = SimpleNamespace(queue="jobs", source="jobs", quarantine="jobs.quarantine")

    def __init__(self) -> None:
        self.lost = 0

    def lose(self, held: HeldDelivery) -> None:
        self.lost += 1
        held.apply(Step.LOSE)


def delivery() -> HeldDelivery:
    subscription: Any = Subscription()
    return HeldDelivery(Delivery(Message(id="a", body=b""), b"receipt"), subscription, 0.0)


def reached(start: DeliveryState) -> set[DeliveryState]:
    """Return every state to which steps lead from `start`."""
    states = {start}
    while True:
        more = {target for (source, _), target in TRANSITIONS.items() if source in states}
        if more <= states:
            return states
        states |= more


def test_every_state_is_reached_from_arrival() -> None:
    assert reached(DeliveryState.BUFFERED) == set(DeliveryState)


def test_every_state_leads_to_an_end_and_no_end_leads_on() -> None:
    for state in DeliveryState:
        assert reached(state) & FINAL, state
    for state in FINAL:
        assert reached(state) == {state}


def test_every_step_is_used() -> None:
    assert {step for _, step in TRANSITIONS} == set(Step)


def test_nothing_is_lost_or_settled_again_while_it_is_settled() -> None:
    """The answer to the settlement says what became of it (G5)."""
    leaving = {step for state, step in TRANSITIONS if state is DeliveryState.SETTLING}
    assert leaving == {Step.CONFIRM, Step.REFUSE, Step.GIVE_UP}


@given(STEPS)
def test_a_delivery_follows_the_table(steps: list[Step]) -> None:
    held, state = delivery(), DeliveryState.BUFFERED
    for step in steps:
        expected = TRANSITIONS.get((state, step))
        assert held.apply(step) is (expected is not None)
        state = expected or state
        assert held.state is state
        assert held.is_gone is (state in FINAL)
        assert held.is_lost is (state is DeliveryState.LOST)
        assert held.can_settle is ((state, Step.SETTLE) in TRANSITIONS)


@given(STEPS)
def test_one_start_one_end_and_an_answer_for_each_settlement(steps: list[Step]) -> None:
    """Whatever happens: no second handler, no second end, no two settlements at once (G2, G3)."""
    held = delivery()
    taken = [step for step in steps if held.apply(step)]

    assert taken.count(Step.START) <= 1
    assert sum(taken.count(step) for step in (Step.CONFIRM, Step.REFUSE, Step.LOSE)) <= 1
    settling = 0
    for step in taken:
        settling += (step is Step.SETTLE) - (step in {Step.CONFIRM, Step.REFUSE, Step.GIVE_UP})
        assert settling in {0, 1}
    if Step.START in taken:
        assert taken.index(Step.START) == 0, "a handler starts before anything is settled"


@given(steps=STEPS, lose_early=st.booleans())
def test_a_lost_claim_is_reported_once_and_never_while_it_is_settled(
    steps: list[Step], *, lose_early: bool
) -> None:
    held, reports = delivery(), 0

    def report() -> None:
        nonlocal reports
        reports += 1

    held.on_lost = report
    if lose_early:
        held.lose()
    for step in steps:
        before = held.state
        if step is Step.LOSE:
            held.lose()
            assert held.is_lost or held.state is before
        else:
            held.apply(step)
    subscription: Any = held.subscription
    assert reports == subscription.lost <= 1


def test_waiting_for_an_end_returns_at_once_when_it_has_come() -> None:
    held = delivery()
    held.lose()
    asyncio.run(asyncio.wait_for(held.wait_settled(), 1))


def test_the_page_shows_this_table() -> None:
    """Each row: a state, a step, the state after it."""
    rows = re.findall(
        r"^\| `([\w ]+)` \| `([\w ]+)` \| `([\w ]+)` \|", PAGE.read_text(), re.MULTILINE
    )
    shown = [(DeliveryState(source), Step(step), DeliveryState(to)) for source, step, to in rows]
    assert shown == [(source, step, to) for (source, step), to in TRANSITIONS.items()]


def test_the_page_explains_every_state() -> None:
    rows = re.findall(r"^\| `([\w ]+)` \| (?!`)", PAGE.read_text(), re.MULTILINE)
    assert [DeliveryState(name) for name in rows] == list(DeliveryState)
