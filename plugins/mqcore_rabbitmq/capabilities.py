"""What the live server can do for us, as core and the contract kit read it."""

from mqcore.spi import Capabilities, Capability, Durability, Level, Support
from mqcore_rabbitmq.ladder import GRANULARITY, LONGEST
from mqcore_rabbitmq.layout import CONSUMER_TIMEOUT, LEVELS, Server
from mqcore_rabbitmq.options import RabbitOptions

__all__ = ["capabilities_of"]

_AFTER_CRASH = 190.0
"""Seconds by which a killed broker of 4.0 may delay what waited in the ladder: its dead-letter worker asks again after 180 s.
"""
_SETTABLE, _ASSUMED_TIMEOUT = (3, 12), 1_800.0
"""From which version on a queue may say how long a delivery may be held, and the server's default before (in seconds).
"""


def capabilities_of(
    server: Server, options: RabbitOptions, alarm: str | None = None
) -> Capabilities:
    """Say what connections with these options can do on this server; `alarm` is why it takes no publishes now."""
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
            "go on; free memory or disk, or "
            "raise its watermark"
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
            {"shows_delayed": False, "marks": "what was looked at counts as redelivered"},
        ),
    }
    if not quorum:
        supports[Capability.MAX_LENGTH] = Support(Level.NATIVE, {"modes": "reject"})
    return Capabilities("rabbitmq", f"{server.product} {server.version}", durability, supports)
