"""G2: `ack_first` handlers start after the broker has proven the acknowledgement."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from mqcore.consuming.proofs import Proofs
from mqcore.events import Event, Events
from mqcore.spi import DONE, Delivery, Message, Settled, Settlement, Subscription

Answer = bool | Exception
YES, NO = True, False


class Answered(Subscription):
    """A subscription whose `Done` means that it took effect."""

    async def receive(self, limit: int, timeout: float) -> Sequence[Delivery]:
        return []

    async def settle(self, batch: Sequence[Settlement], *, timeout: float) -> Sequence[Settled]:
        return [DONE] * len(batch)

    async def close(self) -> None:
        pass


class Written(Answered):
    """One whose `Done` means that it was written."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked = asyncio.Event()

    async def prove(self, *, timeout: float) -> bool:
        answer = self.answers.pop(0)
        self.asked.set()
        await asyncio.sleep(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def seen() -> list[Event]:
    return []


@pytest.fixture
def proofs(seen: list[Event]) -> Proofs:
    events = Events()
    events.listen(seen.append)
    return Proofs(events, "jobs")


def message(name: str) -> Message:
    return Message(id=name, body=b"")


async def test_all_of_one_moment_share_one_question(proofs: Proofs) -> None:
    subscription = Written(YES, NO)
    assert (
        await asyncio.gather(*(proofs.of(subscription, message(name)) for name in "abc"))
        == [True] * 3
    )
    assert subscription.answers == [NO]


async def test_who_acknowledges_while_one_is_asked_needs_another(proofs: Proofs) -> None:
    subscription = Written(YES, YES)
    first = asyncio.create_task(proofs.of(subscription, message("a")))
    await subscription.asked.wait()
    assert await proofs.of(subscription, message("b"))
    assert await first
    assert subscription.answers == []


@pytest.mark.parametrize("answer", [NO, ConnectionError("it is gone")], ids=repr)
async def test_what_is_not_proven_is_reported(
    proofs: Proofs, seen: list[Event], answer: Answer
) -> None:
    assert not await proofs.of(Written(answer), message("a"))
    assert [(event.name, event.queue, event.message_id) for event in seen] == [
        ("settle.unanswered", "jobs", "a")
    ]


async def test_one_who_gives_up_takes_the_answer_from_nobody(proofs: Proofs) -> None:
    subscription = Written(YES)
    gives_up, stays = (asyncio.create_task(proofs.of(subscription, message(name))) for name in "ab")
    await asyncio.sleep(0)
    gives_up.cancel()
    assert await stays


async def test_where_an_acknowledgement_is_answered_nothing_more_is_asked(proofs: Proofs) -> None:
    assert await proofs.of(Answered(), message("a"))
    assert not await proofs.of(None, message("a")), "it was settled nowhere"
