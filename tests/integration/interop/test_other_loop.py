"""A Broker on a real server belongs to the event loop that opened it (G1, G17)."""

from __future__ import annotations

from collections import Counter
from time import monotonic

import pytest
from support.other_loop import CALLS, elsewhere

from mqcore import Broker, ConfigurationError, Queue, Router, Settings

pytestmark = pytest.mark.timeout(120)
AT_ONCE = 1.0
"""Seconds, far below any deadline of the library."""


async def test_every_call_from_another_loop_is_refused_at_once(broker_url: str, name: str) -> None:
    queue, letters = Queue(name, str), f"{name}.dlq"
    router = Router(f"{name}.router", str).bind(queue, "k")

    async with Broker.connect(
        broker_url, settings=Settings(), queues=[queue], routers=[router]
    ) as broker:
        try:
            async with broker.consume(queue) as consumer:
                for call in CALLS.values():
                    began = monotonic()
                    error = await elsewhere(lambda call=call: call(broker, queue, router, consumer))
                    assert isinstance(error, ConfigurationError)
                    assert monotonic() - began < AT_ONCE

                assert await consumer.get(0.5) is None, "and nothing was stored"

            await broker.publish(queue, "still good here")
            assert Counter(counts.ready for counts in await broker.counts(queue)) == {1: 1}
        finally:
            await broker.delete(queue)
            await broker.delete(letters)
            await broker.unbind(*router.bindings)
