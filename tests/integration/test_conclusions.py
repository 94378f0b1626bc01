"""The conclusion hook: awaited before each final outcome is settled, whatever the outcome is."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import pytest
from support.process_handlers import TWICE, give, returning
from support.waiting import eventually

from mqcore import (
    App,
    Broker,
    Conclusion,
    ConfigurationError,
    Context,
    DeadLetter,
    Postpone,
    Queue,
    Received,
    Reject,
    RemoteError,
    RetryPolicy,
    Settings,
    Worker,
    fixed,
)
from mqcore.spi import Message, Outgoing
from mqcore.testing import VirtualClock, memory_url

Dead = Callable[[Queue[Any] | str], Awaitable[list[DeadLetter]]]
Suspect = Callable[[Queue[Any], int], Awaitable[None]]
jobs = Queue("jobs", str)
ONCE = RetryPolicy(1)
Fact = tuple[str, str, str, int, bool]


class Hook:
    """A conclusion hook that records its calls, and fails as often as it is given errors."""

    def __init__(self, *errors: BaseException, always: BaseException | None = None) -> None:
        self.errors, self.always = list(errors), always
        self.calls: list[list[Conclusion]] = []

    async def __call__(self, conclusions: Sequence[Conclusion]) -> None:
        self.calls.append(list(conclusions))
        error = self.errors.pop(0) if self.errors else self.always
        if error is not None:
            raise error

    @property
    def facts(self) -> list[Fact]:
        """Return id, outcome, reason, attempt and whether it ran, of each conclusion."""
        return [
            (each.id, each.outcome, each.reason, each.attempt, each.ran)
            for call in self.calls
            for each in call
        ]


async def handle(job: str, ctx: Context) -> str:
    if job == "reject":
        raise Reject("no")
    if job == "fail":
        raise ValueError("oh")
    return f"{job} by {ctx.attempt}"


def put(broker: Broker, *messages: Message, delay: float = 0.0) -> Awaitable[object]:
    """Store messages as another client might."""
    backend = broker._session.connection.backend
    out = [Outgoing("jobs", message, delay) for message in messages]
    return backend.publish(out, timeout=5)


async def test_every_handled_message_is_concluded_before_it_is_settled(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    seen: list[tuple[int, int]] = []

    async def hook(conclusions: Sequence[Conclusion]) -> None:
        await concluded(conclusions)
        (counts,) = await broker.counts(jobs)
        seen.append((counts.leased, len(await dead(jobs))))

    concluded = Hook()
    for job in ("done", "reject", "fail"):
        await broker.publish(jobs, job, id=job)
        async with serve(jobs, handle, retry=RetryPolicy(2, fixed(1)), conclusion=hook):
            await clock.advance(3)
    assert concluded.facts == [
        ("done", "done", "", 1, True),
        ("reject", "dead", "rejected", 1, True),
        ("fail", "dead", "retries_exhausted", 2, True),
    ], "a retry is not a final outcome"
    assert seen == [(1, 0), (1, 0), (1, 1)], "each message was still held, and no letter written"
    done, rejected, failed = [call[0] for call in concluded.calls]
    assert (done.value, done.queue) == ("done by 1", "jobs")
    assert (rejected.error_type, rejected.error) == ("mqcore.errors.Reject", "no")
    assert (failed.error_type, failed.error, failed.value) == ("ValueError", "oh", None)
    assert "ValueError: oh" in failed.traceback
    assert (await broker.counts(jobs))[0].leased == 0


async def test_a_message_that_was_postponed_for_too_long_is_concluded_with_the_reason(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    async def postponed(job: str) -> None:
        raise Postpone(40)

    hook = Hook()
    await broker.publish(jobs, "x", id="late")
    async with serve(jobs, postponed, retry=RetryPolicy(1, max_age=60), conclusion=hook):
        await clock.advance(50)
    assert hook.facts == [("late", "dead", "retries_exhausted", 1, False)]
    assert hook.calls[0][0].error == "it was postponed beyond max_age of its retry policy"


async def test_messages_that_never_ran_here_are_concluded(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    hook = Hook()
    await broker.publish(jobs, "x", id="expired", ttl=1)
    await broker.publish(jobs, "x", id="also", ttl=1)
    await clock.advance(2)
    await put(
        broker,
        Message(id="undecodable", body=b"\xff", content_type="text/plain"),
        Message(id="invalid", body=b"[1]", content_type="application/json"),
    )
    async with serve(jobs, handle, conclusion=hook):
        await clock.advance(1)
    assert sorted(hook.facts) == [
        ("also", "dead", "expired", 1, False),
        ("expired", "dead", "expired", 1, False),
        ("invalid", "dead", "invalid", 1, False),
        ("undecodable", "dead", "undecodable", 1, False),
    ]
    assert {letter.reason for letter in await dead(jobs)} == {"expired", "undecodable", "invalid"}


async def test_a_killer_is_concluded_by_the_consumer_that_finds_it(
    broker: Broker, clock: VirtualClock, serve: Any, suspect: Suspect
) -> None:
    hook = Hook()
    await broker.publish(jobs, "x", id="killer")
    await suspect(jobs, 1)
    async with serve(jobs, handle, retry=ONCE):
        pass  # moves it to the quarantine, and drains before it runs
    quarantine = broker._session.connection.backend
    subscription = await quarantine.subscribe("jobs.quarantine", prefetch=1, lease=30)
    (delivery,) = await subscription.receive(1, 0)
    assert await quarantine.note_start("jobs.quarantine", [delivery.receipt]) == [True]  # type: ignore[attr-defined]  # memory can
    await subscription.close()
    async with serve(jobs, handle, retry=ONCE, conclusion=hook):
        await clock.advance(1)
    assert hook.facts == [("killer", "dead", "crashed", 1, False)]


async def test_500_swept_messages_are_one_call(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    hook, go = Hook(), asyncio.Event()

    async def busy(_: str) -> None:
        await go.wait()

    await broker.publish(jobs, "busy")
    async with serve(jobs, busy, conclusion=hook, concurrency=1, prefetch=1):
        await clock.settle()
        await broker.publish_many(jobs, ["x"] * 500, ttl=1)
        await clock.advance(12)
        assert [len(call) for call in hook.calls] == [500]
        go.set()
        await clock.settle()
    counts, letters = await broker.counts(jobs, "jobs.dlq")
    assert (counts.leased, letters.ready) == (0, 500)


@pytest.mark.parametrize(
    "error", [ValueError("down"), SystemExit(1), asyncio.CancelledError()], ids=repr
)
async def test_a_failing_hook_postpones_a_done_message(
    broker: Broker, clock: VirtualClock, serve: Any, error: BaseException
) -> None:
    hook, runs = Hook(error, error), []

    async def handler(_: str, ctx: Context) -> None:
        runs.append(ctx.attempt)

    await broker.publish(jobs, "x")
    async with serve(jobs, handler, retry=ONCE, conclusion=hook, concurrency=1, prefetch=1):
        await clock.settle()
        (counts,) = await broker.counts(jobs)
        assert (counts.leased, counts.delayed) == (0, 1), "it holds no place of the prefetch"
        await clock.advance(10)
    assert runs == [1, 1, 1], "handled again, not counted"
    assert [fact[1] for fact in hook.facts] == ["done"] * 3
    counts = broker.events.counts
    assert (counts["conclusion.failed"], counts["message.done"]) == (2, 1)
    assert counts["message.postponed"] == 2
    assert (await broker.counts(jobs))[0].delayed == 0


@pytest.mark.parametrize("job", ["reject", "fail", "undecodable", "invalid", "expired"])
@pytest.mark.parametrize("letters", [True, False], ids=["dead letters", "dropped"])
async def test_a_failing_hook_keeps_the_outcome_of_what_must_not_run_again(
    broker: Broker, clock: VirtualClock, serve: Any, job: str, *, letters: bool
) -> None:
    queue = jobs if letters else Queue("jobs", str, dead_letter=None)
    hook, runs = Hook(*[OSError("down")] * 3), []

    async def handler(job: str, ctx: Context) -> None:
        runs.append(job)
        await handle(job, ctx)

    await broker.declare(queue)
    ttl = 1.0 if job == "expired" else 3600.0
    body = {"undecodable": b"\xff", "invalid": b"[1]"}.get(job, job.encode())
    kind = "application/json" if job == "invalid" else "text/plain"
    message = Message(id="me", body=body, content_type=kind, headers={"a": "b"})
    backend = broker._session.connection.backend
    await backend.publish([Outgoing("jobs", message, ttl=ttl)], timeout=5)
    await clock.advance(2)
    async with serve(queue, handler, retry=ONCE, conclusion=hook, concurrency=1, prefetch=1):
        await clock.settle()
        assert (await broker.counts(queue))[0].leased == 0
        await clock.advance(300)
    ran = job in {"reject", "fail"}
    assert runs == ([job] if ran else [])
    reason = {"reject": "rejected", "fail": "retries_exhausted"}.get(job, job)
    outcome = "dead" if letters else "dropped"
    assert [fact[:3] for fact in hook.facts] == [("me", outcome, reason)] * 4
    assert len({each.error for call in hook.calls for each in call}) == 1
    assert [fact[4] for fact in hook.facts] == [ran, False, False, False]
    if letters:
        (letter,) = await broker.dead_letters(queue).list()
        assert (letter.reason, letter.queue, letter.body) == (reason, "jobs", body)
        assert letter.attempts == (1 if ran else 0)
        assert dict(letter.message.headers) == {"a": "b"}
    assert [
        getattr((await broker.counts(queue))[0], name) for name in ("ready", "leased", "delayed")
    ] == [0, 0, 0]


async def test_what_waits_for_its_conclusion_is_not_run_by_a_consumer_without_a_hook(
    broker: Broker, clock: VirtualClock, serve: Any, dead: Dead
) -> None:
    runs: list[str] = []

    async def handler(job: str, ctx: Context) -> None:
        runs.append(job)
        await handle(job, ctx)

    await broker.publish(jobs, "reject")
    async with serve(jobs, handler, retry=ONCE, conclusion=Hook(always=OSError())):
        await clock.settle()
    async with serve(jobs, handler, retry=ONCE):
        await clock.advance(60)
    assert runs == ["reject"]
    (letter,) = await dead(jobs)
    assert (letter.reason, letter.death.error, letter.attempts) == ("rejected", "no", 1)


async def test_waits_grow_while_the_hook_fails_and_start_over(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    hook = Hook(always=OSError())
    times: list[float] = []
    broker.events.listen(
        lambda event: times.append(float(str(event.fields["delay"]))),
        lambda name: name == "message.postponed",
    )
    await broker.publish(jobs, "x")
    async with serve(jobs, handle, conclusion=hook):
        await clock.advance(3600)
    assert all(1 <= wait <= 61 for wait in times)
    assert 30 <= len(times) <= 400


async def test_a_hook_that_hangs_fails_after_a_while(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    calls: list[int] = []

    async def hook(conclusions: Sequence[Conclusion]) -> None:
        calls.append(len(conclusions))
        if len(calls) == 1:
            await asyncio.Event().wait()

    await broker.publish(jobs, "x")
    async with serve(jobs, handle, conclusion=hook):
        await clock.advance(29)
        assert (await broker.counts(jobs))[0].leased == 1
        await clock.advance(5)
    assert calls == [1, 1]
    assert broker.events.counts["message.done"] == 1


async def test_a_hook_says_when_it_wants_to_be_asked_again(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    """As a busy row does: another worker is still running a copy of the message."""
    times: dict[str, list[float]] = {}

    async def hook(conclusions: Sequence[Conclusion]) -> None:
        for each in conclusions:
            times.setdefault(each.id, []).append(round(clock.monotonic()))
            if each.id == "busy" and len(times[each.id]) == 1:
                with pytest.raises(ConfigurationError):
                    each.postpone(-1)
                each.postpone(50)

    await broker.publish(jobs, "x", id="busy", ttl=1)
    await broker.publish(jobs, "x", id="other", ttl=1)
    await clock.advance(2)
    async with serve(jobs, handle, conclusion=hook):
        await clock.advance(60)
    assert len(times["other"]) == 1
    first, second = times["busy"]
    assert second - first == 50
    assert broker.events.counts["conclusion.failed"] == 0


async def test_a_hook_may_postpone_all(broker: Broker, clock: VirtualClock, serve: Any) -> None:
    hook = Hook(Postpone(50))
    await broker.publish(jobs, "reject")
    async with serve(jobs, handle, conclusion=hook):
        await clock.advance(45)
        assert len(hook.calls) == 1
        await clock.advance(10)
    assert len(hook.calls) == 2
    assert broker.events.counts["conclusion.failed"] == 0


async def test_a_batch_is_one_call(broker: Broker, clock: VirtualClock, serve: Any) -> None:
    hook = Hook()

    async def handler(items: list[Received[str]]) -> None:
        await asyncio.gather(items[0].ack(), items[1].reject("no"))

    await broker.publish_many(jobs, ["a", "b", "c", "d"])
    await put(broker, Message(id="bad", body=b"\xff", content_type="text/plain"))
    async with serve(jobs, handler, batch=5, linger=0.1, conclusion=hook):
        await clock.advance(1)
    assert [len(call) for call in hook.calls] == [1, 2, 2]
    assert [fact[1:3] for fact in hook.facts] == [
        ("dead", "undecodable"),
        ("done", ""),
        ("dead", "rejected"),
        ("done", ""),
        ("done", ""),
    ]


async def test_a_request_is_answered_after_the_hook(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    hook = Hook(OSError())
    async with serve(jobs, handle, conclusion=hook, retry=ONCE):
        asked = asyncio.create_task(broker.request(jobs, "x", result=str))
        await clock.settle()
        assert not asked.done()
        await clock.advance(5)
        assert await asked == "x by 1"
        hook.errors.append(OSError())
        asked = asyncio.create_task(broker.request(jobs, "reject"))
        await clock.advance(5)
        with pytest.raises(RemoteError, match="rejected"):
            await asked
    assert [fact[1] for fact in hook.facts] == ["done", "done", "dead", "dead"]


async def test_the_hook_is_awaited_by_the_drain(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    go, called = asyncio.Event(), asyncio.Event()

    async def hook(_: Sequence[Conclusion]) -> None:
        called.set()
        await go.wait()

    await broker.publish(jobs, "x")
    async with serve(jobs, handle, conclusion=hook) as worker:
        await called.wait()
        draining = asyncio.create_task(worker.drain())
        await clock.settle()
        assert not draining.done()
        go.set()
        await draining
    assert (await broker.counts(jobs))[0].leased == 0
    assert broker.events.counts["message.done"] == 1


async def test_what_the_hook_has_not_concluded_at_the_end_comes_again(
    broker: Broker, clock: VirtualClock, serve: Any
) -> None:
    hook, called = Hook(), asyncio.Event()

    async def hangs(_: Sequence[Conclusion]) -> None:
        called.set()
        await asyncio.Event().wait()

    await broker.publish(jobs, "x", id="me")
    async with serve(jobs, handle, conclusion=hangs) as worker:
        await called.wait()
        await worker.drain(0)
    async with serve(jobs, handle, conclusion=hook):
        await clock.advance(1)
    assert hook.facts == [("me", "done", "", 1, True)]


async def test_a_value_from_a_process_is_given_to_the_hook() -> None:
    hook = Hook()
    app = App("processes")
    app.register(returning, give, {"process": True, "conclusion": hook, "retry": TWICE})
    async with (
        Broker.connect(memory_url(), settings=Settings()) as broker,
        Worker(app, broker, grace=0),
    ):
        await broker.publish(returning, 3)
        await eventually(lambda: bool(hook.calls), 10)
    assert hook.calls[0][0].value == {"x": 3}


def test_a_hook_does_not_go_with_ack_first_and_must_be_async() -> None:
    app = App("shop")
    with pytest.raises(ConfigurationError, match="ack_first=True settles it before"):
        app.register(jobs, handle, {"conclusion": Hook(), "ack_first": True})
    with pytest.raises(ConfigurationError, match="conclusion=print is not usable; give an async"):
        app.register(jobs, handle, {"conclusion": print})  # type: ignore[typeddict-item]  # the mistake
    app.register(jobs, handle, {"conclusion": partial(_with, 1)})


async def _with(_: int, conclusions: Sequence[Conclusion]) -> None:
    assert conclusions
