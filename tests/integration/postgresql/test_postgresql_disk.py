"""A server whose disk is really full: a table on ext4 of some megabytes. Needs a loop device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from support.loop_disk import DiskUnavailable, LoopDisk

from mqcore.contract.brokers import Server
from mqcore.spi import DONE, STORED, Ack, ErrorKind, Failed, Message, Outgoing, QueueSpec

pytest.importorskip("psycopg", reason="pip install 'mqcore[sql]'")

Open = Callable[..., Any]
pytestmark = pytest.mark.timeout(120)
UNPRIVILEGED = 65534
"""The user that a local server runs as where tests run as root."""


@pytest.fixture
def disk(server: Server, admin: Any, prefix: str) -> Iterator[LoopDisk]:
    """A small disk with a tablespace of the server, named as the prefix."""
    if server.provider != "local":
        pytest.skip("the server sees no disk of this machine")
    with TemporaryDirectory(prefix="full-") as folder:
        Path(folder).chmod(0o755)
        try:
            with LoopDisk(Path(folder), 24) as disk:
                os.chown(disk.folder, UNPRIVILEGED, UNPRIVILEGED)
                space = disk.folder / "space"
                space.mkdir()
                os.chown(space, UNPRIVILEGED, UNPRIVILEGED)
                admin.execute(f"CREATE TABLESPACE {prefix} LOCATION '{space}'")
                yield disk
                admin.execute(f"DROP TABLE IF EXISTS {prefix}_messages")
                admin.execute(f"DROP TABLESPACE {prefix}")
        except DiskUnavailable as error:
            pytest.skip(str(error))


async def test_on_a_full_disk_publishes_are_refused_and_acknowledgements_go_on(
    opened: Open, admin: Any, prefix: str, disk: LoopDisk
) -> None:
    backend = await opened()
    await backend.declare([QueueSpec(name="jobs")])
    admin.execute(f"ALTER TABLE {prefix}_messages SET TABLESPACE {prefix}")

    def batch(number: int) -> list[Outgoing]:
        names = [f"{number}-{index}" for index in range(100)]
        return [Outgoing("jobs", Message(id=name, body=os.urandom(1_500))) for name in names]

    assert await backend.publish(batch(0), timeout=30) == [STORED] * 100
    filler = disk.fill()
    number, outcomes = 0, [STORED] * 100
    while outcomes == [STORED] * 100:  # the pages that the table has already
        number += 1
        outcomes = await backend.publish(batch(number), timeout=30)
    for outcome in outcomes:
        assert isinstance(outcome, Failed)
        assert outcome.kind is ErrorKind.FULL
        assert "No space left" in outcome.text

    consumer = await backend.subscribe("jobs", prefetch=50, lease=60)
    deliveries = await consumer.receive(10, 5)
    acks = [Ack(delivery.receipt) for delivery in deliveries]
    assert await consumer.settle(acks, timeout=30) == [DONE] * len(acks) != []

    filler.unlink()
    assert await backend.publish(batch(number), timeout=30) == [STORED] * 100
    await backend.close()
