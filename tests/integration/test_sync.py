"""The blocking facade: how it starts, ends and is interrupted."""

from __future__ import annotations

import asyncio
import contextvars
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

import mqcore
from mqcore import (
    App,
    ConfigurationError,
    ConnectionLost,
    Context,
    Message,
    PublishFailed,
    Queue,
    QueueNotFound,
    Receipt,
    RemoteError,
    RequestTimeout,
    Router,
    Settings,
    ValidationError,
    Worker,
)
from mqcore.middleware import Middleware
from mqcore.spi import Outcome, Outgoing
from mqcore.sync import Broker, loop_thread
from mqcore.testing import memory_url
from mqcore_memory import MemoryBackend

JOBS = Queue("jobs", int)
BOUND = Queue("bound", int)
EVENTS = Router("events", int, kind="direct").bind(BOUND, "done")


@pytest.fixture
def url() -> str:
    return memory_url()


@pytest.fixture
def broker(url: str) -> Iterator[Broker]:
    with Broker.connect(url, settings=Settings()) as broker:
        yield broker


@contextmanager
def working(app: App, url: str) -> Iterator[None]:
    """Run a worker on an event loop in another thread, as a process beside this one would."""
    ready: Future[Callable[[], object]] = Future()

    async def serve() -> None:
        stop = asyncio.Event()
        async with app.connect(url, settings=Settings()) as broker, Worker(app, broker):
            loop = asyncio.get_running_loop()
            ready.set_result(lambda: loop.call_soon_threadsafe(stop.set))
            await stop.wait()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(asyncio.run, serve())
        stop = ready.result(5)
        try:
            yield
        finally:
            stop()
            done.result(5)


@contextmanager
def signalled(when: Callable[[], bool], what: Callable[[], object]) -> Iterator[None]:
    """Run `what` in a signal handler of the main thread as soon as `when` holds."""
    over = threading.Event()

    def watch() -> None:
        while not when() and not over.is_set():
            over.wait(0.001)
        if not over.is_set():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: what())
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        signal.signal(signal.SIGUSR1, before)


def test_what_is_published_is_consumed_and_settled(broker: Broker) -> None:
    receipt = broker.publish(JOBS, 7, priority=8, headers={"who": "me"})
    with broker.consume(JOBS) as deliveries:
        for delivery in deliveries:
            assert (delivery.value, delivery.id, delivery.priority) == (7, receipt.id, 8)
            assert (delivery.queue, delivery.attempt, delivery.headers) == (
                "jobs",
                1,
                {"who": "me"},
            )
            assert not delivery.finished
            delivery.ack()
            assert delivery.finished
            break
        assert deliveries.get(0.01) is None
    assert [(counts.name, counts.ready + counts.leased) for counts in broker.counts("jobs")] == [
        ("jobs", 0)
    ]


def test_many_are_published_from_a_generator_and_by_a_producer(broker: Broker) -> None:
    receipts = broker.publish_many(JOBS, (number for number in range(3)))
    producer = broker.producer(JOBS, priority=9)
    receipts += [producer.publish(3), *producer.publish_many([4, 5])]
    assert all(isinstance(receipt, Receipt) for receipt in receipts)
    assert [entry.message.body for entry in broker.peek(JOBS)] == [
        b"3",
        b"4",
        b"5",
        b"0",
        b"1",
        b"2",
    ]


def test_a_message_is_released_retried_rejected_and_redriven(broker: Broker) -> None:
    broker.publish(JOBS, 1)
    with broker.consume(JOBS) as deliveries:
        for settle, attempt in [("release", 1), ("retry", 1), ("reject", 2)]:
            delivery = deliveries.get(5)
            assert delivery is not None
            assert delivery.attempt == attempt
            getattr(delivery, settle)(**({"delay": 0.0} if settle == "retry" else {}))
    letters = broker.dead_letters(JOBS)
    (letter,) = letters.list()
    assert (letter.reason, letter.attempts, letters.get(letter.id)) == ("rejected", 2, letter)
    assert letters.redrive().moved == (letter.id,)
    assert broker.purge(JOBS) == 1
    assert letters.purge() == 0


def test_topology_is_declared_shown_and_removed(broker: Broker) -> None:
    broker.declare(EVENTS)
    assert broker.bindings("events") == [EVENTS.binding(BOUND, "done")]
    assert broker.publish(EVENTS, 1, key="done").queues == ("bound",)
    assert broker.delete(BOUND, if_empty=True) is False
    broker.unbind(*broker.bindings())
    assert broker.bindings() == []
    assert broker.delete(BOUND) is True


