"""Bindings for the cases."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.spi import (
    Binding,
)

if TYPE_CHECKING:
    from mqcore.rules.routing import Kind


def topic_binding(router: str, queue: str, pattern: str = "", kind: Kind = "topic") -> Binding:
    """Return a binding of a queue to a router, by default of kind topic."""
    return Binding(router=router, kind=kind, queue=queue, pattern=pattern)
