"""What core knows of a delivery until it is settled: its deadline, its lock and its claim."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqcore.consuming.subscription import LiveSubscription
    from mqcore.messages.delivery import Delivery
    from mqcore.rules.retry import Rules
    from mqcore.spi import Subscription

__all__ = ["HeldDelivery"]


class HeldDelivery:
    """A delivery in our hands until it is settled."""

    __slots__ = (
        "alone",
        "deadline",
        "delivery",
        "gone",
        "inside",
        "lease_lost",
        "on_lost",
        "settled",
        "settled_by",
        "settling",
        "subscription",
    )

    def __init__(self, delivery: Delivery, subscription: LiveSubscription, now: float) -> None:
        self.delivery = delivery
        self.subscription = subscription
        self.deadline = None if delivery.expires_in is None else now + delivery.expires_in
        self.alone = False
        self.inside = False
        self.gone = False
        self.settling = False
        self.lease_lost = False
        self.on_lost: Callable[[], None] | None = None
        self.settled: asyncio.Future[None] | None = None
        self.settled_by: Subscription | None = None
        """Where the settlement was done, once it was."""

    @property
    def rules(self) -> Rules:
        """The rules of the queue that it came from."""
        return self.subscription.rules

    def expires_in(self, now: float) -> float | None:
        """Seconds left to live at the local monotonic time `now`."""
        return None if self.deadline is None else self.deadline - now

    def expired(self, now: float) -> bool:
        """Whether no handler may start it any more (G6)."""
        return self.deadline is not None and now >= self.deadline

    def lose(self) -> None:
        """The claim went to somebody else: settling has no effect any more (G5).

        A settlement under way ends the claim too, and a renewal may notice that first: then its own
        answer tells whose it was.
        """
        if self.settling:
            return
        self.lease_lost = True
        self.subscription.lose(self)
        if self.on_lost is not None:
            self.on_lost()

    def check_loop(self) -> None:
        """Raise `ConfigurationError` when called from another event loop than the broker's."""
        self.subscription.check_loop(
            f"settling message {self.delivery.message.id} of queue {self.rules.queue!r}"
        )

    async def wait_settled(self) -> None:
        """Return when the broker has answered the settlement."""
        if not self.gone:
            if self.settled is None:
                self.settled = asyncio.get_running_loop().create_future()
            await asyncio.shield(self.settled)

    def report(self, error: BaseException) -> None:
        """Show an error of ours where the event loop shows errors that nobody handles: by default, in the log of asyncio."""
        message = self.delivery.message
        text = (
            f"mqcore raised an error while it handled message {message.id} of queue "
            f"{self.rules.queue!r}"
        )
        asyncio.get_running_loop().call_exception_handler({"message": text, "exception": error})