def test_a_request_is_answered_by_a_worker_elsewhere(broker: Broker, url: str) -> None:
    app = App("shop")

    @app.consumer(JOBS)
    async def double(number: int, ctx: Context) -> int:
        await ctx.publish(BOUND, number)
        if number < 0:
            raise mqcore.Reject("negative")
        return 2 * number

    with working(app, url):
        assert broker.request(JOBS, 21, result=int, timeout=5) == 42
        with pytest.raises(RemoteError, match="negative"):
            broker.request(JOBS, -1, timeout=5)
    assert [entry.message.body for entry in broker.peek(BOUND)] == [b"21", b"-1"]


def test_errors_are_raised_where_the_call_was_made(broker: Broker) -> None:
    with pytest.raises(QueueNotFound):
        broker.publish("nowhere", 1)
    with pytest.raises(ValidationError, match="does not match int"):
        broker.publish(JOBS, "one")  # type: ignore[arg-type]  # a wrong payload, on purpose
    with pytest.raises(RequestTimeout):
        broker.request(JOBS, 1, timeout=0.01)
    with pytest.raises(ZeroDivisionError):
        broker.publish_many(JOBS, (1 // number for number in [1, 0]))


def test_a_received_message_shows_what_the_asyncio_one_shows(broker: Broker, url: str) -> None:
    broker.publish(JOBS, 1)

    async def seen() -> set[str]:
        async with (
            mqcore.Broker.connect(url, settings=Settings()) as other,
            other.consume(JOBS) as deliveries,
        ):
            return {name for name in dir(await anext(deliveries)) if name[0] != "_"}

    expected = asyncio.run(seen())
    with broker.consume(JOBS) as deliveries:
        assert {name for name in dir(next(deliveries)) if name[0] != "_"} == expected - {
            "delivery",
            "held",
            "finish",
        }


def test_it_is_used_from_several_threads_at_once(broker: Broker) -> None:
    with ThreadPoolExecutor(8) as pool:
        receipts = list(pool.map(lambda number: broker.publish(JOBS, number), range(200)))
        assert len({receipt.id for receipt in receipts}) == 200
        with broker.consume(JOBS, prefetch=3) as deliveries:

            def take(_: int) -> int:
                delivery = next(deliveries)
                delivery.ack()
                return delivery.value

            assert sorted(pool.map(take, range(200))) == list(range(200))


def test_the_callers_context_reaches_the_middleware(url: str) -> None:
    who = contextvars.ContextVar("who", default="nobody")

    class Stamp(Middleware):
        def outgoing(self, message: Message) -> Message:
            seen.append(who.get())
            return message

    seen: list[str] = []
    with Broker.connect(url, settings=Settings(), middleware=[Stamp()]) as broker:
        who.set("me")
        broker.publish(JOBS, 1)
    assert seen == ["me"]


def test_an_interrupted_call_is_cancelled_and_takes_no_message(broker: Broker) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    deliveries = broker.consume(JOBS)
    with (
        signalled(lambda: broker.health().consuming == {"jobs": True}, interrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        deliveries.get()
    broker.publish(JOBS, 1)
    delivery = deliveries.get(5)
    assert delivery is not None
    delivery.ack()


def test_a_signal_handler_may_close_the_broker_while_a_loop_waits(broker: Broker) -> None:
    with signalled(lambda: broker.health().consuming == {"jobs": True}, broker.close):
        assert list(broker.consume(JOBS)) == []
    assert broker.health().consuming == {}


async def test_where_an_event_loop_runs_it_is_refused() -> None:
    broker = Broker.connect(memory_url(), settings=Settings())
    for call in (broker.open, broker.close, lambda: broker.publish(JOBS, 1)):
        with pytest.raises(ConfigurationError, match=r"use mqcore\.Broker here"):
            call()
    await asyncio.to_thread(broker.open)
    await asyncio.to_thread(broker.close)


def test_a_middleware_that_calls_back_is_told_so_and_blocks_nothing(url: str) -> None:
    class Echo(Middleware):
        def outgoing(self, message: Message) -> Message:
            broker.publish(JOBS, 2)
            return message

    with Broker.connect(url, settings=Settings(), middleware=[Echo()]) as broker:
        with pytest.raises(ConfigurationError, match="event loop is running"):
            broker.publish(JOBS, 1)
        assert broker.capabilities.backend == "memory"


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "mqcore-sync"]


def test_close_ends_the_thread_whenever_it_comes(url: str) -> None:
    never_opened = Broker.connect(url, settings=Settings())
    never_opened.close()
    never_opened.close()
    with pytest.raises(ConnectionLost):
        never_opened.open()
    with Broker.connect(url, settings=Settings()) as broker:
        broker.publish(JOBS, 1)
        assert threads() == ["mqcore-sync"]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: broker.close(), range(8)))
        assert threads() == []


def test_what_a_consumer_holds_is_released_at_close(url: str) -> None:
    with Broker.connect(url, settings=Settings()) as broker:
        broker.publish(JOBS, 1)
        assert broker.consume(JOBS).get(5) is not None
    with Broker.connect(url, settings=Settings()) as broker:
        (entry,) = broker.peek(JOBS)
        assert (entry.message.attempt, entry.state) == (1, "ready")


def test_calls_of_other_threads_end_when_the_broker_closes(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_thread, "_LAST_CALLS", 0.01)
    with Broker.connect(url, settings=Settings()) as broker, ThreadPoolExecutor(2) as pool:
        waiting = pool.submit(list, broker.consume(JOBS))
        asking = pool.submit(broker.request, BOUND, 1, timeout=60)
        while broker.health().consuming.get("jobs") is not True or not broker.health().counts.get(
            "message.published"
        ):
            threading.Event().wait(0.001)
        broker.close()
        assert waiting.result(5) == []
        with pytest.raises((ConnectionLost, RequestTimeout)):
            asking.result(5)


def test_a_publish_under_way_at_close_still_tells_its_ending(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, go = threading.Event(), threading.Event()
    publish = MemoryBackend.publish

    async def slow(
        self: MemoryBackend, batch: Sequence[Outgoing], *, timeout: float
    ) -> Sequence[Outcome]:
        began.set()
        await asyncio.to_thread(go.wait, 5)
        return await publish(self, batch, timeout=timeout)

    monkeypatch.setattr(MemoryBackend, "publish", slow)
    with Broker.connect(url, settings=Settings()) as broker, ThreadPoolExecutor(2) as pool:
        publishing = pool.submit(broker.publish, JOBS, 1)
        assert began.wait(5)
        closing = pool.submit(broker.close)
        go.set()
        assert publishing.result(5).queues == ("jobs",)
        closing.result(5)


def test_a_signal_handler_may_close_the_broker_inside_any_call(broker: Broker) -> None:
    with (
        broker._loop._lock
    ):  # as if the signal had come while a call of this thread was being handed over
        broker.close()
    assert threads() == []


def settled_id(text: str) -> str:
    return re.sub(r"[0-9a-f]{32}", "ID", text)


AFTER_CLOSE: dict[str, Callable[[Any, Any, Any], Any]] = {
    "open": lambda broker, *_: broker.open(),
    "close": lambda broker, *_: broker.close(),
    "publish": lambda broker, *_: broker.publish(JOBS, 1),
    "publish to a new queue": lambda broker, *_: broker.publish(Queue("new", int), 1),
    "publish by name": lambda broker, *_: broker.publish("jobs", 1),
    "publish to a router": lambda broker, *_: broker.publish(EVENTS, 1, key="done"),
    "publish_many": lambda broker, *_: broker.publish_many(JOBS, [1, 2]),
    "producer": lambda broker, *_: broker.producer(JOBS).publish(1),
    "request": lambda broker, *_: broker.request(JOBS, 1, timeout=0.01),
    "consume": lambda broker, *_: broker.consume(JOBS).get(),
    "get": lambda _, deliveries, *__: deliveries.get(),
    "consumer.close": lambda _, deliveries, *__: deliveries.close(),
    "ack": lambda *all_of_them: all_of_them[2].ack(),
    "declare": lambda broker, *_: broker.declare(Queue("new")),
    "unbind": lambda broker, *_: broker.unbind(EVENTS.binding(BOUND, "done")),
    "bindings": lambda broker, *_: broker.bindings(),
    "delete": lambda broker, *_: broker.delete(JOBS),
    "purge": lambda broker, *_: broker.purge(JOBS),
    "peek": lambda broker, *_: broker.peek(JOBS),
    "counts": lambda broker, *_: broker.counts(),
    "dead_letters.list": lambda broker, *_: broker.dead_letters(JOBS).list(),
    "dead_letters.get": lambda broker, *_: broker.dead_letters(JOBS).get("id"),
    "dead_letters.redrive": lambda broker, *_: broker.dead_letters(JOBS).redrive(),
    "dead_letters.purge": lambda broker, *_: broker.dead_letters(JOBS).purge(),
}


@pytest.mark.parametrize("name", AFTER_CLOSE)
def test_after_close_every_call_ends_as_the_asyncio_one_does(name: str) -> None:
    call = AFTER_CLOSE[name]

    async def asynchronous() -> Any:
        async with mqcore.Broker.connect(memory_url("x"), settings=Settings()) as broker:
            await broker.publish(JOBS, 1)
            await broker.declare(EVENTS)
            deliveries = broker.consume(JOBS)
            delivery = await deliveries.get(5)
        return await call(broker, deliveries, delivery)

    def blocking() -> Any:
        with Broker.connect(memory_url("x"), settings=Settings()) as broker:
            broker.publish(JOBS, 1)
            broker.declare(EVENTS)
            deliveries = broker.consume(JOBS)
            delivery = deliveries.get(5)
        return call(broker, deliveries, delivery)

    def ending(of: Callable[[], Any]) -> str:
        try:
            return settled_id(f"returns {of()!r}")
        except mqcore.MqcoreError as error:
            return settled_id(f"raises {error!r}")

    assert ending(blocking) == ending(lambda: asyncio.run(asynchronous()))


def test_a_broker_that_is_dropped_unclosed_warns_and_ends(url: str) -> None:
    broker = Broker.connect(url, settings=Settings())
    broker.open()
    broker.publish(JOBS, 1)
    producer, deliveries = broker.producer(JOBS), broker.consume(JOBS)
    del broker
    producer.publish(2)  # whoever still can call keeps it going
    assert deliveries.get(5) is not None
    (thread,) = (thread for thread in threading.enumerate() if thread.name == "mqcore-sync")
    del producer
    with pytest.warns(ResourceWarning, match="never closed"):
        del deliveries
    thread.join(5)
    assert not thread.is_alive()
    with Broker.connect(url, settings=Settings()) as another:
        assert [entry.state for entry in another.peek(JOBS)] == ["ready", "ready"]


OPENED = """
    import atexit, os, signal, sys, threading
    from mqcore import ConnectionLost, Queue
    from mqcore.sync import Broker
    jobs = Queue("jobs", int)
    broker = Broker.connect("memory://")
    broker.open()
    broker.publish(jobs, 1)
"""
ENDINGS = {
    "forgotten": "",
    "with a message in hand": "delivery = broker.consume(jobs).get()",
    "while a thread waits": """
        deliveries = broker.consume(jobs)
        deliveries.get()
        threading.Thread(target=deliveries.get, daemon=True).start()
        """,
    "in the middle of a with": """
        def held():
            with broker.consume(jobs) as deliveries:
                yield from deliveries
        generator = held()
        next(generator)
        """,
    "by sys.exit": "sys.exit(0)",
    "closed by atexit": "atexit.register(broker.close)",
    "closed by a finalizer": """
        class Last:
            def __del__(self, broker=broker):
                broker.close()
                try:
                    broker.publish(jobs, 1)
                except ConnectionLost:
                    os.write(1, b"lost")
        last = Last()
        sys.modules["keeps it until the very end"] = last
        """,
    "in a forked child": """
        child = os.fork()
        if not child:
            try:
                broker.publish(jobs, 1)
            except ConnectionLost as error:
                assert "fork" in str(error)
                broker.close()
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        broker.publish(jobs, 2)
        """,
    "by SIGTERM to a closing handler": """
        signal.signal(signal.SIGTERM, lambda *_: broker.close())
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        for delivery in broker.consume(jobs):
            pass
        """,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_program_ends_whatever_became_of_its_broker(ending: str) -> None:
    program = textwrap.dedent(OPENED) + textwrap.dedent(ENDINGS[ending])
    environment = {**os.environ, "PYTHONWARNINGS": "default"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
        env=environment,
    )
    assert (done.returncode, done.stderr, done.stdout) == (
        0,
        "",
        "lost" * (ending == "closed by a finalizer"),
    )


def test_a_closed_broker_refuses_as_a_failed_publish(url: str) -> None:
    with Broker.connect(url, settings=Settings()) as broker:
        broker.declare(JOBS)
    with pytest.raises(PublishFailed, match="closed"):
        broker.publish(JOBS, 1)
