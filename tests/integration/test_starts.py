"""With `after_crash="count"` a start is noted before its handler begins, or it does not begin."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from mqcore import Broker, DeadLetter, Queue, Received, RetryPolicy, fixed
from mqcore.testing import VirtualClock

Dead = Callable[[Queue[Any] | str], Awaitable[list[DeadLetter]]]
jobs = Queue("jobs", str)
ONCE = RetryPolicy(1, fixed(0))


@pytest.mark.parametrize("batch", [None, 10], ids=["one by one", "in batches"])
@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]], ids=["one", "three"])
async def test_a_note_that_fails_starts_no_handler_and_loses_no_message(
    broker: Broker,
    clock: VirtualClock,
    serve: Any,
    monkeypatch: pytest.MonkeyPatch,
    batch: int | None,
    names: list[str],
) -> None:
    started: list[str] = []

    async def one(job: str) -> None:
        started.append(job)

    async def many(items: list[Received[str]]) -> None:
        started.extend(item.value for item in items)

    async def fails(*_: object) -> Sequence[bool]:
        raise OSError("away")

    options: dict[str, Any] = {} if batch is None else {"batch": batch}
    await broker.publish_many(jobs, names)
    with monkeypatch.context() as away:
        away.setattr(broker._session.connection.backend, "note_start", fails)
        async with serve(jobs, many if batch else one, after_crash="count", **options):
            await clock.advance(3)
            assert started == []
            away.undo()
            await clock.advance(3)
    assert sorted(started) == names


@pytest.mark.parametrize("batch", [None, 10], ids=["one by one", "in batches"])
async def test_a_death_after_the_note_is_an_attempt_and_one_before_it_is_not(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead, batch: int | None
) -> None:
    started: list[str] = []

    async def one(job: str) -> None:
        started.append(job)

    async def many(items: list[Received[str]]) -> None:
        started.extend(item.value for item in items)

    options: dict[str, Any] = {} if batch is None else {"batch": batch}
    await broker.publish(jobs, "begun", id="begun")
    await broker.publish(jobs, "waiting", id="waiting")
    backend = broker._session.connection.backend
    subscription = await backend.subscribe("jobs", prefetch=2, lease=30)
    held = await subscription.receive(2, 0)
    begun = [each.receipt for each in held if each.message.id == "begun"]
    await backend.note_start("jobs", begun)  # type: ignore[attr-defined]  # memory can
    await subscription.close()

    handler = many if batch else one
    async with serve(jobs, handler, after_crash="count", retry=ONCE, **options):
        await clock.advance(3)
    assert started == ["waiting"]
    assert [(letter.id, letter.reason) for letter in await dead(jobs)] == [("begun", "crashed")]
