"""Delays inside the broker: a binary ladder of queues, without a plugin.

    publish ─► mq.delay.in ─► .05 ─ waits 2 s ─► .04 ─(bit 0: passes)─► … ─► mq.delay.out ─► queue

Level i holds every message exactly 2^i units of 62.5 ms. So each level is first in, first out in
time, and a short delay never waits behind a long one. The routing key has a word for each level, 1
to wait and 0 to pass, and then the destination. Levels are quorum queues with at-least-once
dead-lettering: with classic ones a killed broker lost 6 % to 73 % of the confirmed messages.

A message whose destination or next level was deleted goes to `mq.lost`, by an alternate exchange.
Without that, it would block all others. The entrance has no alternate exchange: a publisher that
finds no first level declares the ladder again.

Quorum queues of 4.0 to 4.2 have two levels of priority, and a higher one overtakes inside a level
of the ladder, which would make the lower one late. So messages that need AMQP's own priority at a
classic queue have a ladder for each class of priority.
"""

from hashlib import blake2b
from math import ceil
from typing import Any

from pika import spec

from mqcore_rabbitmq.layout import LEVELS, LOST, NO_LIMIT, Server

__all__ = [
    "GRANULARITY",
    "LONGEST",
    "entrance",
    "exit_to",
    "foot",
    "ladder_for",
    "rounded",
    "rungs",
    "way",
]

UNIT = 0.0625
COUNT = 27
LONGEST = 97 * 86_400.0
GRANULARITY = 0.25
OUT = "mq.delay.out"
_LOST_EXCHANGE = "mq.lost.in"
_MINUTE = 60.0
_FINE, _COARSE = 9, 8
"""Significant bits of a delay: an error of at most 62.5 ms below a minute, and 0.8 % above."""
_FOUR, _STRICT = (4, 0), (4, 3)
_HALF = 5
"""The lowest priority that is high for quorum queues of 4.0 to 4.2."""
_LONGEST_NAME = 255 - 2 * COUNT
"""Bytes of a routing key that are left for the destination."""


def rounded(delay: float) -> int:
    """Return a delay in units, rounded up to a number with few bits set, which takes few hops."""
    units = max(1, ceil(delay / UNIT - 1e-9))
    drop = max(0, units.bit_length() - (_FINE if delay < _MINUTE else _COARSE))
    longest: int = 2**COUNT - 1
    return min(-(-units >> drop) << drop, longest)


def entrance(ladder: str) -> str:
    """Return the exchange for new messages, which go to the level of their highest bit."""
    return f"{ladder}.in"


def way(delay: float, destination: str) -> str:
    """Return the key of a message: the bits of its delay, highest first, and its destination."""
    return f"{'.'.join(format(rounded(delay), f'0{COUNT}b'))}.{_word(destination)}"


def _word(queue: str) -> str:
    """Return a queue's name for routing keys, or a digest of it if it is too long."""
    name = queue.encode()
    return queue if len(name) <= _LONGEST_NAME else f"~{blake2b(name, digest_size=16).hexdigest()}"


def ladder_for(server: Server, level: int | None) -> str:
    """Return the ladder for a message with this native priority (None: without one)."""
    if level is None or server.number < _FOUR:
        return "mq.delay"
    if server.number < _STRICT:
        return "mq.delay.high" if level >= _HALF else "mq.delay"
    return f"mq.delay.p{min(level, LEVELS - 1)}"


def rungs(ladder: str) -> list[Any]:
    """Return the requests that declare a ladder, in their order.

    The last queue is never used. A broker that is killed may forget the quorum queue that was
    declared last: it comes back without a leader and never confirms a message (3.10 and 4.0).
    """
    return [
        foot(),
        spec.Exchange.Declare(exchange=_LOST_EXCHANGE, type="fanout", durable=True),
        _quorum(LOST),
        spec.Queue.Bind(queue=LOST, exchange=_LOST_EXCHANGE),
        spec.Exchange.Declare(exchange=entrance(ladder), type="topic", durable=True),
        *(_topic(_name(ladder, level)) for level in range(COUNT)),
        *(request for level in range(COUNT) for request in _rung(ladder, level)),
        _quorum(f"{ladder}.end", {"x-max-length": 1}),
    ]


def _rung(ladder: str, level: int) -> list[Any]:
    """Return the requests for one level: its queue, and the bindings into it and past it."""
    here = _name(ladder, level)
    below = _name(ladder, level - 1) if level else OUT
    arguments = {
        "x-message-ttl": ceil(UNIT * 1000 * 2**level),
        "x-dead-letter-exchange": below,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }
    above = COUNT - 1 - level
    bits = "*." * above

    return [
        _quorum(here, arguments),
        spec.Queue.Bind(queue=here, exchange=entrance(ladder), routing_key=f"{'0.' * above}1.#"),
        spec.Queue.Bind(queue=here, exchange=here, routing_key=f"{bits}1.#"),
        spec.Exchange.Bind(destination=below, source=here, routing_key=f"{bits}0.#"),
    ]


def foot() -> spec.Exchange.Declare:
    """Return the exchange at the exit of all ladders."""
    return _topic(OUT)


def _topic(name: str) -> spec.Exchange.Declare:
    arguments = {"alternate-exchange": _LOST_EXCHANGE}
    return spec.Exchange.Declare(exchange=name, type="topic", durable=True, arguments=arguments)


def exit_to(queue: str) -> spec.Queue.Bind:
    """Return the binding from the exit to a queue. A star for each bit keeps other keys out."""
    return spec.Queue.Bind(queue=queue, exchange=OUT, routing_key="*." * COUNT + _word(queue))


def _quorum(name: str, arguments: dict[str, Any] | None = None) -> spec.Queue.Declare:
    given = {"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT, **(arguments or {})}
    return spec.Queue.Declare(queue=name, durable=True, arguments=given)


def _name(ladder: str, level: int) -> str:
    return f"{ladder}.{level:02}"
