"""SQLite's own corners: what is wrong with a file, a full disk, old names, and counts."""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from support.sqlite_file import plugins
from typer.testing import CliRunner

from mqcore.broker import Broker
from mqcore.errors import QueueFull
from mqcore.spi import (
    DONE,
    STALE,
    STORED,
    Ack,
    Binding,
    Capability,
    ConfigurationError,
    ConnectionLost,
    Durability,
    ErrorKind,
    Failed,
    Message,
    Outgoing,
    QueueSpec,
    Stored,
)
from mqcore.testing import VirtualClock
from mqcore_sql import SqliteBackend, SqliteOptions, statements
from mqcore_sql.commands import app
from mqcore_sql.options import file_of

Open = Callable[..., Any]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "spool.db"


@pytest.fixture
async def opened(path: Path) -> AsyncIterator[Open]:
    """A function that opens an instance; all are closed at the end."""
    backends: list[SqliteBackend] = []

    async def open_one(lost: list[Exception] | None = None, **options: Any) -> SqliteBackend:
        backend = SqliteBackend(f"sqlite:///{path}", SqliteOptions(**options))
        backends.append(backend)
        await backend.open((lost if lost is not None else []).append)
        return backend

    yield open_one
    for backend in backends:
        await backend.close()


def out(name: str = "a", queue: str = "jobs", **fields: Any) -> Outgoing:
    return Outgoing(queue, Message(id=name, body=b"body"), **fields)


# The URL


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///spool.db", Path.cwd() / "spool.db"),
        ("sqlite:////var/lib/spool.db", Path("/var/lib/spool.db")),
        ("sqlite:///a%20b/c.db?prefix=x", Path.cwd() / "a b" / "c.db"),
    ],
)
def test_three_slashes_are_relative_and_four_are_absolute(url: str, expected: Path) -> None:
    assert file_of(url) == expected


@pytest.mark.parametrize("url", ["sqlite://spool.db", "sqlite://", "sqlite:///:memory:"])
def test_a_url_without_a_file_says_what_to_write(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"sqlite:///queue\.db"):
        SqliteBackend(url, SqliteOptions())


# Files that cannot be used


async def refused(path: Path, **options: Any) -> str:
    """Return the text of the error of `open`."""
    backend = SqliteBackend(f"sqlite:///{path}", SqliteOptions(**options))
    with pytest.raises(ConfigurationError) as caught:
        await backend.open(lambda _: None)
    await backend.close()
    return str(caught.value)


async def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert "is a folder" in await refused(tmp_path)


async def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    text = await refused(tmp_path / "missing" / "spool.db")
    assert f"{tmp_path / 'missing'} does not exist" in text


def test_a_file_of_another_kind_is_left_alone(path: Path) -> None:
    path.write_text("these are my notes " * 100)
    before = path.read_bytes()
    assert "is not an SQLite database" in asyncio.run(refused(path))
    assert path.read_bytes() == before


async def test_a_damaged_file_is_refused(opened: Open, path: Path) -> None:
    backend = await opened()
    await backend.declare([QueueSpec(name="jobs")])
    await backend.publish([out(str(number)) for number in range(500)], timeout=5)
    await backend.close()

    assert "is damaged" in await refused(damaged(path))


def damaged(path: Path) -> Path:
    """Return a copy of a database in which some pages are overwritten."""
    pages = bytearray(path.read_bytes())
    pages[20_000:40_000] = os.urandom(20_000)
    other = path.with_name("damaged.db")
    other.write_bytes(pages)
    return other


