"""Each publish keeps its own deadline, also when several share a batch (G1)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from mqcore import Blocked, Broker, PublishFailed, PublishUnknown, Queue

if TYPE_CHECKING:
    from support.faulty import Faults

    from mqcore.testing import VirtualClock

JOBS = Queue("jobs", int)


async def silent(*_: Any) -> Any:
    """A backend that never answers."""
    await asyncio.Event().wait()


async def ended(clock: VirtualClock, publish: Any) -> tuple[float, type[BaseException]]:
    began = clock.monotonic()
    try:
        await publish
    except (PublishFailed, PublishUnknown) as error:
        return clock.monotonic() - began, type(error)
    raise AssertionError("the publish has succeeded")


async def test_every_publish_ends_at_its_own_deadline(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    await faulty.declare(JOBS)
    faults.next("publish", silent, silent, silent)

    tasks = []
    for timeout in (9.0, 3.0, 5.0):
        tasks.append(asyncio.create_task(ended(clock, faulty.publish(JOBS, 1, timeout=timeout))))
        await clock.settle()
    await clock.advance(20)

    assert [await task for task in tasks] == [
        (9.0, PublishUnknown),
        (3.0, PublishUnknown),
        (5.0, PublishUnknown),
    ]


async def test_callers_of_one_batch_end_each_at_its_own_deadline(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    await faulty.declare(JOBS)
    faults.next("publish", silent)
    calls = [ended(clock, faulty.publish(JOBS, 1, timeout=timeout)) for timeout in (4.0, 2.0)]
    batch = asyncio.gather(*calls)
    await clock.advance(20)
    assert await batch == [(4.0, PublishUnknown), (2.0, PublishUnknown)]
    assert faults.calls["publish"] == 1


async def test_a_deadline_after_an_idle_time_is_kept(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    await faulty.publish(JOBS, 1)
    await clock.advance(60)
    faults.next("publish", silent)
    late = asyncio.create_task(ended(clock, faulty.publish(JOBS, 2, timeout=2)))
    await clock.advance(20)
    assert await late == (2.0, PublishUnknown)


async def test_without_a_connection_nothing_is_sent_before_the_deadline(
    faulty: Broker, faults: Faults, clock: VirtualClock
) -> None:
    async def refused(*_: Any) -> Any:
        raise OSError("down")

    await faulty.declare(JOBS)
    faults.next("open", *[refused] * 50)
    faults.lose()
    sent = faults.calls["publish"]
    call = asyncio.create_task(ended(clock, faulty.publish(JOBS, 1, timeout=3)))
    await clock.advance(4)
    assert await call == (3.0, Blocked)
    assert faults.calls["publish"] == sent


async def test_without_time_nothing_is_sent(faulty: Broker, faults: Faults) -> None:
    await faulty.declare(JOBS)
    sent = faults.calls["publish"]
    with pytest.raises(Blocked, match="not sent within 0 s"):
        await faulty.publish(JOBS, 1, timeout=0)
    assert faults.calls["publish"] == sent


@pytest.mark.parametrize("answered", [True, False])
async def test_a_close_leaves_no_task(
    faulty: Broker, faults: Faults, clock: VirtualClock, *, answered: bool
) -> None:
    before = asyncio.all_tasks()
    await faulty.declare(JOBS)
    if answered:
        await faulty.publish(JOBS, 1)
    else:
        faults.next("publish", silent)
        call = asyncio.create_task(ended(clock, faulty.publish(JOBS, 1, timeout=30)))
        await clock.settle()
    await faulty.close()
    if not answered:
        assert (await call)[1] is PublishUnknown
    await clock.settle()
    assert {task for task in asyncio.all_tasks() - before if not task.done()} == set()
