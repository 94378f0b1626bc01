"""Ways out: a confirm channel for each kind of messages, opened when it is needed.

What is sent to queues goes by one, the rest by another: a missing exchange closes its channel and
makes all that is under way on it unknown. Nothing is written while the broker has said that it
takes no publishes: what is written then is stored when the alarm ends, long after its publisher was
told that it failed.
"""

import asyncio
from collections.abc import Sequence

from pika import BasicProperties

from mqcore.spi import ErrorKind, Failed, Outcome, new_id
from mqcore_rabbitmq.confirms import Confirms, Sending
from mqcore_rabbitmq.link import Link

__all__ = ["EXCHANGES", "QUEUES", "RECORDS", "Outbox"]

QUEUES, EXCHANGES, RECORDS = "queues", "exchanges", "records"
_PROBE = 0.5
"""Seconds that a connect waits for the answer to its first message; without an alarm it comes in a few milliseconds.
"""


class Outbox:
    """The publishing connection of one open instance."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._open: dict[str, Confirms] = {}
        self._lock = asyncio.Lock()

    @property
    def blocked(self) -> bool:
        """Whether the broker has said that it takes no publishes."""
        return self._link.blocked is not None

    async def alarm(self) -> str | None:
        """Send what no queue takes and see whether it is read: under an alarm the broker says so, and only to who publishes."""
        nowhere = f"mq.nowhere.{new_id()}"
        await self.send(QUEUES, [Sending("", nowhere, BasicProperties(), b"", nowhere)], _PROBE)
        return self._link.blocked

    async def send(self, kind: str, batch: Sequence[Sending], timeout: float) -> list[Outcome]:
        """Send messages of one kind; an outcome for each, in order.

        Raises when nothing was sent and the connection is lost.
        """
        if self.blocked:
            text = (
                "RabbitMQ takes no publishes: the broker's memory or disk alarm is on "
                f"({self._link.blocked})"
            )
            return [Failed(ErrorKind.TRANSIENT, text)] * len(batch)
        confirms = self._open.get(kind)
        if confirms is None or confirms.channel.shut is not None:
            until = asyncio.get_running_loop().time() + timeout
            try:
                async with asyncio.timeout_at(until):
                    confirms = await self.confirms(kind)
            except TimeoutError as error:
                text = f"RabbitMQ opened no channel within {timeout:g} s; nothing was sent"
                return [Failed(ErrorKind.TRANSIENT, text, error)] * len(batch)
            timeout = until - asyncio.get_running_loop().time()
        return await confirms.publish(batch, timeout)

    async def confirms(self, kind: str) -> Confirms:
        """Return the channel for a kind of messages, open."""
        async with self._lock:
            known = self._open.get(kind)
            if known is None or known.channel.shut is not None:
                known = self._open[kind] = await Confirms.on(await self._link.channel())
            return known
