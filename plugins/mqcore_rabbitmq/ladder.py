"""Delays inside the broker: a binary ladder of queues, without any plugin.

    publish(delay) ─► mq.delay.in ─► .05 ─ waits 2 s ─► .04 ─(bit 0: straight on)─► … ─► mq.delay.out ─► the queue

Level i holds every message exactly 2^i units of 62.5 ms, so that each is first in, first out in
time and a short delay is never behind a long one. The routing key says the way: a word for each
level, 1 to wait and 0 to pass, then the destination. Levels are quorum queues with at-least-once
dead-lettering: on classic ones a killed broker lost 6 % to 73 % of what had been confirmed. What
finds no destination at its end, or no next level because somebody has deleted that, goes to
`mq.lost` by an alternate exchange, for without one it would hold up everybody. The entrance has
none: who finds no first level hears of it, and declares the ladder anew.

Quorum queues of 4.0 to 4.2 know two levels of priority and let the higher pass inside a level,
which would make the lower late: what needs AMQP's own priority at a classic exit takes one ladder
for each class that the server tells apart.
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
"""Significant bits of a delay: below a minute an error of 62.5 ms at most, above it 0.8 %."""
_FOUR, _STRICT = (4, 0), (4, 3)
_HALF = 5
"""The lowest priority that quorum queues of 4.0 to 4.2 call high."""
_LONGEST_NAME = 255 - 2 * COUNT
"""Bytes that a routing key has for the destination, after a word for each level."""


def rounded(delay: float) -> int:
    """Return a delay in units, never less than it is: with few bits set it takes few hops."""
    units = max(1, ceil(delay / UNIT - 1e-9))
    drop = max(0, units.bit_length() - (_FINE if delay < _MINUTE else _COARSE))
    longest: int = 2**COUNT - 1
    return min(-(-units >> drop) << drop, longest)


def entrance(ladder: str) -> str:
    """Return the exchange by which messages enter a ladder, each at the level of its highest bit."""
    return f"{ladder}.in"


def way(delay: float, destination: str) -> str:
    """Return the key of a message: the bits of its delay, the highest first, and where it goes then."""
    return f"{'.'.join(format(rounded(delay), f'0{COUNT}b'))}.{_called(destination)}"


def _called(queue: str) -> str:
    """Return what a queue is called in keys: its name, or a digest of one that they cannot carry."""
    name = queue.encode()
    return queue if len(name) <= _LONGEST_NAME else f"~{blake2b(name, digest_size=16).hexdigest()}"


def ladder_for(server: Server, level: int | None) -> str:
    """Return which ladder a message takes; `level` is the native priority that it carries, None for none."""
    if level is None or server.number < _FOUR:
        return "mq.delay"
    if server.number < _STRICT:
        return "mq.delay.high" if level >= _HALF else "mq.delay"
    return f"mq.delay.p{min(level, LEVELS - 1)}"


def rungs(ladder: str) -> list[Any]:
    """Return the requests that declare a ladder, in their order.

    The queue declared last is never used. A broker that is killed may forget the quorum queue that
    it was told of last: it comes back without a leader, takes messages and never confirms them
    (3.10 and 4.0).
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
    """Return what makes one level: its queue, and the ways into it, from above and from outside, and past it."""
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
    """Return the exchange at the foot of all ladders."""
    return _topic(OUT)


def _topic(name: str) -> spec.Exchange.Declare:
    arguments = {"alternate-exchange": _LOST_EXCHANGE}
    return spec.Exchange.Declare(exchange=name, type="topic", durable=True, arguments=arguments)


def exit_to(queue: str) -> spec.Queue.Bind:
    """Return the binding by which a queue gets what falls due for it; it passes over all bits one by one, so that no other fits."""
    return spec.Queue.Bind(queue=queue, exchange=OUT, routing_key="*." * COUNT + _called(queue))


def _quorum(name: str, arguments: dict[str, Any] | None = None) -> spec.Queue.Declare:
    given = {"x-queue-type": "quorum", "x-delivery-limit": NO_LIMIT, **(arguments or {})}
    return spec.Queue.Declare(queue=name, durable=True, arguments=given)


def _name(ladder: str, level: int) -> str:
    return f"{ladder}.{level:02}"
