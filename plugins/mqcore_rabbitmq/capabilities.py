"""The capabilities of a connection on the live server."""

from mqcore.spi import Capabilities, Capability, Durability, Level, Support
from mqcore_rabbitmq.ladder import GRANULARITY, LONGEST
from mqcore_rabbitmq.layout import CONSUMER_TIMEOUT, LEVELS, Server
from mqcore_rabbitmq.options import RabbitOptions

__all__ = ["capabilities_of"]

_AFTER_CRASH = 190.0
"""Seconds by which delayed messages may be late after a broker of 4.0 was killed.

Its dead-letter worker asks again after 180 s.
"""
_SETTABLE, _ASSUMED_TIMEOUT = (3, 12), 1_800.0
"""The first version in which a queue sets the consumer timeout, and its default before."""


def capabilities_of(
    server: Server, options: RabbitOptions, alarm: str | None = None
) -> Capabilities:
    """Return the capabilities with these options; `alarm` is why the server takes no publishes."""
    quorum = options.quorum
    exact = options.bands == LEVELS or not quorum
    durability = Durability.PROCESS
    durable: dict[str, float | str | bool] = {"queues": "classic, durable"}
    if quorum:
        durability = Durability.REPLICATED if options.cluster else Durability.MACHINE
        durable = {
            "queues": "quorum",
            "cluster": "stated, not verified" if options.cluster else "not stated",
        }
    if alarm is not None:
        durable["warning"] = (
            f"RabbitMQ takes no publishes: its memory or disk alarm is on ({alarm}). Consumers "
            "continue. Free memory or disk, or raise the watermark"
        )
    supports = {
        Capability.DELAY: Support(
            Level.EMULATED,
            {"granularity": GRANULARITY, "max": LONGEST, "after_crash": _AFTER_CRASH},
        ),
        Capability.PRIORITY: Support(
            (Level.EMULATED if quorum else Level.NATIVE) if exact else Level.APPROXIMATE,
            {
                "levels": LEVELS if exact else options.bands,
                **({"fetched": "up to prefetch of each level"} if quorum else {}),
            },
        ),
        Capability.EXPIRY: Support(Level.EMULATED, {"sweep": False}),
        Capability.LEASE: Support(
            Level.NONE,
            {
                "held_at_most": float(CONSUMER_TIMEOUT)
                if server.number >= _SETTABLE
                else _ASSUMED_TIMEOUT
            },
        ),
        Capability.DURABLE: Support(Level.NATIVE, durable),
        Capability.ORDER: Support(
            Level.EMULATED, {"release_in_place": False, "after_delay": "end"}
        ),
        Capability.ROUTING: Support(Level.EMULATED if quorum else Level.NATIVE),
        Capability.BROWSE: Support(
            Level.APPROXIMATE,
            {"shows_delayed": False, "marks": "browsed messages count as redelivered"},
        ),
    }
    if not quorum:
        supports[Capability.MAX_LENGTH] = Support(Level.NATIVE, {"modes": "reject"})
    return Capabilities("rabbitmq", f"{server.product} {server.version}", durability, supports)
