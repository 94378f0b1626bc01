"""One message that is being published: its queues, and the answer of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.errors import Unroutable
from mqcore.spi import ErrorKind, Failed

if TYPE_CHECKING:
    from mqcore.messages.message import Message
    from mqcore.spi import Outcome, Outgoing, Route

__all__ = ["Outbound"]


class Outbound:
    """A message with the queues that it goes to, and their outcomes so far."""

    __slots__ = ("message", "outcomes", "plan")

    def __init__(self, message: Message, plan: list[Outgoing] | Unroutable) -> None:
        """`plan` is where the message goes, or the error when no binding takes it."""
        self.message, self.plan = message, plan
        self.outcomes: dict[str | Route, Outcome] = {}

    @property
    def unroutable(self) -> bool:
        """Whether core found no binding that takes the message."""
        return isinstance(self.plan, Unroutable)

    def missing(self) -> list[str | Route]:
        """Return the queues and routers that do not exist."""
        return [
            to
            for to, outcome in self.outcomes.items()
            if isinstance(outcome, Failed) and outcome.kind is ErrorKind.NOT_FOUND
        ]

    def unsent(self) -> list[Outgoing]:
        """Return what is to be sent: what has no outcome, and what did not find its queue."""
        if isinstance(self.plan, Unroutable):
            return []
        missing = self.missing()
        return [out for out in self.plan if out.to not in self.outcomes or out.to in missing]
