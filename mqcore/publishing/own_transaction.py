"""The transaction of a handler with `once=`, and publishes that would have to wait for it.

An SQLite file has one write lock. A handler that has written in `ctx.session` has it until it ends,
so a publish to the same file that is not a part of that transaction would wait for its own handler.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from mqcore.errors import ConfigurationError
from mqcore.spi import HoldsUp

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mqcore.spi import Backend

__all__ = ["check_not_held_up", "own_transaction"]

own_transaction: ContextVar[object] = ContextVar("mqcore_own_transaction", default=None)
"""The transaction of the inbox in which the handler of this task or thread runs."""


def check_not_held_up(name: str, backends: Iterable[Backend]) -> None:
    """Raise `ConfigurationError` for a publish that would wait for the handler's transaction."""
    transaction = own_transaction.get()
    if not isinstance(transaction, HoldsUp):
        return
    for backend in backends:
        if where := transaction.holds_up(backend):
            raise ConfigurationError(
                f"publishing to {name!r}: the handler has written in ctx.session, which holds the "
                f"write lock of {where} until the handler ends. A publish to the same file would "
                "wait for it. Publish in the transaction, with session=ctx.session, or before the "
                "first write"
            )
