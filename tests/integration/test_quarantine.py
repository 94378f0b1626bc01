"""G4: when a whole consumer dies, its killer is found out, and no innocent pays for it."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support.faulty import Faults, WrongPassword, raised

from mqcore import (
    App,
    Broker,
    BrokerError,
    Context,
    DeadLetter,
    Queue,
    QueueNotFound,
    Received,
    Retry,
    RetryPolicy,
    Worker,
    fixed,
)
from mqcore.consuming.isolation import Entry, IsolationLock
from mqcore.testing import VirtualClock

Dead = Callable[[Queue[Any] | str], Awaitable[list[DeadLetter]]]
Client = Callable[[], Awaitable[Broker]]
Suspect = Callable[[Queue[Any], int], Awaitable[None]]
Killed = Callable[[Worker], Awaitable[None]]
jobs = Queue("jobs", str)
POLICY = RetryPolicy(3, fixed(1))


class Fleet:
    """Workers one after another; a message `killer` ends the worker that it runs in."""

    def __init__(self, client: Client, killed: Killed, clock: VirtualClock) -> None:
        self.client, self.killed, self.clock = client, killed, clock
        self.starts: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.beside: list[set[str]] = []
        """What else was running at each start of a killer."""
        self.running: set[str] = set()
        self.crashed = asyncio.Event()

    async def __call__(self, job: str) -> None:
        self.starts[job] += 1
        if job.startswith("killer"):
            self.beside.append(set(self.running))
            self.crashed.set()
            await asyncio.Event().wait()
        self.running.add(job)
        try:
            await self.clock.sleep(0.1)
        finally:
            self.running.discard(job)
        self.done[job] += 1

    async def run(self, queue: Queue[str], for_seconds: float, **options: Any) -> int:
        """Keep one worker running for so long; return how many died."""
        app = App("fleet")
        app.register(queue, self, options)  # type: ignore[arg-type]  # real options
        deaths, until = 0, self.clock.monotonic() + for_seconds
        while self.clock.monotonic() < until:
            self.crashed.clear()
            self.running.clear()
            worker = Worker(app, await self.client(), grace=1)
            await worker.start()
            while not self.crashed.is_set() and self.clock.monotonic() < until:
                await self.clock.advance(0.05)
            deaths += self.crashed.is_set()
            await self.killed(worker)
        return deaths


@pytest.fixture
def fleet(client: Client, killed: Killed, clock: VirtualClock) -> Fleet:
    return Fleet(client, killed, clock)


@pytest.mark.parametrize("prefetch", [50, 20, 1])
@pytest.mark.parametrize("place", [0, 7, 49])
async def test_a_subscription_dropped_with_50_messages_and_a_killer_among_them(
    broker: Broker, fleet: Fleet, dead: Dead, place: int, prefetch: int
) -> None:
    names = [f"job-{n}" for n in range(49)]
    names.insert(place, "killer")
    await broker.publish_many(jobs, names)
    deaths = await fleet.run(jobs, 20, retry=POLICY, concurrency=10, prefetch=prefetch)
    (letter,) = await dead(jobs)
    assert (letter.body, letter.reason, letter.attempts) == (b"killer", "crashed", 3)
    assert fleet.starts["killer"] == deaths == POLICY.max_attempts + 2
    assert not any(fleet.beside[2:]), "after the second time it ran alone"
    assert set(fleet.done) == set(names) - {"killer"}
    counts = (await broker.counts(jobs))[0]
    assert (counts.ready, counts.leased, counts.delayed) == (0, 0, 0)


async def test_two_killers_among_others(broker: Broker, fleet: Fleet, dead: Dead) -> None:
    names = [f"job-{n}" for n in range(20)] + ["killer-1", "killer-2"]
    await broker.publish_many(jobs, names)
    await fleet.run(jobs, 20, retry=POLICY, concurrency=30)
    assert {letter.body for letter in await dead(jobs)} == {b"killer-1", b"killer-2"}
    assert max(fleet.starts["killer-1"], fleet.starts["killer-2"]) <= POLICY.max_attempts + 2
    assert len(fleet.done) == 20


async def test_a_redriven_killer_gets_no_more_than_another_round(
    broker: Broker, fleet: Fleet, dead: Dead
) -> None:
    await broker.publish(jobs, "killer")
    await fleet.run(jobs, 5, retry=POLICY)
    await broker.dead_letters(jobs).redrive()
    await fleet.run(jobs, 5, retry=POLICY)
    assert fleet.starts["killer"] == 2 * (POLICY.max_attempts + 2)
    assert [letter.reason for letter in await dead(jobs)] == ["crashed"]


async def test_a_suspect_is_not_counted_and_keeps_all(broker: Broker, suspect: Suspect) -> None:
    await broker.publish(jobs, "x", id="me", priority=9, headers={"k": "v"})
    for _ in range(2):  # four deaths of consumers that had not started it among others
        await suspect(jobs, 1)
    async with broker.consume(jobs) as deliveries:
        delivery = await anext(deliveries)
        assert (delivery.id, delivery.attempt, delivery.priority) == ("me", 1, 9)
        assert (dict(delivery.headers), delivery.queue, delivery.redelivered) == (
            {"k": "v"},
            "jobs",
            True,
        )
        await delivery.ack()
    assert (await broker.counts(jobs))[0].ready == 0


async def test_a_suspect_waits_for_others_and_keeps_newcomers_out(
    broker: Broker, clock: VirtualClock, suspect: Suspect
) -> None:
    """Across all queues of one worker."""
    other = Queue("other", str)
    log: list[str] = []
    go = asyncio.Event()

    async def handler(job: str) -> None:
        log.append(f"+{job}")
        if job.startswith("long"):
            await go.wait()
        else:
            await clock.sleep(1)
        log.append(f"-{job}")

    app = App("two")
    app.consumer(jobs)(handler)
    app.consumer(other)(handler)
    await broker.publish(jobs, "suspect")
    await suspect(jobs, 1)
    await broker.publish_many(other, ["long-1", "long-2"])
    async with Worker(app, broker):
        await clock.advance(0)
        first = list(log)
        await broker.publish(other, "newcomer")
        await clock.advance(5)
        if first == ["+suspect"]:  # it was there first: then the others had to wait for it
            assert log[:2] == ["+suspect", "-suspect"]
            go.set()
            await clock.advance(5)
        else:
            assert log == ["+long-1", "+long-2"]
            go.set()
            await clock.advance(5)
            assert log[4:6] == ["+suspect", "-suspect"]
    alone = log.index("+suspect")
    assert log[alone + 1] == "-suspect"
    assert sorted(log) == sorted(
        f"{sign}{job}" for sign in "+-" for job in ("suspect", "long-1", "long-2", "newcomer")
    )


async def test_a_waiting_suspect_keeps_newcomers_of_all_queues_out(
    broker: Broker, clock: VirtualClock, suspect: Suspect, serve: Any
) -> None:
    log: list[str] = []
    go = asyncio.Event()

    async def handler(job: str) -> None:
        log.append(job)
        if job == "long":
            await go.wait()

    await broker.publish(jobs, "long")
    async with serve(jobs, handler):
        await clock.settle()
        await broker.publish(Queue("spare", str), "x")
        await broker.publish("jobs.quarantine", "suspect")
        await clock.settle()
        await broker.publish(jobs, "newcomer")
        await clock.settle()
        assert log == ["long"]
        go.set()
        await clock.settle()
        assert log == ["long", "suspect", "newcomer"]


async def test_suspects_and_others_take_turns(
    broker: Broker, clock: VirtualClock, suspect: Suspect, serve: Any
) -> None:
    log: list[str] = []

    async def handler(job: str) -> None:
        log.append(job)

    await broker.publish_many(jobs, [f"s{n}" for n in range(10)])
    await suspect(jobs, 10)
    async with broker.consume(jobs) as deliveries:  # sorts the ten into the quarantine
        await clock.settle()
        await (await anext(deliveries)).release()
    await broker.publish_many(jobs, [f"o{n}" for n in range(10)])
    async with serve(jobs, handler, concurrency=1):
        await clock.settle()
    kinds = "".join(name[0] for name in log)
    assert kinds.count("s") == kinds.count("o") == 10
    assert "ss" not in kinds[:18]
    assert "oo" not in kinds[:18]


async def test_a_release_inside_the_quarantine_is_no_crash(
    broker: Broker, clock: VirtualClock, suspect: Suspect, serve: Any, dead: Dead
) -> None:
    attempts: list[int] = []

    async def handler(_: str, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        await asyncio.Event().wait()

    await broker.publish(jobs, "x")
    await suspect(jobs, 1)
    for _ in range(6):  # six deployments while it runs alone
        async with serve(jobs, handler, retry=POLICY, run={"grace": 0}):
            await clock.settle()
    assert attempts == [1] * 6
    assert await dead(jobs) == []
    assert broker.events.counts["message.released"] == 6


async def test_a_failure_inside_the_quarantine_is_an_ordinary_one(
    broker: Broker, clock: VirtualClock, suspect: Suspect, serve: Any, dead: Dead
) -> None:
    attempts: list[int] = []

    async def handler(_: str, ctx: Context) -> None:
        attempts.append(ctx.attempt)
        raise Retry(delay=5)

    await broker.publish(jobs, "x")
    await suspect(jobs, 1)
    async with serve(jobs, handler, retry=POLICY):
        await clock.settle()
        assert (await broker.counts("jobs"))[0].delayed == 1  # back in the main queue
        await clock.advance(20)
    assert attempts == [1, 2, 3]
    assert [letter.reason for letter in await dead(jobs)] == ["retries_exhausted"]


async def test_what_expires_in_the_quarantine_never_starts(
    broker: Broker, clock: VirtualClock, suspect: Suspect, serve: Any, dead: Dead
) -> None:
    log: list[str] = []
    go = asyncio.Event()

    async def handler(job: str) -> None:
        log.append(job)
        await go.wait()

    await broker.publish(jobs, "long")
    async with serve(jobs, handler):
        await clock.settle()
        await broker.publish("jobs.quarantine", "suspect", ttl=10)
        await broker.publish("jobs.quarantine", "another", ttl=10)
        await clock.advance(20)
        await broker.publish(jobs, "newcomer")
        await clock.advance(6)
        assert log == ["long", "newcomer"], "nobody waits for what has expired"
        assert sorted(letter.body for letter in await dead(jobs)) == [b"another", b"suspect"]
        go.set()
        await clock.settle()


async def test_a_batch_consumer_gets_suspects_alone(
    broker: Broker, clock: VirtualClock, suspect: Suspect, serve: Any
) -> None:
    batches: list[list[str]] = []

    async def handler(items: list[Received[str]]) -> None:
        batches.append([item.value for item in items])

    await broker.publish_many(jobs, ["s1", "s2", "s3"])
    await suspect(jobs, 3)
    await broker.publish_many(jobs, ["a", "b", "c"])
    async with serve(jobs, handler, batch=10, linger=0):
        await clock.advance(1)
    assert sorted(name for batch in batches for name in batch) == ["a", "b", "c", "s1", "s2", "s3"]
    assert all(len(batch) == 1 for batch in batches if batch[0].startswith("s"))


async def test_the_pull_api_hands_out_a_suspect_alone(
    broker: Broker, clock: VirtualClock, suspect: Suspect
) -> None:
    await broker.publish_many(jobs, ["s1", "s2"])
    await suspect(jobs, 2)
    await broker.publish_many(jobs, ["a", "b"])
    seen: list[str] = []
    async with broker.consume(jobs, prefetch=10) as deliveries:
        await clock.settle()
        for _ in range(4):
            delivery = await anext(deliveries)
            await clock.settle()
            seen.append(delivery.value)
            if delivery.value.startswith("s"):
                getting = asyncio.create_task(deliveries.get(timeout=1))
                await clock.advance(1)
                assert await getting is None, "nothing is handed out beside a suspect"
            await delivery.ack()
    assert sorted(seen) == ["a", "b", "s1", "s2"]


async def test_a_pull_that_holds_one_still_gets_the_next(
    broker: Broker, clock: VirtualClock
) -> None:
    await broker.declare(jobs)
    await broker.publish_many(jobs, ["a", "b"])
    await broker.publish("jobs.quarantine", "suspect")
    async with broker.consume(jobs) as deliveries:
        await clock.settle()
        held = [await anext(deliveries)]
        if held[0].value == "suspect":
            await held.pop().ack()
            held.append(await anext(deliveries))
        held.append(await anext(deliveries))
        assert [one.value for one in held] == ["a", "b"]


async def test_dead_letters_and_temporary_queues_know_no_suspicion(
    broker: Broker, clock: VirtualClock, suspect: Suspect
) -> None:
    await broker.declare(jobs)
    graves = Queue("jobs.dlq", str, declare=False)
    await broker.publish("jobs.dlq", "x")
    await suspect(graves, 1)
    async with broker.consume(graves) as deliveries:
        delivery = await anext(deliveries)
        assert (delivery.value, delivery.attempt) == ("x", 1)


async def test_the_quarantine_is_hidden_counted_and_purged(
    broker: Broker, clock: VirtualClock
) -> None:
    await broker.declare(jobs)
    await broker.publish("jobs.quarantine", "x")
    assert [counts.name for counts in await broker.counts()] == ["jobs", "jobs.dlq"]
    assert (await broker.counts(jobs))[0].ready == 1
    assert await broker.purge(jobs) == 1
    assert (await broker.counts(jobs))[0].ready == 0


async def test_what_has_expired_does_not_take_the_turn_before_a_suspect(
    broker: Broker, clock: VirtualClock, suspect: Suspect
) -> None:
    await broker.publish_many(jobs, ["s1", "s2"])
    await suspect(jobs, 2)
    async with broker.consume(jobs) as deliveries:
        first = await anext(deliveries)
        await broker.publish(jobs, "brief", ttl=1)
        await clock.advance(2)
        await first.ack()
        await clock.settle()
        getting = asyncio.create_task(deliveries.get(timeout=60))
        await clock.settle()
        assert getting.done(), "it waits behind what nobody will ever handle"
        second = getting.result()
        assert second is not None
        assert {first.value, second.value} == {"s1", "s2"}


async def test_a_suspect_whose_start_cannot_be_noted_does_not_start_and_is_not_counted(
    broker: Broker,
    clock: VirtualClock,
    suspect: Suspect,
    serve: Any,
    dead: Dead,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    attempts: list[int] = []
    tries = 0
    backend: Any = broker._session.connection.backend
    real = backend.note_start

    async def note_start(queue: str, receipts: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise ConnectionError("no answer")
        assert not attempts, "noted before it starts"
        return await real(queue, receipts)

    monkeypatch.setattr(backend, "note_start", note_start)

    async def handler(_: str, ctx: Context) -> None:
        attempts.append(ctx.attempt)

    await broker.publish(jobs, "x")
    await suspect(jobs, 1)
    async with serve(jobs, handler, retry=POLICY):
        await clock.advance(60)
    assert (attempts, tries) == ([1], 4)
    assert await dead(jobs) == []


async def test_who_dies_between_the_claim_of_a_suspect_and_its_start_is_not_counted(
    broker: Broker, clock: VirtualClock, suspect: Suspect, serve: Any, dead: Dead
) -> None:
    attempts: list[int] = []

    async def handler(_: str, ctx: Context) -> None:
        attempts.append(ctx.attempt)

    await broker.declare(jobs)
    await broker.publish("jobs.quarantine", "x")
    for _ in range(POLICY.max_attempts):
        await suspect(Queue("jobs.quarantine", str, declare=False), 1)
    async with serve(jobs, handler, retry=POLICY):
        await clock.advance(1)
    assert attempts == [1]
    assert await dead(jobs) == []


async def test_a_suspect_that_only_waited_for_its_turn_is_not_counted(
    broker: Broker, client: Client, killed: Killed, clock: VirtualClock, dead: Dead
) -> None:
    """Four workers with a slow killer each die one after another; an ordinary message waits."""
    starts: list[str] = []

    async def handler(job: str) -> None:
        starts.append(job)
        await asyncio.Event().wait()

    app = App("fleet")
    app.consumer(jobs, retry=POLICY, concurrency=1, prefetch=1)(handler)
    workers: list[Worker] = []
    for n in range(4):
        await broker.publish(jobs, f"slow-killer-{n}")
        workers.append(Worker(app, await client(), grace=0))
        await workers[-1].start()
        await clock.settle()
    await broker.publish("jobs.quarantine", "innocent")
    await clock.settle()
    for _ in range(3):
        holder = next(
            (worker for worker in workers if worker._runners[0].receiver.holding > 1), workers[0]
        )
        workers.remove(holder)
        await killed(holder)
        await clock.settle()
    assert starts == [f"slow-killer-{n}" for n in range(4)]
    assert await dead(jobs) == []


async def test_a_suspect_that_is_lost_before_anybody_takes_it_leaves_the_gate_open(
    broker: Broker, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    isolation = IsolationLock()
    receiver = await broker._session.receiver(jobs, None, prefetch=1, lease=30, isolation=isolation)
    await receiver.start()
    caller = asyncio.create_task(receiver.next())
    await clock.settle()
    accept, ended = receiver._quarantine.accept, asyncio.Event()

    def lose(held: Any) -> None:
        accept(held)
        held.lose()
        caller.cancel()
        ended.set()

    monkeypatch.setattr(receiver._quarantine, "accept", lose)
    await broker.publish("jobs.quarantine", "suspect")
    await ended.wait()
    await clock.settle()
    await receiver.close()
    assert isolation.enter_shared(), "others wait for a suspect that is gone"


@pytest.mark.parametrize("where", ["waiting for the lock", "in the lock"])
async def test_a_consumer_that_failed_keeps_no_other_from_running(
    faulty: Broker, faults: Faults, broker: Broker, clock: VirtualClock, where: str
) -> None:
    isolation = IsolationLock()
    receiver = await faulty._session.receiver(jobs, None, prefetch=1, lease=30, isolation=isolation)
    await receiver.start()
    assert isolation.enter_shared()  # another consumer runs a handler
    caller = asyncio.create_task(receiver.next())
    await clock.settle()
    await faulty.publish("jobs.quarantine", "suspect")
    await clock.settle()
    assert not isolation.enter_shared(), "the suspect waits for its turn"

    faults.next("declare", *[raised(WrongPassword("revoked"))] * 2)
    if where == "waiting for the lock":
        await broker.delete("jobs")
        await clock.advance(5)
        isolation.leave(Entry.SHARED)
    else:  # it fails while it asks for the suspect
        faults.next("receive", raised(QueueNotFound("gone")))
        isolation.leave(Entry.SHARED)
        await clock.advance(5)
    with pytest.raises(BrokerError, match="revoked"):
        await caller
    for _ in range(2):
        assert isolation.enter_shared(), "others wait for a consumer that has ended"
        with pytest.raises(BrokerError, match="revoked"):
            await receiver.next()
    await receiver.close()
