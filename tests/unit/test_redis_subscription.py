"""A consumer on Redis, while its calls are answered in any order."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from mqcore.spi import DONE, Ack
from mqcore_redis.keys import Keys
from mqcore_redis.subscription import RedisSubscription

if TYPE_CHECKING:
    from mqcore_redis.scripts import Call

RECORD = b'{"id":"a"}\nbody'


class Server:
    """The session, the batches and the waker of a consumer; its claims are answered by the test."""

    def __init__(self) -> None:
        self.keys, self.phase, self.error = Keys("mq"), 0.0, None
        self.claims: list[tuple[int, asyncio.Future[Any]]] = []
        """How many messages each claim asks for, and its answer."""
        self.asked = asyncio.Event()
        self.returned: list[bytes] = []
        self.main = self

    def run(self, calls: list[Call], **_: bool) -> list[asyncio.Future[Any]]:
        futures = []
        for call in calls:
            future = asyncio.get_running_loop().create_future()
            futures.append(future)
            if call.name == "claim":
                self.claims.append((call.args[1], future))
                self.asked.set()
            else:
                future.set_result([1])
        return futures

    async def claim(self) -> tuple[int, asyncio.Future[Any]]:
        """Wait for the next claim."""
        await self.asked.wait()
        self.asked.clear()
        return self.claims[-1]

    async def settle(self, _queue: str, batch: list[Ack], _deadline: float) -> list[object]:
        return [DONE] * len(batch)

    def abandoning(self, _queue: str, unseen: list[bytes], _lost: object) -> list[Call]:
        self.returned += unseen
        return []

    def check(self) -> None: ...

    def enter(self, *_: object) -> None: ...

    def leave(self, *_: object) -> None: ...

    def forget(self, *_: object) -> None: ...

    def pass_on(self, queue: str) -> None: ...


def answer(*receipts: bytes, soonest: int = -1) -> list[Any]:
    """Return what a claim is answered with; `soonest` is when the next may get something."""
    rows = [word for receipt in receipts for word in (receipt, RECORD, b"", b"")]
    return [b"born", b"1", soonest, rows]


async def started(server: Any, prefetch: int = 1) -> RedisSubscription:
    consumer = RedisSubscription(server, server, server, "q", prefetch=prefetch, lease=30.0)
    starting = asyncio.create_task(consumer.start())
    room, future = await server.claim()
    assert room == 0
    future.set_result(answer())
    await starting
    return consumer


async def test_a_settlement_beside_the_check_of_a_full_consumer_does_not_end_it() -> None:
    """The check of a full consumer only asks whether its queue still exists."""
    server = Server()
    async with asyncio.timeout(10):
        consumer = await started(server)
        first = asyncio.create_task(consumer.receive(1, 60))
        await asyncio.sleep(0)
        consumer.wake()
        (await server.claim())[1].set_result(answer(b"r"))
        assert [it.receipt for it in await first] == [b"r"]

        receiving = asyncio.create_task(consumer.receive(1, 60))
        room, check = await server.claim()
        assert room == 0
        await consumer.settle([Ack(b"r")], timeout=1)
        check.set_result(answer(soonest=0))
        room, last = await server.claim()
        assert room == 1
        last.set_result(answer(b"s"))
        assert [it.receipt for it in await receiving] == [b"s"]


async def test_a_queue_that_the_last_claim_has_emptied_is_not_claimed_again_at_once() -> None:
    """A token says when there is something; a claim before that would come back empty."""
    server = Server()
    async with asyncio.timeout(10):
        consumer = await started(server, prefetch=10)
        receiving = asyncio.create_task(consumer.receive(10, 60))
        await asyncio.sleep(0)
        assert len(server.claims) == 1

        consumer.wake()
        assert len(server.claims) == 2  # in that moment, and not a turn of the loop later
        server.asked.clear()
        server.claims[-1][1].set_result(answer(b"r"))
        assert [it.receipt for it in await receiving] == [b"r"]
        await consumer.settle([Ack(b"r")], timeout=1)
        assert len(server.claims) == 2


async def test_what_a_claim_has_left_is_claimed_at_once() -> None:
    server = Server()
    async with asyncio.timeout(10):
        consumer = await started(server, prefetch=10)
        receiving = asyncio.create_task(consumer.receive(1, 60))
        await asyncio.sleep(0)
        server.asked.clear()
        consumer.wake()
        (await server.claim())[1].set_result(answer(b"r", soonest=0))
        await receiving
        receiving = asyncio.create_task(consumer.receive(1, 60))
        (await server.claim())[1].set_result(answer(b"s"))
        assert [it.receipt for it in await receiving] == [b"s"]


async def test_a_receive_that_may_not_wait_asks_once() -> None:
    server = Server()
    async with asyncio.timeout(10):
        consumer = await started(server, prefetch=10)
        receiving = asyncio.create_task(consumer.receive(10, 0))
        (await server.claim())[1].set_result(answer())
        assert await receiving == []
        assert len(server.claims) == 2


async def test_what_comes_for_a_receive_that_was_cancelled_goes_back() -> None:
    server = Server()
    async with asyncio.timeout(10):
        consumer = await started(server, prefetch=10)
        receiving = asyncio.create_task(consumer.receive(10, 60))
        await asyncio.sleep(0)
        server.asked.clear()
        consumer.wake()
        _, claim = await server.claim()
        receiving.cancel()
        await asyncio.wait([receiving])
        assert server.returned == []
        claim.set_result(answer(b"r"))
        await asyncio.sleep(0)
        assert server.returned == [b"r"]


async def test_a_claim_that_fails_while_the_consumer_sleeps_ends_it() -> None:
    server = Server()
    async with asyncio.timeout(10):
        consumer = await started(server, prefetch=10)
        receiving = asyncio.create_task(consumer.receive(10, 60))
        await asyncio.sleep(0)
        server.asked.clear()
        consumer.wake()
        (await server.claim())[1].set_result(ConnectionResetError("reset"))
        await asyncio.wait([receiving])
        assert isinstance(receiving.exception(), ConnectionResetError)


async def test_what_comes_after_a_close_that_was_cut_short_goes_back() -> None:
    """Nothing else returns it before its lease ends, and that would count as a takeover (G13)."""
    server = Server()
    async with asyncio.timeout(10):
        consumer = await started(server, prefetch=10)
        receiving = asyncio.create_task(consumer.receive(10, 60))
        await asyncio.sleep(0)
        server.asked.clear()
        consumer.wake()
        _, claim = await server.claim()
        receiving.cancel()
        closing = asyncio.create_task(consumer.close())
        await asyncio.sleep(0)
        closing.cancel()  # the answer to the claim has not come in time
        await asyncio.wait([receiving, closing])
        claim.set_result(answer(b"r"))
        await asyncio.sleep(0)
        assert server.returned == [b"r"]
