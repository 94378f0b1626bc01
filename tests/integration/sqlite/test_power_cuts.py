"""A few power cuts: `tests/campaigns/power_cuts.py` has many. Skipped without a loop device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from support.loop_disk import DiskUnavailable
from support.power_cuts import Cut, Database, Sqlite, cuts

from mqcore.contract.brokers.server import BrokerUnavailable

pytestmark = pytest.mark.timeout(180)
NUMBER = 3


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that a server's user may reach, which pytest's own are not."""
    with TemporaryDirectory(prefix="power-cuts-") as name:
        yield Path(name)


def after(database: Database, folder: Path) -> list[Cut]:
    try:
        return list(cuts(database, NUMBER, folder))
    except (DiskUnavailable, BrokerUnavailable) as error:
        pytest.skip(str(error))


def postgresql() -> Database:
    pytest.importorskip("psycopg", reason="pip install 'mqcore[sql]'")
    from support.power_cut_server import PostgresqlOnDisk  # noqa: PLC0415 - it needs psycopg

    return PostgresqlOnDisk()


@pytest.mark.parametrize("make", [Sqlite, postgresql], ids=["sqlite", "postgresql"])
def test_a_power_cut_undoes_nothing_that_was_confirmed(
    make: Callable[[], Database], folder: Path
) -> None:
    found = after(make(), folder)
    assert [cut for cut in found if not cut.is_clean] == []
    assert found[-1].published > 0


def test_without_waiting_for_the_disk_a_power_cut_loses_what_was_confirmed(folder: Path) -> None:
    """So the cuts are real."""
    assert any(cut.lost for cut in after(Sqlite("off"), folder))
