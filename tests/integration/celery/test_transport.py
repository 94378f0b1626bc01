"""mqcore's transport for Celery, as kombu uses it: connections, channels and messages."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import kombu
import pytest
from kombu.asynchronous.hub import Hub
from kombu.exceptions import ChannelError, OperationalError

import mqcore_celery
from mqcore import (
    Broker,
    ConfigurationError,
    ConnectionLost,
    Consumer,
    MqcoreError,
    PublishUnknown,
    Queue,
)
from mqcore.sync import Broker as SyncBroker
from mqcore.testing import memory_url
from mqcore_celery import channel, shared, transport
from mqcore_memory.backend import MemorySubscription

WAIT = 30.0
"""Seconds for what comes by itself, on a busy machine."""


@pytest.fixture
def url() -> str:
    return memory_url()


@pytest.fixture
def connection(url: str) -> Iterator[Any]:
    with kombu.Connection(f"mqcore+{url}") as connection:
        yield connection


class Received:
    """A consumer's messages."""

    def __init__(self, connection: Any, *queues: Any, **options: Any) -> None:
        self.messages: list[Any] = []
        self.channel = connection.channel()
        self.consumer = kombu.Consumer(
            self.channel,
            list(queues),
            on_message=self.messages.append,
            **options,
        )
        self.connection = connection
        self.consumer.consume()

    def until(self, count: int) -> list[Any]:
        while len(self.messages) < count:
            self.connection.drain_events(timeout=WAIT)
        return self.messages

    def nothing_more(self) -> bool:
        try:
            self.connection.drain_events(timeout=0.05)
        except TimeoutError:
            return True
        return False

    def settle_handed_over(self) -> None:
        """Return when what was handed to the loop is settled."""
        settle_handed_over(self.connection)


def put(connection: Any, queue: Any, *bodies: Any, **options: Any) -> None:
    producer = kombu.Producer(connection)
    for body in bodies:
        producer.publish(
            body, exchange=queue.exchange, routing_key=queue.name, declare=[queue], **options
        )


def counts(connection: Any, queue: str) -> Any:
    broker = connection.default_channel._shared
    return broker.run(broker.broker.counts(queue))[0]


def settle_handed_over(connection: Any) -> None:
    """Return when what was handed to the loop is settled."""
    broker = connection.default_channel._shared
    broker.run(broker.finished())


