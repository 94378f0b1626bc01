"""Traps of queues in PostgreSQL: what others have run into (locks, notifications, order, forks)."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from support.at_once import connect_at_once
from support.postgresql import plugins
from support.waiting import eventually

from mqcore import App, Broker, Queue, Settings, Worker
from mqcore.contract.brokers import Server
from mqcore.errors import PublishFailed, PublishUnknown
from mqcore.messages.message import new_id
from mqcore.spi import DONE, STORED, Ack, QueueSpec

from .conftest import out

psycopg = pytest.importorskip("psycopg", reason="pip install 'mqcore[sql]'")

Open = Callable[..., Any]
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def schema(admin: Any) -> Iterator[str]:
    """The name of a schema that does not exist yet."""
    name = f"s{new_id()[:8]}"
    yield name
    admin.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE")


def test_of_eight_processes_that_connect_at_once_one_makes_schema_and_tables(
    server: Server, admin: Any, schema: str
) -> None:
    assert connect_at_once(f"{server.url}?schema_name={schema}", 8) == []
    ((number,),) = admin.execute(f"SELECT count(*) FROM {schema}.mq_messages").fetchall()
    assert number == 8


async def test_no_transaction_is_open_while_a_handler_runs(
    opened: Open, admin: Any, prefix: str
) -> None:
    """A lock that lasts as long as the handler keeps dead rows, and slows the claims of all."""
    backend = await opened()
    await backend.declare([QueueSpec(name="jobs")])
    await backend.publish([out()], timeout=5)
    consumer = await backend.subscribe("jobs", prefetch=1, lease=30)
    assert len(await consumer.receive(1, 5)) == 1
    pid = await backend.run(lambda driver: driver._db._opened.info.backend_pid)
    statement = "SELECT state, backend_xid, backend_xmin FROM pg_stat_activity WHERE pid = %s"
    assert admin.execute(statement, [pid]).fetchall() == [("idle", None, None)]


async def test_what_is_stored_without_a_notification_is_found(
    opened: Open, admin: Any, prefix: str
) -> None:
    backend = await opened()
    await backend.declare([QueueSpec(name="jobs")])
    await backend.publish([out("first")], timeout=5)
    consumer = await backend.subscribe("jobs", prefetch=2, lease=30)
    assert len(await consumer.receive(2, 5)) == 1
    waiting = asyncio.create_task(consumer.receive(1, 30))
    copied = "queue, rank, place, NULL, NULL, expires, 0, 0, 0, 0, meta, body"
    admin.execute(f"INSERT INTO {prefix}_messages SELECT id + 1, {copied} FROM {prefix}_messages")
    assert len(await waiting) == 1


async def test_notifications_are_rare_empty_and_not_part_of_a_commit(
    opened: Open, server: Server, prefix: str
) -> None:
    backend = await opened()
    await backend.declare([QueueSpec(name="jobs")])
    with closing(psycopg.connect(server.url, autocommit=True)) as listening:
        listening.execute(f'LISTEN "{prefix}_queues"')
        began = time.monotonic()
        for number in range(200):
            assert await backend.publish([out(f"{number}")], timeout=5) == [STORED]
        most = (time.monotonic() - began) / 0.05 + 1
        heard = list(listening.notifies(timeout=0.5))
    assert 1 <= len(heard) <= most
    assert {one.payload for one in heard} == {""}


async def test_a_message_that_is_committed_late_is_not_skipped(
    opened: Open, admin: Any, server: Server, prefix: str
) -> None:
    """Numbers are given out in another order than that of the commits."""
    backend = await opened()
    await backend.declare([QueueSpec(name="jobs")])
    await backend.publish([out("first")], timeout=5)
    with closing(psycopg.connect(server.url)) as late:
        copied = "queue, rank, place, NULL, NULL, expires, 0, 0, 0, 0, meta, body"
        late.execute(
            f"INSERT INTO {prefix}_messages "
            f"SELECT nextval('{prefix}_numbers'), {copied} FROM {prefix}_messages"
        )
        await backend.publish([out("second")], timeout=5)
        consumer = await backend.subscribe("jobs", prefetch=3, lease=30)
        assert len(await consumer.receive(3, 5)) == 2
        late.commit()
    assert len(await consumer.receive(1, 10)) == 1


async def test_the_longest_names_fit_into_a_channel_and_keep_neighbours_apart(
    server: Server, admin: Any
) -> None:
    schema, found = "s" * 40, []
    names = [f"{'p' * 19}{letter}" for letter in "ab"]
    try:
        for prefix in names:
            backend = plugins().backend_for("postgresql")(
                server.url, options(schema_name=schema, prefix=prefix)
            )
            await backend.open(lambda _: None)
            await backend.declare([QueueSpec(name="jobs")])
            found.append(backend)
        channels = [
            await backend.run(lambda driver: driver._db._channel()._obj[0].encode()[:63])
            for backend in found
        ]
        assert channels[0] != channels[1]
        consumer = await found[0].subscribe("jobs", prefetch=1, lease=30)
        waiting = asyncio.create_task(consumer.receive(1, 30))
        assert await found[1].publish([out()], timeout=5) == [STORED]
        assert await found[0].publish([out()], timeout=5) == [STORED]
        assert len(await waiting) == 1
    finally:
        for backend in found:
            await backend.close()
        admin.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")


def options(**values: Any) -> Any:
    from mqcore_sql.options import PostgresOptions  # noqa: PLC0415 - it needs psycopg

    return PostgresOptions(**values)


async def test_a_process_whose_clock_is_wrong_is_neither_early_nor_late(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead, right = await opened(), await opened()
    await ahead.declare([QueueSpec(name="jobs")])
    wrong = time.time() + 86_400
    with monkeypatch.context() as patch:
        patch.setattr("time.time", lambda: wrong)
        await ahead.publish([out("late", delay=30), out("soon")], timeout=5)
        hasty = await ahead.subscribe("jobs", prefetch=5, lease=60)
        (soon,) = await hasty.receive(5, 5)
    assert soon.message.id == "soon"
    consumer = await right.subscribe("jobs", prefetch=5, lease=60)
    assert await consumer.receive(5, 0.3) == []  # neither the delay nor the lease has ended
    assert await hasty.settle([Ack(soon.receipt)], timeout=5) == [DONE]


FORKING = """
import asyncio, os, sys
from mqcore.spi import Message, Outgoing
from mqcore_sql.options import PostgresOptions
from mqcore_sql.postgres_backend import PostgresBackend

