"""A router that is deleted by another client while messages are on their way to it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from pika import spec

from mqcore.spi import (
    STORED,
    Binding,
    ErrorKind,
    Failed,
    Message,
    Outcome,
    Outgoing,
    QueueSpec,
    Route,
)

if TYPE_CHECKING:
    from mqcore_rabbitmq import RabbitBackend

pytestmark = pytest.mark.timeout(90)


async def bound(backend: RabbitBackend, name: str) -> None:
    await backend.declare([QueueSpec(name=name)])
    await backend.bind([Binding(router=f"{name}.r", kind="fanout", queue=name)])


async def delete_exchange(backend: RabbitBackend, name: str) -> None:
    await backend._open.topology.rpc.run(spec.Exchange.Delete(exchange=name))


def out(name: str, id: str) -> Outgoing:
    return Outgoing(Route(f"{name}.r"), Message(id=id, body=b""))


async def test_what_may_have_been_stored_before_is_never_failed(
    backend: RabbitBackend, name: str
) -> None:
    """Core declares the router again and repeats what failed: it must not be stored twice (G1)."""
    await bound(backend, name)
    assert await backend.publish([out(name, "first")], timeout=5) == [STORED]
    calls = [
        asyncio.create_task(
            backend.publish([out(name, f"{turn}-{one}") for one in range(20)], timeout=5)
        )
        for turn in range(100)
    ]
    await asyncio.sleep(0)
    await delete_exchange(backend, f"{name}.r")
    outcomes: dict[str, Outcome] = {}
    for turn, answers in enumerate(await asyncio.gather(*calls, return_exceptions=True)):
        assert not isinstance(answers, BaseException)
        outcomes |= {f"{turn}-{one}": outcome for one, outcome in enumerate(answers)}

    stored = {entry.message.id for entry in await backend.browse(name, 10_000)}
    kinds = {id: outcome.kind for id, outcome in outcomes.items() if isinstance(outcome, Failed)}
    assert not stored & set(kinds)
    assert stored >= {id for id, outcome in outcomes.items() if outcome == STORED}


async def test_what_is_sent_to_one_that_has_gone_is_certainly_not_stored(
    backend: RabbitBackend, name: str
) -> None:
    """All of a batch, so that all of it is sent again when the router is there."""
    await bound(backend, name)
    assert await backend.publish([out(name, "first")], timeout=5) == [STORED]
    await delete_exchange(backend, f"{name}.r")
    outcomes = await backend.publish([out(name, f"{one}") for one in range(5)], timeout=5)
    assert {getattr(it, "kind", None) for it in outcomes} <= {
        ErrorKind.NOT_FOUND,
        ErrorKind.TRANSIENT,
    }
    assert getattr(outcomes[0], "kind", None) is ErrorKind.NOT_FOUND
