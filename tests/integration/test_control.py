"""Commands to running workers and their answers, through the broker alone."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from mqcore import (
    App,
    Broker,
    ConfigurationError,
    Queue,
    Settings,
    UnsupportedFeature,
    Worker,
)
from mqcore.broker import session_of
from mqcore.consuming.grace import Grace
from mqcore.control.client import Control
from mqcore.control.protocol import ROUTER, Answer, Command, queue_of
from mqcore.control.server import ControlServer
from mqcore.messages.message import Message
from mqcore.rules.capabilities import Capability, Level, Support
from mqcore.tasks import Rate, Tasks
from mqcore.testing import memory_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mqcore.testing import VirtualClock

jobs = Queue("jobs", str)
mails = Queue("mails", str)


class Shop:
    """An application, and workers of it on brokers of their own, as in processes of their own."""

    def __init__(self, clock: VirtualClock, url: str) -> None:
        self.clock, self.url = clock, url
        self.go = asyncio.Event()
        self.app = App("shop", tasks=[tasks := Tasks("shop")])

        @self.app.consumer(jobs, concurrency=4)
        async def job(_: str) -> None:
            await self.go.wait()

        @self.app.consumer(mails, concurrency=2)
        async def mail(_: str) -> None: ...

        @tasks.task(name="add", timeout=60)
        async def add(x: int) -> int:
            return x

        self.tasks = tasks

    @asynccontextmanager
    async def open(self, app: App | None = None) -> AsyncIterator[Broker]:
        connecting: Any = (app or Broker).connect  # type: ignore[attr-defined]  # both have it
        async with connecting(self.url, clock=self.clock, settings=Settings()) as broker:
            yield broker

    @asynccontextmanager
    async def workers(self, count: int, **options: Any) -> AsyncIterator[list[Worker]]:
        async with AsyncExitStack() as stack:
            workers = []
            for _ in range(count):
                broker = await stack.enter_async_context(self.open(self.app))
                worker = Worker(self.app, broker, **{"grace": 0, "control": True, **options})
                workers.append(await stack.enter_async_context(worker))
            await self.clock.settle()
            yield workers

    @asynccontextmanager
    async def control(self) -> AsyncIterator[Control]:
        async with self.open() as broker, Control(broker) as control:
            yield control


@pytest.fixture
def shop(clock: VirtualClock, url: str) -> Shop:
    return Shop(clock, url)


def name_of(worker: Worker) -> str:
    assert worker.control is not None
    return worker.control.name


async def only(sending: Any) -> Answer:
    (answer,) = await sending
    return answer  # type: ignore[no-any-return]  # of Control.send


async def test_all_workers_answer_and_the_last_answer_ends_the_wait(
    shop: Shop, clock: VirtualClock
) -> None:
    async with shop.workers(3) as workers, shop.control() as control:
        before = clock.monotonic()
        answers = await control.send("ping")
        assert clock.monotonic() == before
        assert [each.worker for each in answers] == sorted(map(name_of, workers))
        for answer in answers:
            assert answer.ok
            assert answer.data["app"] == "shop"
            assert answer.data["queues"] == {"default": 10, "jobs": 4, "mails": 2}


async def test_a_chosen_worker_answers_alone(shop: Shop) -> None:
    async with shop.workers(2) as (first, second), shop.control() as control:
        answer = await only(control.send("grow", {"count": 3}, workers=[name_of(second)]))
        assert answer.data == {"queues": {"default": 13, "jobs": 7, "mails": 5}}
        assert (first.queues["jobs"], second.queues["jobs"]) == (4, 7)

        await control.send("shrink", {"count": 9, "queue": "mails"}, workers=[name_of(second)])
        assert second.queues == {"default": 13, "jobs": 7, "mails": 1}


async def test_who_is_gone_is_reported_at_once(shop: Shop, clock: VirtualClock) -> None:
    async with shop.workers(1) as (worker,), shop.control() as control:
        before = clock.monotonic()
        answers = await control.send("ping", workers=["host:1:gone", name_of(worker)])
        assert clock.monotonic() == before
        by_name = {each.worker: each for each in answers}
        assert by_name[name_of(worker)].ok
        assert "no queue for commands" in by_name["host:1:gone"].error

    async with shop.control() as control:
        assert await control.send("ping") == []


async def test_who_does_not_answer_is_named_after_the_time_limit(
    shop: Shop, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with shop.workers(2) as (silent, _), shop.control() as control:

        async def nothing(*_: Any) -> None: ...

        monkeypatch.setattr(silent.control, "_send", nothing)
        sending = asyncio.create_task(control.send("ping", timeout=3))
        await clock.settle()
        assert not sending.done()
        await clock.advance(3)
        bad = [each for each in await sending if not each.ok]
        assert [each.worker for each in bad] == [name_of(silent)]
        assert "no answer within 3 s" in bad[0].error


async def test_consumers_are_added_and_cancelled(shop: Shop) -> None:
    async with shop.workers(1, queues=["jobs"]) as (worker,), shop.control() as control:
        answer = await only(control.send("add_consumer", {"queue": "mails"}))
        assert answer.data == {"queues": {"jobs": 4, "mails": 2}}
        answer = await only(control.send("cancel_consumer", {"queue": "jobs"}))
        assert answer.data == {"queues": {"mails": 2}}
        assert worker.queues == {"mails": 2}


async def test_a_consumer_that_takes_long_to_drain_is_answered_meanwhile(shop: Shop) -> None:
    async with shop.workers(1, grace=30) as (worker,), shop.control() as control:
        await worker.broker.publish(jobs, "slow")
        await shop.clock.settle()
        answer = await only(control.send("cancel_consumer", {"queue": "jobs"}))
        assert answer.data["draining"] == "jobs"
        shop.go.set()
        await shop.clock.settle()
        assert "jobs" not in worker.queues


async def test_a_worker_is_shut_down_or_recycled(shop: Shop) -> None:
    for command, recycles in (("shutdown", False), ("recycle", True)):
        async with shop.open(shop.app) as broker, shop.control() as control:
            worker = Worker(shop.app, broker, control=True)
            running = asyncio.create_task(worker.run())
            await shop.clock.settle()
            assert (await only(control.send(command))).ok
            await running
            assert (worker.recycle, worker.is_shut_down) == (recycles, not recycles)


async def test_the_time_limit_of_a_task_is_changed(shop: Shop) -> None:
    async with shop.workers(1), shop.control() as control:
        arguments = {"task": "add", "timeout": 5, "soft_timeout": 4}
        answer = await only(control.send("time_limit", arguments))
        assert answer.data == arguments
        task = shop.tasks.find("add")
        assert task is not None
        assert (task.timeout, task.soft_timeout) == (5, 4)
        await control.send("time_limit", {"task": "add", "timeout": None})
        assert (task.timeout, task.soft_timeout) == (None, 4)


async def test_the_rate_of_a_task_is_changed(shop: Shop) -> None:
    shop.tasks.store = memory_url()
    task = shop.tasks.find("add")
    assert task is not None
    async with shop.workers(1), shop.control() as control:
        arguments = {"task": "add", "count": 10, "per": 60}
        answer = await only(control.send("rate", arguments))
        assert answer.data == {"task": "add", "rate": "10 in 60 s"}
        assert task.rate == Rate(10, 60)

        task.rate = Rate(1, 1, by=("x",), burst=3)
        await control.send("rate", {"task": "add", "count": 5})
        assert task.rate == Rate(5, 1.0, by=("x",), burst=3)
        assert (await only(control.send("rate", {"task": "add"}))).ok
        assert task.rate is None
        task.own_rate = Rate(1, 1, by=("x",), burst=3)
        await control.send("rate", {"task": "add", "count": 4})
        assert task.rate == Rate(4, 1.0, by=("x",), burst=3)
        assert "count=0" in (await only(control.send("rate", {"task": "add", "count": 0}))).error


async def test_a_rate_needs_a_store(shop: Shop) -> None:
    async with shop.workers(1), shop.control() as control:
        answer = await only(control.send("rate", {"task": "add", "count": 1}))
        assert "a rate needs a store" in answer.error


async def test_a_consumer_follows_how_busy_it_is(shop: Shop, clock: VirtualClock) -> None:
    async with shop.workers(1) as (worker,), shop.control() as control:
        arguments = {"low": 2, "high": 12, "queue": "jobs"}
        assert (await only(control.send("autoscale", arguments))).data["autoscale"] == [2, 12]
        await worker.broker.publish_many(jobs, ["job"] * 30)
        await clock.advance(5)
        assert worker.queues["jobs"] == worker.running["jobs"] == 12

        shop.go.set()
        await clock.advance(200)
        assert worker.queues["jobs"] == 2
        assert worker.queues["mails"] == 2
        await control.send("autoscale", {"queue": "jobs"})
        assert (await only(control.send("ping"))).data["autoscale"] == {}


async def test_autoscaling_that_ends_and_begins_at_once_goes_on(
    shop: Shop, clock: VirtualClock
) -> None:
    async with shop.workers(1) as (worker,), shop.control() as control:
        arguments = {"low": 2, "high": 12, "queue": "jobs"}
        await control.send("autoscale", arguments)
        await asyncio.gather(
            control.send("autoscale", {"queue": "jobs"}), control.send("autoscale", arguments)
        )
        await worker.broker.publish_many(jobs, ["job"] * 30)
        await clock.advance(5)
        assert worker.queues["jobs"] == 12


async def test_a_worker_that_ends_beside_a_slow_command_leaves_no_name(shop: Shop) -> None:
    async with shop.open(shop.app) as broker, shop.control() as control:
        session = session_of(broker)
        for _ in range(2):
            async with Worker(shop.app, broker, grace=5, control=True) as worker:
                await broker.publish(jobs, "job")
                await shop.clock.settle()
                sending = asyncio.create_task(control.send("cancel_consumer", {"queue": "jobs"}))
                await shop.clock.settle()
                assert session.controlled == [name_of(worker)] == [session.worker]
                draining = asyncio.create_task(worker.drain())
                await shop.clock.advance(20)
                await draining
                await sending
            assert session.controlled == []
            assert await broker.bindings(ROUTER) == []


@pytest.mark.parametrize(
    ("command", "arguments", "error"),
    [
        ("pang", {}, "did you mean 'ping'?"),
        ("grow", {"count": 0}, "count=0"),
        ("grow", {"count": "all"}, "count='all'"),
        ("grow", {"size": 3}, "wrong arguments"),
        ("grow", {"queue": "job"}, "did you mean 'jobs'?"),
        ("add_consumer", {"queue": "mail"}, "did you mean 'mails'?"),
        ("add_consumer", {}, "wrong arguments"),
        ("cancel_consumer", {"queue": "nope"}, "does not consume queue 'nope'"),
        ("autoscale", {"low": 5, "high": 2}, "5 to 2 is not a range"),
        ("time_limit", {"task": "ad", "timeout": 5}, "no task named 'ad'"),
        ("time_limit", {"task": "add", "timeout": -5}, "timeout=-5"),
    ],
)
async def test_what_cannot_be_done_is_an_error_of_the_answer(
    shop: Shop, command: str, arguments: dict[str, Any], error: str
) -> None:
    async with shop.workers(1) as (worker,), shop.control() as control:
        before = worker.queues
        answer = await only(control.send(command, arguments))
        assert not answer.ok
        assert error in answer.error
        assert worker.queues == before


@pytest.mark.parametrize(
    "body", [b"", b"\xff", b"[]", b"{}", b'{"command": 3}', b"[" * 9000, b'{"command": "ping"}x']
)
async def test_a_forged_command_disturbs_no_worker(
    shop: Shop, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with shop.workers(1) as (worker,), shop.control() as control:
        publisher = session_of(worker.broker).publisher
        for number in range(2):
            forged = Message(id=f"forged-{number}", body=body, reply_to="jobs")
            await publisher.send(queue_of(name_of(worker)), forged, {}, 5)
        await shop.clock.settle()
        assert caplog.text.count("is not a command") == 1
        assert (await only(control.send("ping"))).ok


async def test_an_answer_goes_to_reply_queues_only(shop: Shop) -> None:
    async with shop.workers(1, queues=["mails"]) as (worker,):
        publisher = session_of(worker.broker).publisher
        command = Message(id="one", body=Command("ping").encode(), reply_to="jobs")
        await publisher.send(queue_of(name_of(worker)), command, {}, 5)
        await shop.clock.settle()
        (counts,) = await worker.broker.counts(jobs)
        assert counts.ready == 0


async def test_commands_leave_nothing_behind(shop: Shop) -> None:
    async with shop.open() as broker:
        async with shop.workers(2), shop.control() as control:
            assert len(await broker.bindings(ROUTER)) == 2
            assert len(await control.send("ping")) == 2
        assert await broker.bindings(ROUTER) == []
        assert all(not each.name.startswith("mq.") for each in await broker.counts())


async def test_commands_are_no_events_of_the_application(shop: Shop) -> None:
    seen: list[tuple[str, str]] = []
    async with shop.open(shop.app) as broker, shop.control() as control:
        broker.events.listen(lambda event: seen.append((event.name, event.queue)))
        async with Worker(shop.app, broker, grace=0, control=True):
            await shop.clock.settle()
            assert (await only(control.send("ping"))).ok
        assert broker.events.counts["message.done"] == 0
    queues = ["default", "jobs", "mails"]
    assert sorted(queue for name, queue in seen if name == "consumer.started") == queues
    assert sorted(queue for name, queue in seen if name == "consumer.stopped") == queues


async def test_two_workers_on_one_broker_have_two_names(shop: Shop) -> None:
    async with (
        shop.open(shop.app) as broker,
        Worker(shop.app, broker, grace=0, control=True),
        Worker(shop.app, broker, grace=0, control=True),
        shop.control() as control,
    ):
        await shop.clock.settle()
        assert len({each.worker for each in await control.send("ping")}) == 2


async def test_without_the_option_there_are_no_commands(shop: Shop) -> None:
    async with shop.workers(1, control=False) as (worker,), shop.control() as control:
        assert worker.control is None
        assert await control.send("ping") == []


async def test_the_option_is_a_flag(shop: Shop) -> None:
    async with shop.open(shop.app) as broker:
        with pytest.raises(ConfigurationError, match="control='yes' is not usable"):
            Worker(shop.app, broker, control="yes")  # type: ignore[typeddict-item]  # what is tested


async def test_without_routers_workers_must_be_known(shop: Shop) -> None:
    async with shop.workers(2) as workers, shop.open() as broker, Control(broker) as control:
        connection = session_of(broker).connection
        routing = {Capability.ROUTING: Support(Level.NONE)}
        connection._capabilities = replace(
            connection.capabilities, supports={**connection.capabilities.supports, **routing}
        )
        known = sorted(map(name_of, workers))
        assert [each.worker for each in await control.send("ping", known=known)] == known
        assert (await only(control.send("ping", workers=known[:1]))).ok
        with pytest.raises(UnsupportedFeature, match="cannot reach all workers at once"):
            await control.send("ping")


async def test_a_worker_that_cannot_receive_commands_says_so_and_works(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    async def execute(_: Command) -> dict[str, Any]:
        return {}

    async with shop.open() as broker:
        session = session_of(broker)

        async def refuse(*_: Any) -> None:
            raise ConfigurationError("no permission")

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(session.connection, "declare", refuse)
            server = ControlServer(session, "one", execute, lambda: None)
            server.start()
            await shop.clock.settle()
        await server.close(Grace(shop.clock, 0))
        assert "worker one receives no commands: " in caplog.text
        assert "no permission" in caplog.text


def test_an_answer_is_read_as_data() -> None:
    answer = Answer("one", {"queues": {"jobs": 1}})
    assert Answer.decode(answer.encode()) == answer
    for body in (b"[]", b"{}", json.dumps({"worker": "x", "data": []}).encode()):
        with pytest.raises(ValueError, match="not an answer"):
            Answer.decode(body)