def make():
    return PostgresBackend(sys.argv[1], PostgresOptions(prefix=sys.argv[2]))

def out(name):
    return [Outgoing("jobs", Message(id=name, body=b"x"))]

loop, backend = asyncio.new_event_loop(), make()
loop.run_until_complete(backend.open(print))
child = os.fork()
if child == 0:
    own = asyncio.new_event_loop()
    again = make()
    own.run_until_complete(again.open(print))
    print(own.run_until_complete(again.publish(out("child"), timeout=10)), flush=True)
    sys.exit()  # an ordinary end, which closes what a child would close by mistake
os.waitpid(child, 0)
print(loop.run_until_complete(backend.publish(out("parent"), timeout=10)))
"""


async def test_a_forked_child_does_not_end_the_session_of_its_parent(
    opened: Open, server: Server, prefix: str
) -> None:
    await (await opened()).declare([QueueSpec(name="jobs")])
    words = [sys.executable, "-W", "ignore", "-c", FORKING, server.url, prefix]
    ended = await asyncio.to_thread(
        subprocess.run, words, capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [f"{[STORED]}"] * 2, ended.stderr


# Under load, through the application's API


class Load:
    """A publisher, a worker, and what is known of each message."""

    def __init__(self, url: str) -> None:
        self.broker = Broker.connect(url, plugins=plugins(), settings=Settings())
        self.confirmed: set[str] = set()
        self.handled: Counter[str] = Counter()
        self.refused: list[Exception] = []
        self._is_over = False

    async def run(self, disturb: Callable[[Load], Any]) -> None:
        """Publish and handle while `disturb` runs, and until all is handled."""
        app, queue = App("load"), Queue("load", str)

        @app.consumer(queue, concurrency=5)
        async def handle(payload: str) -> None:
            self.handled[payload] += 1

        async with self.broker, Worker(app, self.broker):
            publishing = asyncio.create_task(self._publish(queue))
            await disturb(self)
            self._is_over = True
            await publishing
            await eventually(lambda: self.confirmed <= set(self.handled), 60)

    async def _publish(self, queue: Queue[str]) -> None:
        number = 0
        while not self._is_over:
            number += 1
            try:
                await self.broker.publish(queue, f"{number}", timeout=20)
            except (PublishFailed, PublishUnknown) as error:
                self.refused.append(error)
            else:
                self.confirmed.add(f"{number}")

    async def more(self, number: int = 50) -> None:
        """Wait until so many more messages are confirmed and handled."""
        goal = len(self.confirmed) + number
        await eventually(lambda: len(self.confirmed) >= goal <= len(self.handled) + number, 60)


@pytest.fixture
def load(server: Server, prefix: str, opened: Open) -> Load:
    return Load(f"{server.url}?prefix={prefix}")


async def test_a_server_that_restarts_under_load_loses_nothing(load: Load, server: Server) -> None:
    async def restart(load: Load) -> None:
        await load.more()
        await asyncio.to_thread(server.restart)
        await load.more()

    await load.run(restart)
    assert load.confirmed <= set(load.handled)


@pytest.mark.parametrize("how", ["pg_terminate_backend", "pg_cancel_backend"])
async def test_sessions_that_are_ended_again_and_again_under_load_lose_nothing(
    load: Load, admin: Any, how: str
) -> None:
    statement = f"SELECT count({how}(pid)) FROM pg_stat_activity WHERE application_name = 'mqcore'"

    async def disturb(load: Load) -> None:
        for _ in range(8):
            await load.more(20)
            admin.execute(statement)

    await load.run(disturb)
    assert load.confirmed <= set(load.handled)