async def test_tables_of_another_application_are_left_alone(opened: Open, path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE mq_messages (subject TEXT)")
    text = await refused(path)
    assert "mq_messages" in text
    assert "prefix" in text
    assert (await opened(prefix="queue")).classify(ValueError()) is ErrorKind.PERMANENT


async def test_tables_that_are_newer_than_the_code_are_refused(opened: Open, path: Path) -> None:
    await (await opened()).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE mq_meta SET value = 99 WHERE key = 'schema'")
    text = await refused(path)
    assert "version 99" in text
    assert "Upgrade mqcore" in text


async def test_without_migrate_missing_tables_are_refused(path: Path) -> None:
    assert "mqcore sql upgrade" in await refused(path, migrate=False)


@pytest.mark.parametrize("name", ["x" * 300, "spool.db/spool.db"])
async def test_a_path_that_the_system_refuses_is_bad_configuration(
    tmp_path: Path, name: str
) -> None:
    await refused(tmp_path / name)


async def test_a_device_is_refused() -> None:
    assert "is a device" in await refused(Path("/dev/null"))


async def test_a_reconnect_in_another_folder_opens_the_same_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    backend = SqliteBackend("sqlite:///100%25 sure.db", SqliteOptions())
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    await backend.open(lambda _: None)
    await backend.close()
    assert (tmp_path / "100% sure.db").exists()


async def test_all_names_of_a_file_have_one_lock_file(opened: Open, path: Path) -> None:
    await (await opened()).close()
    link = path.with_name("link.db")
    link.symlink_to(path)
    backend = SqliteBackend(f"sqlite:///{link}", SqliteOptions())
    await backend.open(lambda _: None)
    await backend.close()
    assert not link.with_name("link.db.lock").exists()


async def test_a_process_that_keeps_its_turn_is_named_as_the_reason(
    opened: Open, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqcore_sql.sqlite_file._PATIENCE", 0.05)
    lock = os.open(f"{path}.lock", os.O_CREAT | os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        with pytest.raises(ConnectionLost, match=r"spool\.db\.lock .*fuser"):
            await opened()
    finally:
        os.close(lock)
    await (await opened()).declare([QueueSpec(name="jobs")])


@pytest.mark.parametrize(("of_file", "of_folder"), [(0o444, 0o755), (0o666, 0o555)])
def test_a_file_or_a_folder_that_cannot_be_written_is_refused(of_file: int, of_folder: int) -> None:
    program = (
        "import asyncio, os, sys\n"
        "from mqcore_sql import SqliteBackend, SqliteOptions\n"
        "backend = SqliteBackend(f'sqlite:///{sys.argv[1]}', SqliteOptions())\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "asyncio.run(backend.open(print))\n"
    )
    with TemporaryDirectory() as folder:
        path = Path(folder) / "readonly.db"
        path.touch()
        path.chmod(of_file)
        Path(folder).chmod(of_folder)
        ended = subprocess.run(
            [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=False
        )
    assert "ConfigurationError" in ended.stderr
    assert "cannot be written by this user" in ended.stderr


# Files that change while they are open


@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_a_file_that_goes_is_a_loss_and_not_a_confirm(
    opened: Open, path: Path, how: str
) -> None:
    lost: list[Exception] = []
    backend = await opened(lost)
    await backend.declare([QueueSpec(name="jobs")])
    assert await backend.publish([out()], timeout=5) == [STORED]
    remove(path, replace=how == "replaced")

    (outcome,) = await backend.publish([out("b")], timeout=5)
    assert isinstance(outcome, Failed)
    assert outcome.kind is ErrorKind.TRANSIENT
    assert "deleted or replaced" in outcome.text
    assert isinstance(lost[0], ConnectionLost)
    with pytest.raises(ConnectionLost):
        await backend.count()


def remove(path: Path, *, replace: bool = False) -> None:
    """Delete a file, or put a copy in its place."""
    if replace:
        shutil.copy(path, path.with_name("copy"))
        path.with_name("copy").rename(path)
    else:
        path.unlink()


async def test_an_idle_instance_notices_that_its_file_is_gone(opened: Open, path: Path) -> None:
    lost: list[Exception] = []
    clock = VirtualClock()
    await opened(lost, clock=clock)
    remove(path)
    await clock.advance(5)
    assert "deleted or replaced" in str(lost[0])


async def test_a_folder_that_goes_is_a_loss(opened: Open, path: Path) -> None:
    lost: list[Exception] = []
    backend = await opened(lost)
    await backend.declare([QueueSpec(name="jobs")])
    shutil.rmtree(path.parent)
    (outcome,) = await backend.publish([out()], timeout=5)
    assert isinstance(outcome, Failed)
    assert outcome.kind is ErrorKind.TRANSIENT
    assert isinstance(lost[0], ConnectionLost)


# A full disk


async def test_a_publish_never_takes_the_reserve_of_the_disk(opened: Open, path: Path) -> None:
    before = await opened()
    await before.declare([QueueSpec(name="jobs"), QueueSpec(name="jobs.dlq", role="dead_letter")])
    await before.publish([out()], timeout=5)
    await before.close()

    backend = await opened(reserve=2**62)
    (outcome,) = await backend.publish([out("b")], timeout=5)
    assert isinstance(outcome, Failed)
    assert outcome.kind is ErrorKind.FULL
    assert "reserve" in outcome.text
    assert "reserve" in (await backend.diagnose())[0]
    consumer = await backend.subscribe("jobs", prefetch=1, lease=30)
    (delivery,) = await consumer.receive(1, 5)
    assert await consumer.settle([Ack(delivery.receipt)], timeout=5) == [DONE]


async def test_an_application_sees_a_full_disk_as_a_full_queue(path: Path) -> None:
    def make() -> SqliteBackend:
        return SqliteBackend(f"sqlite:///{path}", SqliteOptions(reserve=2**62))

    async with Broker(make_backend=make) as broker:
        with pytest.raises(QueueFull, match="reserve"):
            await broker.publish("jobs", b"x")


# What it can do


@pytest.mark.parametrize(
    ("synchronous", "durability"),
    [("full", Durability.MACHINE), ("normal", Durability.PROCESS), ("off", Durability.PROCESS)],
)
async def test_the_durability_is_that_of_the_commits(
    path: Path, synchronous: Any, durability: Durability
) -> None:
    backend = SqliteBackend(f"sqlite:///{path}", SqliteOptions(synchronous=synchronous))
    capabilities = await backend.open(lambda _: None)
    await backend.close()
    assert capabilities.durability is durability
    assert capabilities[Capability.DURABLE].limits["synchronous"] == synchronous


def test_the_scheme_is_registered() -> None:
    assert plugins().backend_for("sqlite") is SqliteBackend


async def test_two_prefixes_share_a_file_and_no_queue(opened: Open) -> None:
    one, other = await opened(), await opened(prefix="other")
    await one.declare([QueueSpec(name="jobs")])
    (outcome,) = await other.publish([out()], timeout=5)
    assert isinstance(outcome, Failed)
    assert outcome.kind is ErrorKind.NOT_FOUND


# Names


async def test_names_end_with_the_window_and_their_tables_are_emptied(
    opened: Open, path: Path
) -> None:
    clock = VirtualClock()
    backend = await opened(clock=clock, dedup_window=60.0)
    await backend.declare([QueueSpec(name="jobs")])
    assert await backend.publish([out()], timeout=5) == [STORED]

    await clock.advance(59)
    assert await backend.publish([out()], timeout=5) == [Stored(duplicate=True)]
    await clock.advance(2)
    assert await backend.publish([out()], timeout=5) == [STORED]
    await clock.advance(59)
    assert await backend.publish([out()], timeout=5) == [Stored(duplicate=True)]
    assert names(path) > 0

    await clock.advance(200)
    assert names(path) == 0
    assert await backend.publish([out()], timeout=5) == [STORED]


async def test_a_shorter_window_of_another_process_ends_no_name_early(opened: Open) -> None:
    clock = VirtualClock()
    brief = await opened(clock=clock, dedup_window=60.0)
    await brief.declare([QueueSpec(name="jobs")])
    await brief.publish([out("z")], timeout=5)
    long = await opened(clock=clock, dedup_window=6_000.0)
    assert await long.publish([out()], timeout=5) == [STORED]
    for _ in range(5):
        await clock.advance(61)
        await brief.publish([out("b")], timeout=5)
    assert await long.publish([out()], timeout=5) == [Stored(duplicate=True)]


async def test_names_end_after_the_window_was_lengthened(opened: Open, path: Path) -> None:
    clock = VirtualClock()
    brief = await opened(clock=clock, dedup_window=60.0)
    await brief.declare([QueueSpec(name="jobs")])
    await brief.publish([out()], timeout=5)
    await brief.close()
    backend = await opened(clock=clock, dedup_window=600.0)
    await backend.publish([out("b")], timeout=5)
    await clock.advance(3_000)
    assert names(path) == 0


async def test_a_message_that_expires_in_a_million_years_is_stored(opened: Open) -> None:
    backend = await opened()
    await backend.declare([QueueSpec(name="jobs")])
    assert await backend.publish([out(), out("b", ttl=1e15)], timeout=5) == [STORED, STORED]


def names(path: Path) -> int:
    with closing(sqlite3.connect(path)) as connection:
        tables = ("SELECT count(*) FROM mq_names0", "SELECT count(*) FROM mq_names1")
        return sum(connection.execute(table).fetchone()[0] for table in tables)


async def test_of_one_name_twice_in_a_batch_one_copy_is_stored(opened: Open) -> None:
    backend = await opened()
    await backend.declare([QueueSpec(name="jobs")])
    outcomes = await backend.publish([out(), out("b"), out()], timeout=5)
    assert outcomes == [STORED, STORED, Stored(duplicate=True)]
    assert (await backend.count(["jobs"]))[0].ready == 2


# Rows that mqcore did not write


async def test_a_row_that_cannot_be_read_is_handed_out_as_unreadable(
    opened: Open, path: Path
) -> None:
    backend = await opened()
    await backend.declare([QueueSpec(name="jobs")])
    await backend.publish([out()], timeout=5)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("UPDATE mq_messages SET meta = '{\"id\": 7}'")
    consumer = await backend.subscribe("jobs", prefetch=1, lease=30)
    (delivery,) = await consumer.receive(1, 5)
    assert "malformed" in delivery.unreadable
    assert delivery.message.body == b"body"


async def test_a_binding_that_cannot_be_read_stops_no_routing(opened: Open, path: Path) -> None:
    backend = await opened()
    binding = Binding(router="events", kind="fanout", queue="jobs")
    await backend.bind([binding])
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("INSERT INTO mq_bindings VALUES ('[]', 'events', 'jobs')")
    assert await backend.bindings("events") == [binding]


# Order and leases


async def test_a_clock_that_is_set_back_keeps_the_order(opened: Open) -> None:
    clock = VirtualClock()
    backend = await opened(clock=clock)
    await backend.declare([QueueSpec(name="jobs")])
    await clock.advance(100)
    await backend.publish([out("first")], timeout=5)
    clock._epoch -= 50  # as a time server may do
    await backend.publish([out("second")], timeout=5)
    consumer = await backend.subscribe("jobs", prefetch=2, lease=30)
    got = await consumer.receive(2, 0)
    assert [delivery.message.id for delivery in got] == ["first", "second"]


async def test_a_clock_that_is_set_back_ends_no_lease_of_another_process(opened: Open) -> None:
    clock = VirtualClock()
    clock._epoch += 3_600  # it is wrong
    before = await opened(clock=clock)
    await before.declare([QueueSpec(name="jobs")])
    await before.publish([out("a")], timeout=5)
    clock._epoch -= 3_600
    after = await opened(clock=clock)
    await after.publish([out("b")], timeout=5)

    consumer = await after.subscribe("jobs", prefetch=5, lease=30)
    got = await consumer.receive(5, 0)
    assert [delivery.message.id for delivery in got] == ["a", "b"]
    other = await before.subscribe("jobs", prefetch=5, lease=30)
    assert await other.receive(5, 0) == []

    await clock.advance(31)  # the owner of the leases has not renewed them
    assert len(await other.receive(5, 0)) == 2


async def test_a_delay_goes_on_when_the_clock_is_set_back(opened: Open) -> None:
    clock = VirtualClock()
    backend = await opened(clock=clock)
    await backend.declare([QueueSpec(name="jobs")])
    await backend.publish([out(delay=10)], timeout=5)
    clock._epoch -= 3_600
    await backend.publish([out("b")], timeout=5)
    consumer = await backend.subscribe("jobs", prefetch=5, lease=30)
    await clock.advance(11)
    assert len(await consumer.receive(5, 0)) == 2


# Plans


async def test_no_statement_reads_the_rows_of_other_queues(opened: Open) -> None:
    backend = await opened()
    names = ["queue", "limit", "rank", "place", "id", "age", "lease", "token", "idle", "now"]
    values = dict.fromkeys(names, 1)
    lists = {"ids": "[1]", "queues": "[]", "names": "[]"}

    def plans(driver: Any) -> dict[str, list[str]]:
        found = {}
        for name, statement in vars(statements).items():
            if name.isupper() and "{messages}" in statement and not name.startswith("_"):
                rows = driver._db._connection.execute(
                    f"EXPLAIN QUERY PLAN {driver._db.text(statement)}", values | lists
                )
                found[name] = [row[3] for row in rows]
        return found

    found = await backend.run(plans)
    assert "SCAN mq_messages" not in {step for steps in found.values() for step in steps}
    for name in ("LOCK", "HELD", "TAKE"):  # what is leased or ready may be a million
        assert not any("INDEX mq_messages" in step for step in found[name])


async def test_a_receipt_of_another_queue_is_stale(opened: Open) -> None:
    backend = await opened()
    await backend.declare([QueueSpec(name="jobs"), QueueSpec(name="other")])
    await backend.publish([out()], timeout=5)
    jobs, other = [
        await backend.subscribe(name, prefetch=1, lease=30) for name in ("jobs", "other")
    ]
    (delivery,) = await jobs.receive(1, 5)
    assert await other.settle([Ack(delivery.receipt)], timeout=5) == [STALE]
    assert await backend.renew("other", [delivery.receipt], 30) == [False]
    assert await jobs.settle([Ack(delivery.receipt)], timeout=5) == [DONE]


async def test_a_temporary_queue_whose_owner_died_goes_after_an_hour(opened: Open) -> None:
    clock = VirtualClock()
    owner, other = await opened(clock=clock), await opened(clock=clock)
    await owner.declare([QueueSpec(name="replies", role="temporary")])
    await owner.run(lambda driver: driver._db.close())  # as if its process had died
    await other.declare([QueueSpec(name="jobs")])
    assert len(await other.count(["replies"])) == 1
    await clock.advance(3_700)
    await other.declare([QueueSpec(name="more")])
    assert await other.count(["replies"]) == []


# The command


def test_an_operator_creates_the_tables(path: Path) -> None:
    runner, url = CliRunner(), f"sqlite:///{path}"
    assert "created, with version 3" in runner.invoke(app, ["upgrade", url]).output
    assert "version 3 already" in runner.invoke(app, ["upgrade", url]).output
    for wrong in ("redis://localhost", f"{url}?no=1"):
        assert isinstance(runner.invoke(app, ["upgrade", wrong]).exception, ConfigurationError)
