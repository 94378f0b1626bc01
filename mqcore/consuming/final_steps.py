"""What is awaited between a final decision and its settlement: the hook, then the reply.

    decide ─► conclusion hook ─► reply ─► settle

A reply is a successor of its request, so it is stored before the request is settled (G3). It is not
sent for an outcome that the hook has postponed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mqcore.consuming.grace import ANSWERED

if TYPE_CHECKING:
    from mqcore.consuming.conclusions import Conclusions
    from mqcore.consuming.grace import Grace
    from mqcore.consuming.held import HeldDelivery
    from mqcore.consuming.replies import EncodedResult, Replies
    from mqcore.rules.retry import Decision, HandlerResult

__all__ = ["FinalSteps"]


class FinalSteps:
    """The steps of one receiver. Most messages need none, and are settled without waiting."""

    def __init__(self, replies: Replies | None) -> None:
        """Without `replies` no request is answered; `conclusions` is set when there is a hook."""
        self.conclusions: Conclusions | None = None
        self._replies = replies

    def awaits(self, held: HeldDelivery) -> bool:
        """Whether something is awaited before a final outcome of this message is settled."""
        return self.conclusions is not None or self._is_answered(held)

    def _is_answered(self, held: HeldDelivery) -> bool:
        return self._replies is not None and held.delivery.message.reply_to is not None

    def prepared(
        self,
        held: HeldDelivery,
        result: HandlerResult,
        value: object,
        reply: EncodedResult | None = None,
    ) -> tuple[HandlerResult, EncodedResult | None]:
        """Return the result, and the reply, unless that is given; it is encoded once.

        A value that cannot be sent is a failure.
        """
        if reply is not None or self._replies is None or not self._is_answered(held):
            return result, reply
        return self._replies.prepared(held.delivery.message, result, value)

    async def handled(
        self,
        held: HeldDelivery,
        decision: Decision,
        result: HandlerResult,
        value: object,
        reply: EncodedResult | None,
    ) -> Decision:
        """Take the steps of a message that a handler has ended; return how to settle it."""
        if self.conclusions is not None and decision.final:
            decision = await self.conclusions.ask(held, decision, result, value)

        if self._replies is not None and decision.final and self._is_answered(held):
            message = held.delivery.message
            if reply is not None:
                await self._replies.succeed(message, reply)
            else:
                await self._replies.fail(message, decision, result)
        return decision

    async def unseen(
        self, held: HeldDelivery, decision: Decision, result: HandlerResult, *, replies: bool
    ) -> Decision:
        """Take the steps of a message that no handler has ended; return how to settle it."""
        if self.conclusions is not None:
            decision = await self.conclusions.ask(held, decision, result)

        if self._replies is not None and replies and decision.final:
            try:
                await self._replies.fail(held.delivery.message, decision, None)
            except Exception as error:  # noqa: BLE001 - a reply that cannot be sent must not keep the message
                held.report(error)
        return decision

    async def close(self, grace: Grace) -> None:
        """Wait for the hook until the grace is over."""
        if self.conclusions is not None:
            await grace.wait_for_answers(self.conclusions.calls, ANSWERED)
            self.conclusions.close()
