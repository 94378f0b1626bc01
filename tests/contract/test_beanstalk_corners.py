"""Random traces on beanstalkd, the guide's second example, and beanstalkd's special cases."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import pytest
from support.beanstalk import harness

from mqcore.contract import Harness
from mqcore.contract.brokers import ProcessServer, ServerHarness
from mqcore.contract.suite import test_model
from mqcore.spi import (
    DONE,
    STORED,
    Ack,
    Backend,
    Capability,
    ConnectionLost,
    Durability,
    ErrorKind,
    Failed,
    Message,
    Outgoing,
    QueueSpec,
    TopologyMismatch,
)

__all__ = ["harness", "test_model"]

pytestmark = pytest.mark.timeout(600)


@pytest.fixture
async def backend(harness: Harness) -> AsyncIterator[Backend]:
    opened = harness.make_backend()
    await opened.open(lambda _: None)
    yield opened
    await opened.close()


async def jobs(backend: Any, *tubes: str) -> int:
    """Count the jobs of tubes, in whatever state."""
    replies = await backend.main.ask(*(f"stats-tube {tube}\r\n".encode() for tube in tubes))
    return sum(
        int(count)
        for reply in replies
        for count in re.findall(rb"current-jobs-(?!urgent).*: (\d+)", reply.data)
    )


async def eventually(what: Callable[[], Awaitable[bool]]) -> None:
    """Ask until it is so: beanstalkd sends no notification."""
    async with asyncio.timeout(20):
        while not await what():  # noqa: ASYNC110 - as above
            await asyncio.sleep(0.05)


async def test_a_plain_clients_job_is_a_first_attempt_in_its_queue(
    backend: Any, harness: Harness
) -> None:
    name = harness.unique_name()
    await backend.declare([QueueSpec(name=name)])
    await backend.main.ask(b"use %b\r\n" % name.encode(), b"put 1024 0 1 5\r\nplain\r\n")
    consumer = await backend.subscribe(name, prefetch=5, lease=30)
    (first,) = await consumer.receive(5, 5.0)
    assert (first.message.body, first.message.priority, first.attempt) == (b"plain", 5, 1)
    assert (first.redelivered, first.takeovers) == (False, 0)
    await consumer.close()
    (second,) = await (again := await backend.subscribe(name, prefetch=5, lease=30)).receive(5, 5.0)
    assert (second.message, second.redelivered, second.takeovers) == (first.message, True, 1)
    assert await again.settle([Ack(second.receipt)], timeout=5) == [DONE]


async def test_of_many_who_declare_at_once_one_makes_the_queue(
    backend: Any, harness: Harness
) -> None:
    name, others = harness.unique_name(), [harness.make_backend() for _ in range(6)]
    for other in others:
        await other.open(lambda _: None)
    outcomes = await asyncio.gather(
        *(
            one.declare([QueueSpec(name=name, ttl=60.0 + number % 2)])
            for number, one in enumerate(others)
        ),
        return_exceptions=True,
    )
    await asyncio.gather(*(other.close() for other in others))
    assert [type(item) for item in outcomes if item is not None] == [TopologyMismatch] * 3
    assert await jobs(backend, f"mq;{name}") == 1


async def test_a_temporary_queue_lives_as_long_as_its_owner(
    backend: Any, harness: Harness, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "mqcore_beanstalk"
    monkeypatch.setattr(f"{module}.queues._TEMPORARY", 2)
    monkeypatch.setattr(f"{module}.backend._PING_EVERY", 0.2)
    monkeypatch.setattr(f"{module}.backend._REFRESH_EVERY", 1)
    name, owner = harness.unique_name(), cast("Any", harness.make_backend())
    spec = QueueSpec(name=name, role="temporary")
    await owner.open(lambda _: None)
    await owner.declare([spec])

    lost = asyncio.Event()
    owner._lost = lambda _: lost.set()
    owner.lose(ConnectionLost("the test cuts it"))
    assert lost.is_set()
    await owner.close()
    await owner.open(lambda _: None)
    # Its marker still exists; it would have ended with the old connection.
    await owner.declare([spec])
    for _ in range(30):
        assert await backend.publish([Outgoing(name, Message(id="a", body=b"x"))], timeout=5) == [
            STORED
        ]
        await asyncio.sleep(0.1)

    await harness.kill(owner)

    async def gone() -> bool:
        (outcome,) = await backend.publish([Outgoing(name, Message(id="b", body=b"x"))], timeout=5)
        return isinstance(outcome, Failed) and outcome.kind is ErrorKind.NOT_FOUND

    async def swept() -> bool:
        sweeper = harness.make_backend()
        await sweeper.open(lambda _: None)
        await sweeper.close()
        return await jobs(backend, name, f"mq;{name}") == 0

    await eventually(gone)
    await eventually(swept)


async def test_a_deleted_queue_leaves_no_job_in_the_server(backend: Any, harness: Harness) -> None:
    name = harness.unique_name()
    await backend.declare(
        [QueueSpec(name=name), QueueSpec(name=f"{name}.quarantine", role="quarantine")]
    )
    batch = [
        Outgoing(name, Message(id=f"{n}", body=b"x"), delay=60.0 * (n % 2)) for n in range(300)
    ]
    assert set(await backend.publish(batch, timeout=10)) == {STORED}
    consumer = await backend.subscribe(name, prefetch=9, lease=30)
    assert await consumer.receive(9, 5.0)
    assert not await backend.delete(name, if_empty=True)
    assert await backend.delete(name)
    await consumer.close()
    assert (
        await jobs(backend, name, f"mq;{name}", f"{name}.quarantine", f"mq;{name}.quarantine") == 0
    )


async def test_a_job_above_the_servers_limit_is_too_large_and_spoils_no_other(
    backend: Any, harness: Harness
) -> None:
    name = harness.unique_name()
    await backend.declare([QueueSpec(name=name)])
    batch = [
        Outgoing(name, Message(id=f"{n}", body=b"x" * (5_000_000 * (n == 1)))) for n in range(3)
    ]
    first, large, last = await backend.publish(batch, timeout=10)
    assert (first, last) == (STORED, STORED)
    assert isinstance(large, Failed)
    assert large.kind is ErrorKind.TOO_LARGE


async def test_without_a_log_no_durability_is_claimed(
    process_server: Callable[..., ProcessServer], harness: Any
) -> None:
    from mqcore_beanstalk.testing import COMMAND, version  # noqa: PLC0415 - as above

    server = process_server(COMMAND[:5], ready=version, url="beanstalk://127.0.0.1:{port}")
    backend = ServerHarness(server, plugins=harness._plugins).make_backend()
    capabilities = await backend.open(lambda _: None)
    await backend.close()
    assert capabilities.durability is Durability.MEMORY
    assert not capabilities.has(Capability.DURABLE)
