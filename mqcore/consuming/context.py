"""What a handler can know about its message, and do besides returning."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from mqcore.errors import ConfigurationError
from mqcore.publishing.enlisting import enlist_in_thread
from mqcore.publishing.outcomes import only

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from mqcore.messages.delivery import Delivery
    from mqcore.publishing.options import PublishOptions, Receipt, Target
    from mqcore.publishing.publisher import Publisher

__all__ = ["BlockingContext", "Context", "DeliveryInfo"]

T = TypeVar("T")


class DeliveryInfo:
    """The facts of one delivery, read-only."""

    _session: Any = None

    def __init__(self, queue: str, delivery: Delivery, state: Any = None) -> None:
        """`queue` is the base queue: a message run from its quarantine names the same one."""
        self._delivery = delivery
        self.queue = queue
        """Name of the queue that the message was consumed from."""
        self.state = state
        """What the App's lifespan yielded; None in the pull API."""
        self.lease_lost = False
        """Whether the message is another consumer's: what still happens here is done twice (G5)."""

    def lose_lease(self) -> None:
        """Record that the message is another consumer's now; called by the runner."""
        self.lease_lost = True

    @property
    def session(self) -> Any:
        """The session of the handler's transaction, for a consumer with `once=`.

        With `SqlInbox` a session of SQLAlchemy: an `AsyncSession` for an async handler, a `Session`
        for a blocking one. Do not commit it: mqcore does, together with the message's id. Raises
        `ConfigurationError` where there is none.
        """
        if self._session is None:
            raise ConfigurationError(
                f"message {self.id} of queue {self.queue!r}: ctx.session is not available. Give "
                "the consumer once=, and its app an inbox with sessions: "
                "App(..., inbox=SqlInbox(sessions))"
            )
        return self._session

    def open_session(self, session: Any) -> None:
        """Set the session; called by the runner."""
        self._session = session

    @property
    def id(self) -> str:
        """The message's id, the same on every delivery."""
        return self._delivery.message.id

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1 (G4)."""
        return self._delivery.message.attempt

    @property
    def redelivered(self) -> bool:
        """Whether this message was delivered before (G9)."""
        return self._delivery.redelivered or self.attempt > 1

    @property
    def priority(self) -> int:
        """0, lowest, to 10 (G8)."""
        return self._delivery.message.priority

    @property
    def headers(self) -> Mapping[str, str]:
        """The publisher's headers, read-only."""
        return MappingProxyType(dict(self._delivery.message.headers))

    @property
    def content_type(self) -> str | None:
        """The content type as published; None on a foreign message that states none."""
        return self._delivery.message.content_type

    @property
    def encoding(self) -> str | None:
        """The content encoding of a foreign message, such as `gzip`.

        It is undone but for a payload of bytes.
        """
        return self._delivery.message.encoding

    @property
    def published_at(self) -> float | None:
        """The publisher's wall clock in seconds since the epoch; None on a foreign message."""
        return self._delivery.message.published_at

    @property
    def correlation_id(self) -> str | None:
        """The id that connects a reply with its request."""
        return self._delivery.message.correlation_id

    @property
    def redriven(self) -> int:
        """How often the message came back from a dead-letter queue."""
        return self._delivery.message.redriven


class Context(DeliveryInfo):
    """The context of an async handler: the facts, and a way to publish."""

    def __init__(
        self, queue: str, delivery: Delivery, publisher: Publisher, state: Any = None
    ) -> None:
        """Made by the runner for each delivery."""
        super().__init__(queue, delivery, state)
        self._publisher = publisher
        self.delivery = delivery
        """The delivery, for middleware; the transforms of its message are undone."""
        self.payload: Any = None
        """For middleware: the decoded payload, in a batch the list of items.

        None for `process=True`: the process decodes it by itself.
        """
        self._blocking: BlockingContext | None = None

    def lose_lease(self) -> None:
        """As `DeliveryInfo.lose_lease`, also for the context in the handler's thread."""
        super().lose_lease()
        if self._blocking is not None:
            self._blocking.lose_lease()

    def blocking(self) -> BlockingContext:
        """Return the context that a handler in a thread gets."""
        blocking = BlockingContext(self.queue, self.delivery, self._publisher, self.state)
        if self._session is not None:
            blocking.open_session(self._session)
        self._blocking = blocking
        return blocking

    async def publish(
        self, to: Target[T], payload: T, **options: Unpack[PublishOptions]
    ) -> Receipt:
        """As `Broker.publish`.

        What is published stays published when the handler fails afterwards.
        """
        return await self._publisher.publish(to, payload, **options)


class BlockingContext(DeliveryInfo):
    """The context of a blocking handler, which runs in a thread: its `publish` blocks."""

    def __init__(
        self, queue: str, delivery: Delivery, publisher: Publisher, state: Any = None
    ) -> None:
        """Made by the runner, on the event loop that the publisher lives on."""
        super().__init__(queue, delivery, state)
        self._publisher = publisher
        self._loop = asyncio.get_running_loop()

    def publish(self, to: Target[T], payload: T, **options: Unpack[PublishOptions]) -> Receipt:
        """As `Broker.publish`, and block until its outcome is known.

        Raises `ConfigurationError` on the event loop itself.
        """
        with suppress(RuntimeError):
            if asyncio.get_running_loop() is self._loop:
                raise ConfigurationError(
                    "the publish of a blocking handler's context would block the worker's event "
                    "loop; call it from a thread"
                )
        if "session" in options:
            make = partial(self._publisher.enlistment, to, [payload], is_one=True)
            return only(enlist_in_thread(make, options, self._run))
        receipt: Receipt = self._run(self._publisher.publish(to, payload, **options))
        return receipt

    def _run(self, call: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()
