"""The limits of the system's clock end as `asyncio.timeout` does, whose place they take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from mqcore.clock import SystemClock

Limited = Callable[[float | None], "asyncio.Timeout"]
SOON, LATE = 0.01, 30.0


async def never() -> None:
    await asyncio.get_running_loop().create_future()


async def ends_in_time(limited: Limited) -> object:
    async with limited(LATE) as limit:
        await asyncio.sleep(0)
    return limit.expired()


async def has_no_limit(limited: Limited) -> object:
    async with limited(None) as limit:
        await asyncio.sleep(0)
    return limit.expired()


async def takes_too_long(limited: Limited) -> object:
    async with limited(SOON):
        await never()
    return None


async def begins_too_late(limited: Limited) -> object:
    async with limited(-1.0):
        await never()
    return None


async def needs_no_time_although_none_is_left(limited: Limited) -> object:
    async with limited(0.0):
        pass
    return "done"


async def raises_before_its_end(limited: Limited) -> object:
    async with limited(LATE):
        raise KeyError("its own")
    return None


async def ends_inside_of_a_longer_one(limited: Limited) -> object:
    async with limited(LATE) as outer:
        try:
            async with limited(SOON):
                await never()
        except TimeoutError:
            return outer.expired()
    return None


async def ends_around_a_longer_one(limited: Limited) -> object:
    async with limited(SOON), limited(LATE):
        await never()
    return None


async def ends_together_with_an_inner_one(limited: Limited) -> object:
    inner_raised = False
    try:
        async with limited(SOON):
            try:
                async with limited(SOON):
                    await never()
            except TimeoutError:
                inner_raised = True
                await never()
    except TimeoutError:
        return inner_raised or "outer"
    return None


async def is_cancelled_from_outside(limited: Limited) -> object:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_soon(task.cancel)
    async with limited(LATE):
        await never()
    return None


async def is_cancelled_from_outside_when_it_ends(limited: Limited) -> object:
    task = asyncio.current_task()
    assert task is not None
    async with limited(LATE) as limit:
        loop = asyncio.get_running_loop()
        limit.reschedule(loop.time())
        loop.call_soon(task.cancel)
        await never()
    return None


async def is_moved_to_the_end(limited: Limited) -> object:
    async with limited(LATE) as limit:
        limit.reschedule(asyncio.get_running_loop().time())
        await never()
    return None


async def is_lifted(limited: Limited) -> object:
    async with limited(SOON) as limit:
        limit.reschedule(None)
        await asyncio.sleep(3 * SOON)
    return limit.expired()


async def of(limited: Limited, scenario: Callable[[Limited], Awaitable[object]]) -> object:
    """Return how a scenario ends in a task of its own: its value, or the class of its error."""
    try:
        return await asyncio.ensure_future(scenario(limited))
    except BaseException as error:  # noqa: BLE001 - a cancellation is an ending too
        return type(error)


@pytest.mark.parametrize(
    "scenario",
    [
        ends_in_time,
        has_no_limit,
        takes_too_long,
        begins_too_late,
        needs_no_time_although_none_is_left,
        raises_before_its_end,
        ends_inside_of_a_longer_one,
        ends_around_a_longer_one,
        ends_together_with_an_inner_one,
        is_cancelled_from_outside,
        is_cancelled_from_outside_when_it_ends,
        is_moved_to_the_end,
        is_lifted,
    ],
)
async def test_a_limit_ends_as_that_of_asyncio(
    scenario: Callable[[Limited], Awaitable[object]],
) -> None:
    ours: Limited = SystemClock().timeout  # type: ignore[assignment]  # has all that is used here
    assert await of(ours, scenario) == await of(asyncio.timeout, scenario)


async def test_many_limits_end_each_in_its_time() -> None:
    clock, loop = SystemClock(), asyncio.get_running_loop()

    async def late(delay: float) -> float:
        began = loop.time()
        with pytest.raises(TimeoutError):
            async with clock.timeout(delay):
                await never()
        return loop.time() - began - delay

    delays = [0.001 * number for number in (30, 5, 20, 10, 40, 0, 15)]
    assert min(await asyncio.gather(*(late(delay) for delay in delays))) >= -0.001


def test_a_clock_serves_one_event_loop_after_the_other() -> None:
    clock = SystemClock()

    async def limited() -> bool:
        try:
            async with clock.timeout(SOON):
                await never()
        except TimeoutError:
            return True
        return False

    assert [asyncio.run(limited()), asyncio.run(limited())] == [True, True]


async def test_a_limit_that_was_left_does_not_end_what_comes_after_it() -> None:
    clock = SystemClock()
    async with clock.timeout(SOON):
        pass
    await asyncio.sleep(3 * SOON)
    async with clock.timeout(LATE) as limit:
        await asyncio.sleep(0)
    assert not limit.expired()


async def test_a_future_that_refuses_to_be_cancelled_stops_no_other_limit() -> None:
    class Stubborn(asyncio.Future[None]):
        def cancel(self, msg: object = None) -> bool:
            raise RuntimeError("not now")

    clock, loop = SystemClock(), asyncio.get_running_loop()
    loop.set_exception_handler(lambda *_: None)
    stubborn = Stubborn()

    async def waits(delay: float, future: asyncio.Future[None]) -> None:
        async with clock.timeout(delay):
            await future

    first = asyncio.create_task(waits(SOON, stubborn))
    other = asyncio.create_task(waits(2 * SOON, loop.create_future()))
    async with asyncio.timeout(10):
        with pytest.raises(TimeoutError):
            await other

    stubborn.set_result(None)
    await first
