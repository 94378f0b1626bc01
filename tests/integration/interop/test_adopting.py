"""On real servers, too: what an adopted queue's options say is kept or refused (G11)."""

from __future__ import annotations

import pytest

from mqcore import Broker, Queue, QueueNotFound, Settings, TopologyMismatch
from mqcore.spi import QueueSpec

pytestmark = pytest.mark.timeout(120)


async def test_the_options_of_an_adopted_queue(broker_url: str, name: str) -> None:
    bare, grave, ours = f"{name}.bare", f"{name}.grave", Queue(f"{name}.ours", str, ttl=60)

    async with Broker.connect(broker_url, settings=Settings(), queues=[ours]) as broker:
        await broker._session.connection.backend.declare(
            [QueueSpec(name=bare), QueueSpec(name=grave, role="dead_letter")]
        )
        try:
            adopted = Queue(bare, str, declare=False, dead_letter=grave)
            await broker.publish(adopted, "x")
            async with broker.consume(adopted) as deliveries:
                received = await deliveries.get(timeout=10)
                assert received is not None
                await received.reject("no good")
            assert (await broker.counts(grave))[0].ready == 1

            with pytest.raises(QueueNotFound, match="nowhere"):
                await broker.publish(
                    Queue(bare, str, declare=False, dead_letter=f"{name}.nowhere"), "x"
                )

            await broker.publish(Queue(ours.name, str, declare=False, ttl=60), "x")
            with pytest.raises(TopologyMismatch, match="ttl=60"):
                await broker.publish(Queue(ours.name, str, declare=False, ttl=61), "x")
        finally:
            for one in (bare, grave, ours.name, f"{ours.name}.dlq"):
                await broker.delete(one)