def ends(call: Callable[[], object]) -> bool:
    """Call in a thread; return whether the call has ended."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(WAIT)
    return not thread.is_alive()


jobs = kombu.Queue("jobs", routing_key="jobs")


# Delivery


def test_a_message_as_kombu_gives_it(connection: Any) -> None:
    put(connection, jobs, {"a": 1}, headers={"task": "add"}, correlation_id="c", mine=object())
    (message,) = Received(connection, jobs).until(1)
    assert message.payload == {"a": 1}
    assert (message.content_type, message.content_encoding) == ("application/json", "utf-8")
    assert message.headers == {"task": "add"}
    assert message.properties == {"correlation_id": "c", "delivery_mode": 2, "priority": 0}
    info = message.delivery_info
    assert (info["exchange"], info["routing_key"], info["redelivered"]) == ("", "jobs", False)


def test_all_that_is_there_comes_in_one_call_the_most_urgent_first(connection: Any) -> None:
    for body, priority in ((1, 3), (2, 6), (3, 3)):
        put(connection, jobs, body, priority=priority)
    received = Received(connection, jobs)
    received.until(1)
    assert [message.payload for message in received.messages] == [2, 1, 3]


def test_priorities_in_the_direction_of_redis(url: str) -> None:
    options = {"priority_order": "lower_first"}
    with kombu.Connection(f"mqcore+{url}", transport_options=options) as connection:
        put(connection, jobs, "late", priority=9)
        put(connection, jobs, "urgent", priority=0)
        messages = Received(connection, jobs).until(2)
        assert [message.payload for message in messages] == ["urgent", "late"]
        assert [message.properties["priority"] for message in messages] == [0, 9]


def test_the_prefetch_is_of_the_channel_and_follows_what_celery_asks_for(connection: Any) -> None:
    other = kombu.Queue("other", routing_key="other")
    put(connection, jobs, *range(6))
    put(connection, other, *range(6))
    received = Received(connection, jobs, other, prefetch_count=4)
    held = list(received.until(4))
    assert received.nothing_more()
    assert len(received.messages) == 4

    received.consumer.qos(prefetch_count=7)  # as for three ETA tasks
    received.until(7)
    assert received.nothing_more()
    assert len(received.messages) == 7

    received.consumer.qos(prefetch_count=4)
    for message in held:
        message.ack()
    received.until(8)
    assert received.nothing_more()
    assert len(received.messages) == 8


def test_a_prefetch_of_zero_is_no_limit(connection: Any) -> None:
    put(connection, jobs, *range(50))
    assert len(Received(connection, jobs, prefetch_count=0).until(50)) == 50


def test_messages_without_acknowledgement_do_not_count(connection: Any) -> None:
    put(connection, jobs, *range(5))
    received = Received(connection, jobs, prefetch_count=1, no_ack=True)
    received.until(5)
    received.settle_handed_over()
    assert counts(connection, "jobs").total == 0


# Settling


def test_an_acknowledgement_from_another_thread_is_not_awaited(connection: Any) -> None:
    put(connection, jobs, 1, 2)
    received = Received(connection, jobs, prefetch_count=1)
    for number in (1, 2):
        message = received.until(number)[-1]
        thread = threading.Thread(target=message.ack)
        thread.start()
        thread.join(WAIT)
    received.settle_handed_over()
    assert counts(connection, "jobs").total == 0


def test_several_at_once(connection: Any) -> None:
    put(connection, jobs, 1, 2, 3)
    received = Received(connection, jobs)
    received.until(3)[1].ack(multiple=True)
    received.settle_handed_over()
    assert counts(connection, "jobs").leased == 1


def test_a_requeued_message_says_so_and_ends_in_the_dead_letters(url: str) -> None:
    with kombu.Connection(f"mqcore+{url}", transport_options={"max_requeues": 3}) as connection:
        put(connection, jobs, "x")
        received = Received(connection, jobs)
        for number in (1, 2, 3):
            message = received.until(number)[-1]
            assert message.delivery_info["redelivered"] == (number > 1)
            message.requeue()
        received.settle_handed_over()
        assert received.nothing_more()
        (letter,) = dead(connection, "jobs")
        assert (letter.reason, letter.attempts) == ("retries_exhausted", 3)


def test_a_rejected_message_is_a_dead_letter(connection: Any) -> None:
    put(connection, jobs, "x")
    received = Received(connection, jobs)
    received.until(1)[0].reject()
    received.settle_handed_over()
    assert [letter.reason for letter in dead(connection, "jobs")] == ["rejected"]


def dead(connection: Any, queue: str) -> Any:
    broker = connection.default_channel._shared
    return broker.run(broker.broker.dead_letters(queue).list())


def test_a_closed_channel_gives_back_what_it_holds(connection: Any) -> None:
    put(connection, jobs, 1, 2, 3)
    received = Received(connection, jobs, prefetch_count=2)
    received.until(2)
    received.channel.close()
    received.channel.close()
    assert counts(connection, "jobs").ready == 3
    again = Received(connection, jobs).until(3)
    assert {message.delivery_info["redelivered"] for message in again} == {True, False}


def test_a_cancelled_consumer_gives_back_what_was_not_delivered_and_acknowledges_the_rest(
    connection: Any,
) -> None:
    put(connection, jobs, 1, 2, 3)
    received = Received(connection, jobs, prefetch_count=1)
    (message,) = received.until(1)
    received.consumer.cancel()
    received.settle_handed_over()
    assert (counts(connection, "jobs").ready, counts(connection, "jobs").leased) == (2, 1)
    message.ack()
    received.settle_handed_over()
    assert counts(connection, "jobs").total == 2


def test_recover_gives_back_everything(connection: Any) -> None:
    put(connection, jobs, 1, 2)
    received = Received(connection, jobs)
    received.until(2)
    received.consumer.recover(requeue=True)
    assert {each.payload for each in received.until(4)[2:]} == {1, 2}


def test_a_message_of_another_publisher_is_a_dead_letter_and_nothing_stops(
    connection: Any, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    put(connection, jobs, "ours")
    with SyncBroker.connect(url) as plain:
        plain.publish(Queue("jobs"), b"[[], {}, {}]")
    received = Received(connection, jobs)
    assert [each.payload for each in received.until(1)] == ["ours"]
    assert received.nothing_more()
    received.settle_handed_over()
    assert [letter.reason for letter in dead(connection, "jobs")] == ["rejected"]
    assert "was not published by mqcore's transport" in caplog.text


# Getting one


def test_get_finds_what_was_just_put_and_what_was_just_requeued(connection: Any) -> None:
    with connection.SimpleQueue("simple") as queue:
        for body in ("a", "b"):
            queue.put(body)
        message = queue.get_nowait()
        assert message.payload == "a"
        message.requeue()
        assert queue.get_nowait().payload == "b"
        assert queue.get_nowait().payload == "a"
        with pytest.raises(queue.Empty):
            queue.get_nowait()


@pytest.mark.parametrize("step", ["get", "stop"])
def test_a_get_that_is_interrupted_gives_back_what_came_for_it(
    connection: Any, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    async def interrupted(self: Consumer[bytes], **_: Any) -> Any:
        await self.__aenter__()
        raise asyncio.CancelledError  # as Ctrl-C does

    put(connection, jobs, "x")
    monkeypatch.setattr(shared, "_PATIENCE", WAIT)
    with monkeypatch.context() as patch:
        patch.setattr(Consumer, step, interrupted)
        with pytest.raises(ConnectionLost):
            jobs(connection.default_channel).get()

    settle_handed_over(connection)
    message = jobs(connection.default_channel).get()
    assert message is not None
    assert message.payload == "x"


def test_a_message_of_get_holds_up_no_other_channel_that_closes(
    connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared, "_PATIENCE", WAIT)
    put(connection, jobs, "x")
    message = jobs(connection.channel()).get()
    try:
        assert ends(connection.channel().close)
    finally:
        message.ack()
    settle_handed_over(connection)
    assert counts(connection, "jobs").total == 0


# Exchanges


def test_all_messages_to_an_exchange_are_published_to_one_router(
    connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish, routers = Broker.publish, []

    async def noted(self: Broker, to: Any, payload: Any, **options: Any) -> Any:
        routers.append(to)
        return await publish(self, to, payload, **options)

    monkeypatch.setattr(Broker, "publish", noted)
    logs = kombu.Queue("logs", kombu.Exchange("logs", type="topic"), routing_key="#")
    put(connection, logs, "a", "b")
    received = Received(connection, logs)  # it declares exchange and queue once more
    put(connection, logs, "c")
    assert [message.payload for message in received.until(3)] == ["a", "b", "c"]
    assert routers == [routers[0]] * 3
    assert routers[0].bindings == []


def test_a_message_for_nobody_disappears_and_is_not_logged(
    connection: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    events = kombu.Exchange("celeryev", type="topic")
    producer = kombu.Producer(connection, exchange=events)
    producer.publish({"type": "task-sent"}, routing_key="task.sent")
    assert not [line for line in caplog.messages if "celeryev" in line]
    with pytest.raises(OperationalError, match="no binding of router 'celeryev' takes key"):
        producer.publish({"type": "task-sent"}, routing_key="task.sent", mandatory=True)


def test_a_task_for_a_queue_that_does_not_exist_is_an_error_and_a_late_reply_is_not(
    connection: Any,
) -> None:
    producer = kombu.Producer(connection)
    with pytest.raises(OperationalError, match="nowhere"):
        producer.publish({}, routing_key="nowhere", headers={"task": "add"})
    producer.publish({}, routing_key="nowhere", correlation_id="its caller has gone")


def test_a_publisher_that_has_declared_nothing_uses_the_bindings_of_the_broker(url: str) -> None:
    with (
        kombu.Connection(f"mqcore+{url}") as consumes,
        kombu.Connection(f"mqcore+{url}", transport_options={"max_requeues": 19}) as publishes,
    ):
        exchange = kombu.Exchange("logs", type="topic")
        received = Received(consumes, kombu.Queue("all", exchange, routing_key="#"))
        publishes.default_channel.basic_publish(
            publishes.default_channel.prepare_message("x"), "logs", "a.b"
        )
        assert received.until(1)[0].body == b"x"
        assert publishes.default_channel.get_bindings() == [
            {"source": "logs", "destination": "all", "routing_key": "#"}
        ]


def test_bindings_can_be_removed(connection: Any) -> None:
    exchange = kombu.Exchange("logs", type="direct")
    queue = kombu.Queue("all", exchange, routing_key="a")
    bound = queue(connection.default_channel)
    bound.declare()
    bound.unbind_from(exchange, routing_key="a")
    assert connection.default_channel.get_bindings() == []
    bound.bind_to(exchange, routing_key="a")
    exchange(connection.default_channel).delete()
    assert connection.default_channel.get_bindings() == []


def test_headers_exchange(connection: Any) -> None:
    exchange = kombu.Exchange("by-header", type="headers")
    queue = kombu.Queue("red", exchange, binding_arguments={"x-match": "all", "color": "red"})
    received = Received(connection, queue)
    producer = kombu.Producer(connection, exchange=exchange)
    for color in ("blue", "red"):
        producer.publish(color, headers={"color": color})
    assert [each.payload for each in received.until(1)] == ["red"]
    assert received.nothing_more()


def test_an_unknown_type_of_exchange(connection: Any) -> None:
    with pytest.raises(ConfigurationError, match="the type 'x-random' is unknown to mqcore"):
        kombu.Exchange("e", type="x-random")(connection.default_channel).declare()


# Queues


def test_what_a_queue_holds_is_known_when_it_is_asked_for(connection: Any) -> None:
    with pytest.raises(ChannelError, match="NOT_FOUND - no queue 'jobs'"):
        jobs(connection.default_channel).queue_declare(passive=True)
    put(connection, jobs, 1, 2)
    declared = jobs(connection.default_channel).queue_declare(passive=True)
    assert (declared.queue, declared.message_count, declared.consumer_count) == ("jobs", 2, 0)
    assert jobs(connection.default_channel).purge() == 2
    jobs(connection.default_channel).delete()
    jobs(connection.default_channel).delete()


def test_a_queue_that_exists_with_other_arguments_is_refused(url: str) -> None:
    with SyncBroker.connect(url) as plain:
        plain.declare(Queue("jobs", ttl=5))
    with (
        kombu.Connection(f"mqcore+{url}") as connection,
        pytest.raises(connection.channel_errors, match="'jobs' exists with"),
    ):
        jobs(connection.default_channel).declare()


def test_names_that_mqcore_does_not_allow(connection: Any) -> None:
    for name in ("other@q", "задачи", "amq.direct", "x.dlq"):
        queue = kombu.Queue(name, kombu.Exchange(name, type="fanout"))
        received = Received(connection, queue)
        kombu.Producer(connection, exchange=queue.exchange).publish(name)
        assert received.until(1)[0].payload == name
        received.channel.close()


# Expiry and ETA


def test_an_expired_task_reaches_its_worker_and_another_message_does_not(connection: Any) -> None:
    expires = {"task": "add", "expires": "2000-01-01T00:00:00"}
    put(connection, jobs, "plain", expiration=0.001)
    put(connection, jobs, "task", expiration=0.001, headers=expires)
    received = Received(connection, jobs)
    assert [each.payload for each in received.until(1)] == ["task"]
    assert received.nothing_more()


def test_an_eta_task_waits_in_the_broker_by_option(url: str) -> None:
    for eta, delayed in (("broker", 1), ("worker", 0)):
        with kombu.Connection(
            f"mqcore+{url}-{eta}", transport_options={"eta": eta, "queue_prefix": eta}
        ) as connection:
            eta_of = (datetime.now(UTC) + timedelta(days=2)).isoformat()
            put(connection, jobs, "x", headers={"task": "add", "eta": eta_of})
            name = f"{eta}jobs"
            assert counts(connection, name).delayed == delayed


# Connections


def test_all_connections_of_a_process_share_one_broker(url: str) -> None:
    first, second = (kombu.Connection(f"mqcore+{url}") for _ in range(2))
    with first, second:
        assert first.default_channel._shared is second.default_channel._shared
        own = kombu.Connection(f"mqcore+{url}", transport_options={"lease": 7})
        assert own.default_channel._shared is not first.default_channel._shared
        own.release()
        broker = first.default_channel._shared
    assert broker.users == 0
    assert not shared._brokers
    with pytest.raises(ConnectionLost):
        broker.post(print)


def test_a_broker_that_does_not_answer_holds_up_no_other_one(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_broker, begun, answered = Broker.open, threading.Event(), threading.Event()
    silent, other = (kombu.Connection(f"mqcore+{each}") for each in (f"{url}-silent", url))

    async def held_up(self: Broker) -> None:
        if not begun.is_set():
            begun.set()
            await asyncio.to_thread(answered.wait, 3 * WAIT)
        await open_broker(self)

    monkeypatch.setattr(Broker, "open", held_up)
    connecting = threading.Thread(target=silent.connect)
    connecting.start()
    try:
        assert begun.wait(WAIT)
        assert ends(other.connect)
        assert ends(other.release)
    finally:
        answered.set()
        connecting.join(WAIT)
        silent.release()


def test_threads_that_connect_at_once_share_one_broker(url: str) -> None:
    connections = [kombu.Connection(f"mqcore+{url}") for _ in range(8)]
    threads = [threading.Thread(target=each.connect) for each in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)

    (broker,) = {each.default_channel._shared for each in connections}
    assert broker.users == len(connections)
    for each in connections:
        each.release()
    assert broker.users == 0


def test_a_close_waits_a_limited_time_for_a_broker_that_is_away(
    connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settle, is_back = MemorySubscription.settle, asyncio.Event()

    async def unanswered(self: MemorySubscription, *args: Any, **options: Any) -> Any:
        await is_back.wait()
        return await settle(self, *args, **options)

    monkeypatch.setattr(MemorySubscription, "settle", unanswered)
    monkeypatch.setattr(channel, "_LAST_ANSWERS", 0.01)
    put(connection, jobs, "x")
    received = Received(connection, jobs)
    received.until(1)[0].ack()
    try:
        assert ends(received.channel.close)
    finally:
        connection.default_channel._shared.post(is_back.set)
    received.settle_handed_over()
    assert counts(connection, "jobs").total == 0


def test_a_connection_can_be_closed_and_connected_again(connection: Any) -> None:
    for _ in range(3):
        put(connection, jobs, "x")
        connection.close()
        assert not connection.connected
    assert counts(connection, "jobs").ready == 3


def test_no_secret_is_shown(url: str) -> None:
    name = url.removeprefix("memory://")
    connection = kombu.Connection(f"mqcore+redis://me:s%40cret@{name}:7/0")
    assert connection.as_uri() == f"mqcore+redis://me:**@{name}:7/0"
    assert connection.as_uri(include_password=True) == f"mqcore+redis://me:s%40cret@{name}:7/0"
    info = dict(connection.info())
    assert info.pop("password") == "s@cret"
    assert "cret" not in repr(info)
    clone = connection.clone()
    assert clone.as_uri(include_password=True) == connection.as_uri(include_password=True)
    with pytest.raises(MqcoreError) as caught:
        connection.connect()
    assert "cret" not in str(caught.value)


def test_a_failover_takes_the_next_url(url: str, tmp_path: Path) -> None:
    with kombu.Connection(
        f"mqcore+sqlite:///{tmp_path}/missing/x.db;mqcore+{url}",
    ) as connection:
        with pytest.raises(ConfigurationError, match="does not exist; create it first"):
            connection.connect()
        connection.switch(f"mqcore+{url}")
        put(connection, jobs, "x")
        assert counts(connection, "jobs").ready == 1
        assert connection.transport_cls == "mqcore+memory"


@pytest.mark.parametrize(
    ("url", "options", "text"),
    [
        ("mqcore://localhost", {}, r"Write mqcore\+redis://"),
        ("mqcore+nothing://localhost", {}, "nothing"),
        ("mqcore+memory://x", {"visibility": 5}, "'visibility' is unknown to mqcore"),
        ("mqcore+memory://x?colour=red", {}, "colour"),
    ],
)
def test_what_is_refused_when_it_connects(url: str, options: dict[str, Any], text: str) -> None:
    connection = kombu.Connection(url, transport_options=options)
    with pytest.raises(ConfigurationError, match=text):
        connection.connect()
    assert "mqcore" in connection.as_uri()


@pytest.mark.parametrize("environment", ["gevent", "eventlet"])
def test_green_threads_are_refused(
    url: str, environment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "detect_environment", lambda: environment)
    with pytest.raises(ConfigurationError, match=f"does not work under {environment}.*prefork"):
        kombu.Connection(f"mqcore+{url}").connect()


def test_the_class_can_be_named_in_place_of_a_scheme(url: str) -> None:
    with kombu.Connection(url, transport="mqcore_celery:Transport") as connection:
        put(connection, jobs, "x")
        assert isinstance(connection.transport, mqcore_celery.Transport)
        assert isinstance(connection.default_channel, mqcore_celery.Channel)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        mqcore_celery.Nothing  # noqa: B018 - the access is what is tested


def test_a_message_that_is_too_large_names_both_figures(url: str) -> None:
    with (
        kombu.Connection(f"mqcore+{url}") as connection,
        pytest.raises(OperationalError, match="1,048,576"),
    ):
        put(connection, jobs, "x" * 2**21)
    with kombu.Connection(f"mqcore+{url}", transport_options={"max_payload": 2**22}) as connection:
        put(connection, jobs, "x" * 2**21)


def test_a_publish_without_an_answer_is_repeated_with_the_same_id(
    connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs(connection.default_channel).declare()
    publish, ids = Broker.publish, []

    async def unanswered(self: Broker, to: Any, payload: Any, **options: Any) -> Any:
        receipt = await publish(self, to, payload, **options)
        ids.append(options["id"])
        if len(ids) == 1:
            raise PublishUnknown("no answer", id=options["id"])
        return receipt

    monkeypatch.setattr(Broker, "publish", unanswered)
    put(connection, jobs, "x", retry=True, retry_policy={"interval_start": 0})
    assert (len(ids), len(set(ids))) == (2, 1)
    assert counts(connection, "jobs").ready == 1


def test_a_lost_connection_that_was_the_lease_is_raised_once_for_each_connection(
    connection: Any,
) -> None:
    received = Received(connection, jobs)
    inbox = connection.transport.inbox
    inbox.fail(ConnectionLost("gone"))
    assert not connection.connected
    with pytest.raises(ConnectionLost, match="gone"):
        received.connection.transport.drain_events(connection.transport, timeout=WAIT)
    assert isinstance(ConnectionLost("x"), connection.connection_errors)
    connection.collect()
    assert connection.connect()
    put(connection, jobs, "x")


def test_a_connection_that_was_lost_connects_again_where_it_is_used(connection: Any) -> None:
    put(connection, jobs, "x")
    connection.transport.inbox.fail(ConnectionLost("gone"))
    assert not connection.connected
    put(connection, jobs, "y")
    connection.ensure_connection(max_retries=1)
    assert connection.connected
    assert counts(connection, "jobs").ready == 2


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_connections_leave_no_descriptor_behind(url: str) -> None:
    def descriptors() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not used

    def use() -> None:
        with kombu.Connection(f"mqcore+{url}") as connection:
            put(connection, jobs, "x")
        kombu.Connection(f"mqcore+{url}").as_uri()  # makes a transport, and never connects

    use()
    before = descriptors()
    for _ in range(10):
        use()
    assert descriptors() <= before + 2  # other tests of this process may open some


# Celery's event loop


def test_the_event_loop_is_woken_by_what_comes_in_and_survives_a_reset(connection: Any) -> None:
    hub = Hub()
    received = Received(connection, jobs)
    try:
        for number in (1, 2, 3):
            connection.register_with_event_loop(hub)
            connection.register_with_event_loop(hub)
            put(connection, jobs, number)
            while len(received.messages) < number:
                hub.run_once()
            hub.reset()
    finally:
        hub.close()


def test_an_acknowledgement_while_a_message_is_held_back_wakes_the_event_loop(
    connection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pool's thread acknowledges while nothing is in the inbox, so it gives no signal."""
    other = kombu.Queue("other", routing_key="other")
    put(connection, jobs, 1)
    put(connection, other, 2)
    received = Received(connection, jobs, other, prefetch_count=1)
    can_take = mqcore_celery.Channel.can_take

    def acknowledged_meanwhile(self: Any, arrival: Any) -> bool:
        is_allowed = can_take(self, arrival)
        if not is_allowed:
            assert ends(received.messages[0].ack)
        return is_allowed

    monkeypatch.setattr(mqcore_celery.Channel, "can_take", acknowledged_meanwhile)
    while len(received.messages) < 2:
        assert connection.transport.inbox.signal.wait(WAIT)
        connection.transport.on_readable(connection.transport, None)


def test_the_readable_descriptor_ends_with_its_connection(url: str) -> None:
    hub, connection = Hub(), kombu.Connection(f"mqcore+{url}")
    try:
        connection.connect()
        connection.register_with_event_loop(hub)
        assert hub.readers
        connection.close()
        assert not hub.readers
    finally:
        hub.close()


# Forks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_child_begins_with_connections_of_its_own(tmp_path: Path) -> None:
    url = f"mqcore+sqlite:///{tmp_path}/queues.db"
    with kombu.Connection(url) as connection:
        put(connection, jobs, "parent")
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            try:
                assert not connection.connected
                connection.collect()
                put(connection, jobs, "child")
                connection.release()
                os.write(write, b"ok")
            finally:
                os._exit(0)
        os.close(write)
        said = os.read(read, 10)  # empty when the child has ended without a word
        os.waitpid(child, 0)
        assert said == b"ok"
        put(connection, jobs, "parent again")
        assert counts(connection, "jobs").ready == 3
