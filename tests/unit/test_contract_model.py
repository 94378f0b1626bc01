"""What the model accepts and refuses where a backend's capabilities make the difference."""

from __future__ import annotations

from dataclasses import replace
from math import inf

import pytest

from mqcore.contract import ContractError
from mqcore.contract.model import Model, Rules, Span
from mqcore.spi import Delivery, Message, Outgoing

IN_PLACE = Rules(
    by_priority=True,
    ordered=True,
    release_in_place=True,
    delay_to_the_end=True,
    granularity=0.0,
    lease=inf,
    slack=0.0,
)
BY_A_COPY = replace(IN_PLACE, release_in_place=False)


def released(rules: Rules) -> Model:
    """Return a queue in which one message was released while another was on its way."""
    model = Model(rules)
    for number, at in ((0, Span(0, 0)), (1, Span(1, 1))):
        model.put(Outgoing("jobs", Message(id=f"m{number}", body=b"")), at)
        if number == 0:
            (lease,) = model.received("jobs", [delivery(0)], 1, at)
    model.settled(lease, "release", True, Span(1, 1))  # noqa: FBT003 - the outcome, as it came
    return model


def delivery(number: int, *, marked: bool = False) -> Delivery:
    return Delivery(Message(id=f"m{number}", body=b""), b"receipt", None, marked, int(marked))


def test_a_broker_that_releases_by_a_copy_may_mark_what_was_on_its_way() -> None:
    released(BY_A_COPY).received("jobs", [delivery(1, marked=True)], 1, Span(2, 2))


def test_a_broker_that_releases_in_place_marks_nothing_else() -> None:
    with pytest.raises(ContractError, match=r"m1 .priority 5.: redelivered: False"):
        released(IN_PLACE).received("jobs", [delivery(1, marked=True)], 2, Span(2, 2))


@pytest.mark.parametrize("rules", [IN_PLACE, BY_A_COPY])
@pytest.mark.parametrize("taken", [True, False])
def test_a_release_leaves_takeovers_as_they_were(rules: Rules, *, taken: bool) -> None:
    def again() -> Model:
        model = Model(rules)
        model.put(Outgoing("jobs", Message(id="m0", body=b"")), Span(0, 0))
        (lease,) = model.received("jobs", [delivery(0)], 1, Span(0, 0))
        if taken:
            model.crashed("jobs", Span(0, 0))
            (lease,) = model.received("jobs", [delivery(0, marked=True)], 1, Span(1, 1))
        model.settled(lease, "release", True, Span(1, 1))  # noqa: FBT003 - the outcome, as it came
        return model

    right = replace(delivery(0), redelivered=True, takeovers=int(taken))
    again().received("jobs", [right], 1, Span(2, 2))
    with pytest.raises(ContractError, match=rf"m0 .priority 5.: takeovers: {int(taken)}"):
        again().received("jobs", [replace(right, takeovers=int(not taken))], 1, Span(2, 2))


def test_a_message_that_was_received_at_the_moment_it_was_due_is_leased() -> None:
    """A clock of floats may show that moment slightly too early."""
    model = Model(IN_PLACE)
    model.put(Outgoing("jobs", Message(id="m0", body=b""), 0.5), Span(0, 0))
    early = Span(0.5 - 1e-9, 0.5 - 1e-9)

    model.received("jobs", [delivery(0)], 1, early)

    assert model.counts("jobs", early) == (0, 1, 0)
