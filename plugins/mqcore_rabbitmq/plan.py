"""Where a message is published on this broker. Pure.

    Outgoing ─ plan ─► PlannedMessage: to a queue │ into the ladder │ to a router's exchange

`PlannedMessage.needs` names what must exist for the plan to work.
"""

from dataclasses import dataclass

from mqcore.spi import Outgoing, Route, expiry_of
from mqcore_rabbitmq.confirms import PlannedMessage
from mqcore_rabbitmq.frames import Properties
from mqcore_rabbitmq.ladder import LONGEST, entrance, ladder_for, way
from mqcore_rabbitmq.layout import Layout, Server
from mqcore_rabbitmq.message_format import fit, inherit, properties

__all__ = ["EXIT", "LADDER", "ROUTER", "Successor", "plan"]

LADDER, EXIT, ROUTER = "ladder", "exit", "router"
"""Kinds of needs: a ladder, a binding from the ladders' exit to a queue, an exchange."""
_SMALL = 16_384
"""Characters of headers below which their size is not measured: they fit in any usual frame."""


@dataclass(frozen=True, slots=True)
class Successor(Outgoing):
    """What a Move stores in place of a message that was received with these properties."""

    received: Properties | None = None


def plan(
    out: Outgoing, layout: Layout | None, server: Server, now: float, *, moved: bool
) -> PlannedMessage:
    """Plan one message for a queue of this layout (None: a foreign queue) or for a router.

    `moved`: it is a successor, to which neither a bound nor the queue's ttl applies. Raises
    `ValueError` for a message that cannot be sent.
    """
    message = out.message
    queue_ttl = None if layout is None or moved else layout.spec.ttl
    expires = expiry_of(out, queue_ttl, now)

    if isinstance(out.to, Route):
        router, given = out.to.router, properties(message, expires, ageless=True)
        _check_size(out, given, server)
        needs = ((ROUTER, router),)
        return PlannedMessage(router, out.to.key, given, message.body, router, "route", needs)

    native, ageless = layout is None or not layout.quorum, layout is None
    to = out.to if out.delay > 0 else None
    given = properties(message, expires, native=native, ageless=ageless, to=to)
    if isinstance(out, Successor) and out.received is not None:
        inherit(given, out.received, server.user)
        fit(given, server.room)
    else:
        _check_size(out, given, server)

    if out.delay > 0:
        if out.delay > LONGEST:
            raise ValueError(f"a delay of {out.delay:g} s is above the longest, {LONGEST:g} s")
        ladder = ladder_for(server, message.priority if native else None)
        target = out.to if layout is None else layout.target(message.priority, refusable=False)
        key, delay_needs = way(out.delay, target), ((LADDER, ladder), (EXIT, target))
        return PlannedMessage(entrance(ladder), key, given, message.body, out.to, needs=delay_needs)

    if layout is None:
        return PlannedMessage("", out.to, given, message.body, out.to)
    target = layout.target(message.priority, refusable=not moved)
    bounded = layout.spec.max_length is not None and target != layout.due
    return PlannedMessage("", target, given, message.body, out.to, "full" if bounded else "")


def _check_size(out: Outgoing, given: Properties, server: Server) -> None:
    """Raise `ValueError` for headers that would close the connection."""
    if sum(map(len, out.message.headers.values())) < _SMALL:
        return

    size = sum(map(len, given.encode()))
    if size > server.room:
        raise ValueError(
            f"the properties of message {out.message.id} have {size:,} bytes, and RabbitMQ takes "
            f"{server.room:,}: send shorter headers"
        )
