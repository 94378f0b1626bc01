"""`Producer`: publishing to one target, with defaults."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar, Unpack

from mqcore.publishing.options import PublishOptions, check_target, check_values
from mqcore.queue import name_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mqcore.errors import MqcoreError
    from mqcore.publishing.enlisting import Enlistment
    from mqcore.publishing.options import Receipt, Target
    from mqcore.publishing.publisher import Publisher

__all__ = ["Producer", "enlistment_of"]

T = TypeVar("T")


class Producer(Generic[T]):
    """Publishes to one queue or router with defaults of its own; made by `Broker.producer`."""

    def __init__(self, publisher: Publisher, to: Target[T], defaults: PublishOptions) -> None:
        """Raises `ConfigurationError` for a wrong target, `ValidationError` for a wrong default."""
        check_target(to, defaults)
        check_values(defaults, name_of(to))
        self._publisher = publisher
        self._to = to
        self._defaults = defaults

    async def publish(self, payload: T, **options: Unpack[PublishOptions]) -> Receipt:
        """Publish one payload as `Broker.publish` does; these options override the defaults."""
        merged: PublishOptions = {**self._defaults, **options}
        return await self._publisher.publish(self._to, payload, **merged)

    async def publish_many(
        self, payloads: Iterable[T], **options: Unpack[PublishOptions]
    ) -> list[Receipt | MqcoreError]:
        """Publish many payloads as `Broker.publish_many` does; options override the defaults."""
        merged: PublishOptions = {**self._defaults, **options}
        return await self._publisher.publish_many(self._to, payloads, **merged)


def enlistment_of(
    producer: Producer[T], payloads: Iterable[T], options: PublishOptions, *, is_one: bool = False
) -> Enlistment:
    """Return a producer's publish inside a transaction, for `mqcore.sync`. Private to mqcore."""
    merged: PublishOptions = {**producer._defaults, **options}  # noqa: SLF001 - as session_of
    publisher, to = producer._publisher, producer._to  # noqa: SLF001 - as session_of
    return publisher.enlistment(to, payloads, merged, is_one=is_one)
