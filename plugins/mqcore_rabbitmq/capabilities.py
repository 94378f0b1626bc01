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
_Limits = dict[str, float | str | bool]
_SETTABLE, _ASSUMED_TIMEOUT = (3, 12), 1_800.0
"""The first version in which a queue sets the consumer timeout, and its default before."""


def capabilities_of(
    server: Server, options: RabbitOptions, alarm: str | None = None
) -> Capabilities:
    """Return the capabilities with these options; `alarm` is why the server takes no publishes."""
    quorum = options.quorum
    durability, durable = _durability(options, alarm)
    held = float(CONSUMER_TIMEOUT) if server.number >= _SETTABLE else _ASSUMED_TIMEOUT
    delay: _Limits = {"granularity": GRANULARITY, "max": LONGEST, "after_crash": _AFTER_CRASH}
    browse: _Limits = {"shows_delayed": False, "marks": "browsed messages count as redelivered"}

    supports = {
        Capability.DELAY: Support(Level.EMULATED, delay),
        Capability.PRIORITY: _priority(options),
        Capability.EXPIRY: Support(Level.EMULATED, {"sweep": False}),
        Capability.LEASE: Support(Level.NONE, {"held_at_most": held}),
        Capability.DURABLE: Support(Level.NATIVE, durable),
        Capability.ORDER: Support(
            Level.EMULATED, {"release_in_place": False, "after_delay": "end"}
        ),
        Capability.ROUTING: Support(Level.EMULATED if quorum else Level.NATIVE),
        Capability.BROWSE: Support(Level.APPROXIMATE, browse),
    }
    if not quorum:
        supports[Capability.MAX_LENGTH] = Support(Level.NATIVE, {"modes": "reject"})
    return Capabilities("rabbitmq", f"{server.product} {server.version}", durability, supports)


def _durability(options: RabbitOptions, alarm: str | None) -> tuple[Durability, _Limits]:
    """Return what a confirmed message survives, and the limits of DURABLE."""
    durability, limits = Durability.PROCESS, _Limits(queues="classic, durable")
    if options.quorum:
        durability = Durability.REPLICATED if options.cluster else Durability.MACHINE
        cluster = "stated, not verified" if options.cluster else "not stated"
        limits = _Limits(queues="quorum", cluster=cluster)

    if alarm is not None:
        limits["warning"] = (
            f"RabbitMQ takes no publishes: its memory or disk alarm is on ({alarm}). Consumers "
            "continue. Free memory or disk, or raise the watermark"
        )
    return durability, limits


def _priority(options: RabbitOptions) -> Support:
    """Return how exactly levels of priority are kept: quorum queues keep them with bands (G8)."""
    if not options.quorum:
        return Support(Level.NATIVE, {"levels": LEVELS})
    is_exact = options.bands == LEVELS
    limits = _Limits(levels=options.bands, fetched="up to prefetch of each level")
    return Support(Level.EMULATED if is_exact else Level.APPROXIMATE, limits)
