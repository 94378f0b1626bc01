"""What core knows of a delivery until it is settled: its state, its deadline and its lock."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from mqcore.consuming.states import TRANSITIONS, DeliveryState, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqcore.consuming.isolation import Entry
    from mqcore.consuming.subscription import LiveSubscription
    from mqcore.messages.delivery import Delivery
    from mqcore.rules.profile import Profile
    from mqcore.rules.retry import HandlerResult, Rules
    from mqcore.spi import Subscription

__all__ = ["HeldDelivery"]


class HeldDelivery:
    """A delivery from its arrival until it is settled or lost."""

    __slots__ = (
        "_rules",
        "deadline",
        "delivery",
        "entry",
        "is_in_transaction",
        "on_lost",
        "own_result",
        "profile",
        "settled",
        "settled_by",
        "state",
        "subscription",
    )

    def __init__(self, delivery: Delivery, subscription: LiveSubscription, now: float) -> None:
        """`now` is the local monotonic time at which it arrived."""
        self.delivery = delivery
        self.subscription = subscription
        self.deadline = None if delivery.expires_in is None else now + delivery.expires_in
        self.state = DeliveryState.BUFFERED
        self.entry: Entry | None = None
        """How it has entered the isolation lock; None when it has not, or has left (G4)."""
        self._rules: Rules | None = None
        self.profile: Profile | None = None
        """How it is run, where that is not as all others of its consumer."""
        self.on_lost: Callable[[], None] | None = None
        """Called when the claim is lost while a handler runs."""
        self.is_in_transaction = False
        """Whether it is settled after the transaction of its batch (`once=`)."""
        self.own_result: HandlerResult | None = None
        """What it will be settled with then, if the handler has said so."""
        self.settled: asyncio.Future[None] | None = None
        self.settled_by: Subscription | None = None
        """The subscription that the settlement was done on, once it was."""

    @property
    def rules(self) -> Rules:
        """The rules of the queue that it came from, with its own retry policy if it has one."""
        rules, profile = self.subscription.rules, self.profile
        if profile is None or profile.retry is None:
            return rules
        if self._rules is None:
            self._rules = replace(rules, retry=profile.retry)
        return self._rules

    @property
    def is_gone(self) -> bool:
        """Whether it is out of our hands: settled or lost."""
        return self.state.is_final

    @property
    def is_lost(self) -> bool:
        """Whether its claim ended without a settlement of ours (G5)."""
        return self.state is DeliveryState.LOST

    @property
    def is_suspect(self) -> bool:
        """Whether it comes from the quarantine, and must run alone (G4)."""
        rules = self.subscription.rules
        return rules.source == rules.quarantine

    @property
    def can_settle(self) -> bool:
        """Whether a settlement would be sent, not refused as too late."""
        return (self.state, Step.SETTLE) in TRANSITIONS

    def apply(self, step: Step) -> bool:
        """Take a step of the transition table; False when its state has no such step."""
        if (state := TRANSITIONS.get((self.state, step))) is None:
            return False
        self.state = state
        return True

    def expires_in(self, now: float) -> float | None:
        """Seconds left to live at the local monotonic time `now`; None when it never expires."""
        return None if self.deadline is None else self.deadline - now

    def expired(self, now: float) -> bool:
        """Whether it has expired, so that no handler may start it (G6)."""
        return self.deadline is not None and now >= self.deadline

    def lose(self) -> None:
        """The claim went to another consumer: settling has no effect any more (G5).

        A settlement under way ends the claim too, and a renewal may notice that first. Then the
        answer to the settlement decides.
        """
        if (self.state, Step.LOSE) not in TRANSITIONS:
            return

        self.subscription.lose(self)
        if self.on_lost is not None:
            self.on_lost()

    def check_loop(self) -> None:
        """Raise `ConfigurationError` when called from another event loop than the broker's."""
        self.subscription.check_loop(
            f"settling message {self.delivery.message.id} of queue {self.rules.queue!r}"
        )

    async def wait_settled(self) -> None:
        """Return when the broker has answered the settlement, or the claim is lost."""
        if not self.is_gone:
            if self.settled is None:
                self.settled = asyncio.get_running_loop().create_future()
            await asyncio.shield(self.settled)

    def report(self, error: BaseException) -> None:
        """Report an error of mqcore to the event loop's exception handler: by default, a log."""
        message = self.delivery.message
        text = (
            f"mqcore raised an error while it handled message {message.id} of queue "
            f"{self.rules.queue!r}"
        )
        asyncio.get_running_loop().call_exception_handler({"message": text, "exception": error})
