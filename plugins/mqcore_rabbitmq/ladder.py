"""Delays inside the broker: a binary ladder of queues, without any plugin.

    publish(delay) ─► mq.delay.05 ─ waits 2 s ─► mq.delay.04 ─(bit 0: straight on)─► … ─► mq.delay.out ─► the queue

Level i holds every message exactly 2^i units of 62.5 ms, so that each is first in, first out in time and a short delay is never
behind a long one. The routing key says the way: a word for each level, 1 to wait and 0 to pass, then the destination. Levels are
quorum queues with at-least-once dead-lettering: on classic ones a killed broker lost 6 % to 73 % of what had been confirmed. What
finds no destination at its end goes to `mq.lost` by an alternate exchange, for without one it would hold up everybody.

Quorum queues of 4.0 to 4.2 know two levels of priority and let the higher pass inside a level, which would make the lower late:
what needs AMQP's own priority at a classic exit takes one ladder for each class that the server tells apart.
"""

import asyncio
from math import ceil
from typing import Any

from pika import spec

from mqcore_rabbitmq.layout import LEVELS, Server
from mqcore_rabbitmq.link import Channel

__all__ = ["GRANULARITY", "LONGEST", "LOST", "OUT", "Ladder", "declare_exit", "exit_to", "rounded", "way"]

UNIT = 0.0625
COUNT = 27
LONGEST = 97 * 86_400.0
GRANULARITY = 0.25
LOST, OUT = "mq.lost", "mq.delay.out"
_LOST_EXCHANGE = "mq.lost.in"
_MINUTE = 60.0
_FINE, _COARSE = 9, 8
"""Significant bits of a delay: below a minute an error of 62.5 ms at most, above it 0.8 %."""
_FOUR, _STRICT = (4, 0), (4, 3)
_HALF = 5
"""The lowest priority that quorum queues of 4.0 to 4.2 call high."""
_LONGEST_KEY = 255


def rounded(delay: float) -> int:
    """Return a delay in units, never less than it is: with few bits set it takes few hops."""
    units = max(1, ceil(delay / UNIT - 1e-9))
    drop = max(0, units.bit_length() - (_FINE if delay < _MINUTE else _COARSE))
    longest: int = 2**COUNT - 1
    return min(-(-units >> drop) << drop, longest)


def way(delay: float, destination: str) -> tuple[int, str]:
    """Return the level at which a message enters, and its key. Raises `ValueError` for a name that the key cannot carry."""
    units = rounded(delay)
    key = f"{'.'.join(format(units, f'0{COUNT}b'))}.{destination}"
    if len(key.encode()) > _LONGEST_KEY:
        raise ValueError(
            f"the name {destination!r} is too long to be delayed to: {len(key.encode())} bytes of {_LONGEST_KEY}"
        )
    return units.bit_length() - 1, key


class Ladder:
    """The ladders as one instance has declared them."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._declared: set[str] = set()
        self._lock = asyncio.Lock()

    def prefix(self, level: int | None) -> str:
        """Return which ladder a message takes; `level` is the native priority that it carries, None for none."""
        if level is None or self._server.number < _FOUR:
            return "mq.delay"
        if self._server.number < _STRICT:
            return "mq.delay.high" if level >= _HALF else "mq.delay"
        return f"mq.delay.p{min(level, LEVELS - 1)}"

    def is_declared(self, prefix: str) -> bool:
        """Whether this instance has made sure of the ladder."""
        return prefix in self._declared

    def forget(self) -> None:
        """Take nothing for granted: a message found no way in."""
        self._declared.clear()

    async def declare(self, prefix: str, channel: Channel) -> None:
        """Make sure of a ladder, in one go."""
        async with self._lock:
            if prefix in self._declared:
                return
            declare_exit(channel)
            channel.tell(spec.Exchange.Declare(exchange=_LOST_EXCHANGE, type="fanout", durable=True, nowait=True))
            channel.tell(
                spec.Queue.Declare(queue=LOST, durable=True, nowait=True, arguments={"x-queue-type": "quorum"})
            )
            channel.tell(spec.Queue.Bind(queue=LOST, exchange=_LOST_EXCHANGE, nowait=True))
            for number in range(COUNT):
                channel.tell(
                    spec.Exchange.Declare(exchange=_name(prefix, number), type="topic", durable=True, nowait=True)
                )
            for number in range(COUNT):
                self._declare_level(prefix, number, channel)
            channel.tell(_shield(prefix))
            await channel.ask(spec.Queue.Declare(queue=LOST, passive=True))
            self._declared.add(prefix)

    @staticmethod
    def _declare_level(prefix: str, number: int, channel: Channel) -> None:
        here = _name(prefix, number)
        below = _name(prefix, number - 1) if number else OUT
        arguments: dict[str, Any] = {
            "x-queue-type": "quorum",
            "x-message-ttl": ceil(UNIT * 1000 * 2**number),
            "x-dead-letter-exchange": below,
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
        }
        bits = "*." * (COUNT - 1 - number)
        channel.tell(spec.Queue.Declare(queue=here, durable=True, nowait=True, arguments=arguments))
        channel.tell(spec.Queue.Bind(queue=here, exchange=here, routing_key=f"{bits}1.#", nowait=True))
        channel.tell(spec.Exchange.Bind(destination=below, source=here, routing_key=f"{bits}0.#", nowait=True))

    @staticmethod
    def entry(prefix: str, number: int) -> str:
        """Return the exchange at which a message enters."""
        return _name(prefix, number)


def declare_exit(channel: Channel) -> None:
    """Make sure of the exchange at the foot of all ladders."""
    arguments = {"alternate-exchange": _LOST_EXCHANGE}
    channel.tell(spec.Exchange.Declare(exchange=OUT, type="topic", durable=True, nowait=True, arguments=arguments))


def exit_to(queue: str) -> spec.Queue.Bind:
    """Return the binding by which a queue gets what falls due for it; it passes over all bits one by one, so that no other fits."""
    return spec.Queue.Bind(queue=queue, exchange=OUT, routing_key="*." * COUNT + queue, nowait=True)


def _shield(prefix: str) -> spec.Queue.Declare:
    """Return a queue that is never used, declared last.

    A broker that is killed may forget the quorum queue that it was told of last: it comes back without a leader, takes messages and
    never confirms them (3.10 and 4.0).
    """
    return spec.Queue.Declare(
        queue=f"{prefix}.end", durable=True, nowait=True, arguments={"x-queue-type": "quorum", "x-max-length": 1}
    )


def _name(prefix: str, number: int) -> str:
    return f"{prefix}.{number:02}"
