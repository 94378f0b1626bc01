"""The quarantine of a receiver: its states, and when it is asked and for how long (G4)."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from mqcore.consuming.held import HeldDelivery
from mqcore.consuming.isolation import Entry, IsolationLock
from mqcore.consuming.quarantine import Quarantine, QuarantineState
from mqcore.consuming.states import Step
from mqcore.consuming.subscription import RECEIVE_TIMEOUT
from mqcore.messages.delivery import Delivery
from mqcore.messages.message import Message
from mqcore.testing import VirtualClock

SHORT = 0.5


class Host:
    """A receiver, as far as its quarantine uses it."""

    def __init__(self, isolation: IsolationLock) -> None:
        self.isolation = isolation
        self.stopped = False
        self.has_callers = True
        self.has_ordinary = False
        self.failure: BaseException | None = None
        self.released: list[HeldDelivery] = []

    def wake(self) -> None:
        return

    def release(self, held: HeldDelivery) -> None:
        held.apply(Step.SETTLE)
        self.released.append(held)
        self.leave(held)

    def leave(self, held: HeldDelivery) -> None:
        entry, held.entry = held.entry, None
        if entry is not None:
            self.isolation.leave(entry)


@pytest.fixture
def lock() -> IsolationLock:
    return IsolationLock()


@pytest.fixture
def host(lock: IsolationLock) -> Host:
    return Host(lock)


@pytest.fixture
def quarantine(host: Host, lock: IsolationLock) -> Quarantine:
    return Quarantine(host, lock, VirtualClock())


def suspect() -> HeldDelivery:
    rules = SimpleNamespace(source="q.quarantine", quarantine="q.quarantine", notes_starts=False)
    subscription: Any = SimpleNamespace(rules=rules)
    return HeldDelivery(Delivery(Message(id="a", body=b""), b""), subscription, 0.0)


async def test_a_suspect_that_can_run_is_kept_with_the_lock(
    quarantine: Quarantine, host: Host, lock: IsolationLock
) -> None:
    held = suspect()
    quarantine.accept(held)

    assert (quarantine.state, held.entry) == (QuarantineState.IDLE, Entry.EXCLUSIVE)
    assert not lock.enter_shared(), "it is alone"
    assert quarantine.take() is held
    assert quarantine.take() is None
    assert not host.released


@pytest.mark.parametrize("why", ["no caller", "an ordinary message runs", "its turn"])
async def test_a_suspect_that_cannot_run_is_put_back(
    quarantine: Quarantine, host: Host, lock: IsolationLock, why: str
) -> None:
    host.has_callers = why != "no caller"
    if why == "an ordinary message runs":
        lock.enter_shared()
    lock.ordinary_next = host.has_ordinary = why == "its turn"
    held = suspect()
    quarantine.accept(held)

    assert (quarantine.state, host.released) == (QuarantineState.WAITING, [held])
    assert held.entry is None
    assert quarantine.take() is None


async def test_the_suspect_is_asked_for_when_the_lock_is_ours_and_once(
    quarantine: Quarantine, lock: IsolationLock
) -> None:
    assert await quarantine.permit() == RECEIVE_TIMEOUT
    lock.enter_shared()
    quarantine.accept(suspect())
    quarantine.reserve()
    assert quarantine.is_awaited, "another message runs"

    lock.leave(Entry.SHARED)
    quarantine.reserve()
    assert quarantine.state is QuarantineState.RESERVED
    assert await quarantine.permit() == SHORT
    assert quarantine.state is QuarantineState.ASKING
    assert not lock.enter_shared()

    assert await quarantine.permit() == RECEIVE_TIMEOUT, "it has not come: it is gone"
    assert quarantine.state is QuarantineState.IDLE
    assert lock.enter_shared()


async def test_a_suspect_that_waits_is_checked_now_and_then(
    quarantine: Quarantine, lock: IsolationLock
) -> None:
    lock.enter_shared()
    quarantine.accept(suspect())
    permit = asyncio.create_task(quarantine.permit())
    clock: Any = quarantine._clock
    await clock.advance(4.9)
    assert not permit.done()
    await clock.advance(0.2)
    assert (await permit, quarantine.state) == (SHORT, QuarantineState.CHECKING)


async def test_when_the_last_caller_leaves_nothing_is_kept(
    quarantine: Quarantine, host: Host, lock: IsolationLock
) -> None:
    held = suspect()
    quarantine.accept(held)
    quarantine.put_all_back()
    assert (quarantine.state, host.released) == (QuarantineState.WAITING, [held])

    quarantine.reserve()
    assert quarantine.state is QuarantineState.RESERVED
    quarantine.put_all_back()
    assert quarantine.state is QuarantineState.WAITING
    assert lock.enter_shared(), "the lock was left"


async def test_a_lost_suspect_leaves_the_lock(
    quarantine: Quarantine, host: Host, lock: IsolationLock
) -> None:
    held = suspect()
    quarantine.accept(held)
    held.apply(Step.LOSE)
    quarantine.put_all_back()
    assert not host.released
    assert lock.enter_shared()


async def test_a_stop_hands_over_the_suspect_and_waits_for_nothing(
    quarantine: Quarantine, lock: IsolationLock
) -> None:
    lock.enter_shared()
    quarantine.accept(suspect())
    assert not lock.enter_shared(), "a waiting suspect keeps others out"
    assert quarantine.stop() is None
    assert lock.enter_shared()
