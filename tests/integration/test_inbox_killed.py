"""A worker is killed while it handles a message once: nothing is lost or done twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from signal import SIGKILL
from typing import TYPE_CHECKING

import pytest

from mqcore import Broker, Queue, Settings
from mqcore.messages.message import new_id

pytest.importorskip("sqlalchemy", reason="pip install 'mqcore[sqlalchemy]'")
pytest.importorskip("aiosqlite", reason="pip install aiosqlite")
from sqlalchemy import create_engine, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.engine import Engine

    from mqcore.contract.brokers import Server

pytestmark = pytest.mark.timeout(180)
PROGRAM = Path(__file__).parents[1] / "support" / "inbox_process.py"
jobs = Queue("jobs", int)


class Place:
    """A broker's URL and a database, which may be the broker's own."""

    def __init__(self, broker: str, database: str, *, is_same: bool) -> None:
        self.broker, self.database, self.is_same = broker, database, is_same
        self.engine: Engine = create_engine(database)
        with self.engine.begin() as connection:
            connection.execute(text("CREATE TABLE bookings (n INTEGER)"))

    def rows(self) -> list[int]:
        with self.engine.connect() as connection:
            return list(connection.execute(text("SELECT n FROM bookings")).scalars())

    def run(self, kind: str, moment: str) -> tuple[int, str]:
        command = [sys.executable, str(PROGRAM), self.broker, self.database, kind, moment]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
        return ended.returncode, ended.stdout.strip() or ended.stderr


@pytest.fixture(params=["sqlite", "sqlite-same", "postgresql-same", "redis"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, broker_server: Callable[[str], Server]
) -> Iterator[Place]:
    product, _, same = str(request.param).partition("-")
    file = f"sqlite:///{tmp_path / 'app.db'}"
    if product == "sqlite":
        found = Place(
            file if same else f"sqlite:///{tmp_path / 'queue.db'}", file, is_same=bool(same)
        )
    elif product == "redis":
        url = f"{broker_server('redis').url}?prefix=t{new_id()[:8]}"
        found = Place(url, file, is_same=False)
    else:
        server = broker_server("postgresql").url
        sqlalchemy_url = server.replace("postgresql://", "postgresql+psycopg://")
        admin = create_engine(sqlalchemy_url, isolation_level="AUTOCOMMIT")
        name = f"bank_{new_id()[:8]}"
        with admin.connect() as connection:
            connection.execute(text(f'CREATE DATABASE "{name}"'))
        admin.dispose()
        own = f"{server.rpartition('/')[0]}/{name}"
        found = Place(own, own.replace("postgresql://", "postgresql+psycopg://"), is_same=True)
    yield found
    found.engine.dispose()


async def left(place: Place) -> int:
    async with Broker.connect(place.broker, settings=Settings()) as broker:
        [counts] = await broker.counts("jobs")
        return counts.total


@pytest.mark.parametrize("kind", ["async", "blocking"])
@pytest.mark.parametrize("moment", ["handler", "commit", "settle"])
async def test_a_kill_with_a_session(place: Place, kind: str, moment: str) -> None:
    async with Broker.connect(place.broker, settings=Settings()) as broker:
        await broker.publish(jobs, 1, id="a")
    assert place.run(kind, moment)[0] == -SIGKILL
    assert place.rows() == ([1] if moment == "settle" else [])

    if moment == "settle" and place.is_same:  # the acknowledgement was in the transaction
        assert await left(place) == 0
        return
    assert await left(place) == 1
    expected = "message.skipped" if moment == "settle" else "message.done"
    assert place.run(kind, "never") == (0, expected)
    assert place.rows() == [1]
    assert await left(place) == 0


@pytest.mark.parametrize("moment", ["commit", "settle"])
@pytest.mark.parametrize("place", ["sqlite", "sqlite-same"], indirect=True)
async def test_a_kill_with_a_batch(place: Place, moment: str) -> None:
    async with Broker.connect(place.broker, settings=Settings()) as broker:
        await broker.publish_many(jobs, [1, 2])
    assert place.run("batch", moment)[0] == -SIGKILL
    assert place.rows() == ([1, 2] if moment == "settle" else [])

    if moment == "settle" and place.is_same:  # the acknowledgements were in the transaction
        assert await left(place) == 0
        return
    expected = "message.skipped" if moment == "settle" else "message.done"
    code, printed = place.run("batch", "never")
    assert (code, set(printed.split())) == (0, {expected})
    assert place.rows() == [1, 2]
    assert await left(place) == 0


@pytest.mark.parametrize(("moment", "rows"), [("handler", [1, 1]), ("settle", [1])])
async def test_a_kill_where_ids_alone_are_recorded(
    tmp_path: Path, broker_server: Callable[[str], Server], moment: str, rows: list[int]
) -> None:
    """Between the effect and the record it runs again; after the record it does not."""
    url = f"{broker_server('redis').url}?prefix=t{new_id()[:8]}"
    place = Place(url, f"sqlite:///{tmp_path / 'app.db'}", is_same=False)
    async with Broker.connect(url, settings=Settings()) as broker:
        await broker.publish(jobs, 1, id="a")
    assert place.run("ids", moment)[0] == -SIGKILL
    assert place.rows() == [1]
    expected = "message.skipped" if moment == "settle" else "message.done"
    assert place.run("ids", "never") == (0, expected)
    assert place.rows() == rows
    place.engine.dispose()
