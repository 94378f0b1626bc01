"""One message that is being published: its queues, and the answer of each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.errors import Unroutable
from mqcore.spi import ErrorKind, Failed, Stored

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.messages.message import Message
    from mqcore.spi import Outcome, Outgoing, Route

__all__ = ["Outbound"]


class Outbound:
    """A message with the queues that it goes to, and their outcomes so far."""

    __slots__ = ("message", "outcomes", "plan")

    def __init__(
        self,
        message: Message,
        plan: list[Outgoing] | Unroutable,
        outcomes: dict[str | Route, Outcome] | None = None,
    ) -> None:
        """`plan` is where the message goes, or the error when no binding takes it."""
        self.message, self.plan = message, plan
        self.outcomes = {} if outcomes is None else outcomes

    @property
    def unroutable(self) -> bool:
        """Whether core found no binding that takes the message."""
        return isinstance(self.plan, Unroutable)

    @property
    def is_stored(self) -> bool:
        """Whether every queue that the message went to has stored it."""
        if isinstance(self.plan, Unroutable):
            return False
        return all(isinstance(outcome, Stored) for outcome in self.outcomes.values())

    @property
    def names(self) -> tuple[str, ...]:
        """The queues that it goes to; where the broker itself routes, the router."""
        if isinstance(self.plan, Unroutable):
            return ()
        return tuple(out.to if isinstance(out.to, str) else out.to.router for out in self.plan)

    def missing(self) -> list[str | Route]:
        """Return the queues and routers that do not exist."""
        return [
            to
            for to, outcome in self.outcomes.items()
            if isinstance(outcome, Failed) and outcome.kind is ErrorKind.NOT_FOUND
        ]

    def missing_queues(self) -> list[str]:
        """Return the queues that do not exist, of those that core has chosen."""
        return [to for to in self.missing() if isinstance(to, str)]

    def without(self, queues: Sequence[str]) -> bool:
        """Take queues out of the plan; False when none is left."""
        if isinstance(self.plan, Unroutable):
            return False
        self.plan = [out for out in self.plan if out.to not in queues]
        for name in queues:
            self.outcomes.pop(name, None)
        return bool(self.plan)

    def unsent(self) -> list[Outgoing]:
        """Return what is to be sent: what has no outcome, and what did not find its queue."""
        if isinstance(self.plan, Unroutable):
            return []
        if not self.outcomes:
            return self.plan
        missing = self.missing()
        return [out for out in self.plan if out.to not in self.outcomes or out.to in missing]
