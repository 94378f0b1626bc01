"""One message on its way to its queues, and what each of them answered."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.errors import Unroutable
from mqcore.spi import ErrorKind, Failed

if TYPE_CHECKING:
    from mqcore.messages.message import Message
    from mqcore.spi import Outcome, Outgoing, Route

__all__ = ["Outbound"]


class Outbound:
    """One message on its way: where it goes, and what came of it there."""

    __slots__ = ("message", "outcomes", "plan")

    def __init__(self, message: Message, plan: list[Outgoing] | Unroutable) -> None:
        """`plan` is where it goes, or why core found no queue for it."""
        self.message, self.plan = message, plan
        self.outcomes: dict[str | Route, Outcome] = {}

    @property
    def unroutable(self) -> bool:
        """Whether core found no binding that takes it."""
        return isinstance(self.plan, Unroutable)

    def missing(self) -> list[str | Route]:
        """Return where it went and found nothing."""
        return [
            to
            for to, outcome in self.outcomes.items()
            if isinstance(outcome, Failed) and outcome.kind is ErrorKind.NOT_FOUND
        ]

    def left(self) -> list[Outgoing]:
        """Return what is still to be sent of it."""
        if isinstance(self.plan, Unroutable):
            return []
        missing = self.missing()
        return [out for out in self.plan if out.to not in self.outcomes or out.to in missing]
