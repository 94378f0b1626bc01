"""`mqcore+redis://` for Celery: a transport of kombu, for applications that stay as they are.

    kombu ── Transport ── Channel ─► publisher ─► SharedBroker ── loop thread ── mqcore.Broker
                 ▲                                     │
              Inbox ◄──────────── Subscription ◄───────┘

`transport` and `channel` are what kombu calls. `shared` has one broker for all connections of a
process, on a loop in a thread. `consuming` reads a queue there, and `inbox` carries its messages to
kombu's thread. `url`, `options`, `names`, `arguments` and `wire` translate, without any I/O.

Importing this package makes the URLs known to kombu; `aliases` says why nothing else is imported.
"""

from typing import Any

from mqcore_celery.aliases import register

__all__ = ["Channel", "Transport"]

register()


def __getattr__(name: str) -> Any:
    """Import the transport when it is used: kombu may be in the middle of its own import now."""
    if name == "Transport":
        from mqcore_celery.transport import Transport  # noqa: PLC0415 - as said above

        return Transport
    if name == "Channel":
        from mqcore_celery.channel import Channel  # noqa: PLC0415 - as said above

        return Channel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
