"""A channel: what kombu asks of AMQP, answered by mqcore."""

from __future__ import annotations

import logging
from collections import defaultdict
from functools import partial
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from amqp.protocol import queue_declare_ok_t
from kombu.exceptions import ChannelError
from kombu.message import Message
from kombu.transport import base

from mqcore import QueueNotFound
from mqcore_celery.arguments import queue_of
from mqcore_celery.consuming import Arrival, Subscription
from mqcore_celery.exchanges import Exchanges
from mqcore_celery.names import decoded, encoded
from mqcore_celery.publishing import publish
from mqcore_celery.wire import ForeignMessage, unpacked

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqcore import Received
    from mqcore_celery.shared import SharedBroker
    from mqcore_celery.transport import Transport

__all__ = ["Channel"]

_log = logging.getLogger("mqcore.celery")
_LAST_ANSWERS = 5.0
"""Seconds that a channel which closes waits for the broker's answers. The broker may be away."""
_NOT_FOUND = (50, 10), "Channel.queue_declare", "404"


class Channel(base.StdChannel):
    """A channel of a connection. Used by one thread at a time, but for `basic_ack` and its like."""

    _ids = count(1)
    _tags = count(1)

    def __init__(self, transport: Transport, shared: SharedBroker) -> None:
        """`transport` is also the connection, as in kombu's own virtual transports."""
        self.connection: Any = transport
        self.channel_id = next(self._ids)
        self.closed = False
        self.events: defaultdict[str, set[Any]] = defaultdict(set)
        self._shared = shared
        self._prefix = shared.options.queue_prefix
        self._exchanges = Exchanges(shared)
        self._prefetch = 0
        self._consumers: dict[str, tuple[Subscription, bool, Callable[[Message], None]]] = {}
        self._stopped: list[Subscription] = []
        """Cancelled consumers, of whose messages some may be unsettled."""
        self._unsettled: dict[int, Received[bytes]] = {}

    # Exchanges and queues

    def exchange_declare(
        self,
        exchange: str = "",
        type: str = "direct",  # noqa: A002 - kombu passes it by this name
        *,
        passive: bool = False,
        **_: Any,
    ) -> None:
        """Declare an exchange: a router of this kind."""
        if exchange and not passive:
            self._shared.run(self._exchanges.declare(self._name(exchange), type or "direct"))

    def exchange_delete(self, exchange: str, **_: Any) -> None:
        """Remove all bindings of an exchange."""
        self._shared.run(self._exchanges.delete(self._name(exchange)))

    def queue_declare(
        self,
        queue: str = "",
        *,
        passive: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        arguments: dict[str, Any] | None = None,
        **_: Any,
    ) -> queue_declare_ok_t:
        """Declare a queue; return its name and, if `passive`, how many messages it holds."""
        queue = queue or f"amq.gen-{uuid4().hex}"
        name = self._name(queue)
        if passive:
            return queue_declare_ok_t(queue, self._size(queue, name), 0)

        declared = queue_of(
            name,
            arguments or {},
            is_temporary=exclusive or auto_delete,
            ignores=self._shared.options.ignore_arguments,
        )
        self._shared.run(self._exchanges.declare_queue(declared))
        return queue_declare_ok_t(queue, 0, 0)

    def _size(self, queue: str, name: str) -> int:
        try:
            (counts,) = self._shared.run(self._shared.broker.counts(name))
        except QueueNotFound:
            text = f"NOT_FOUND - no queue {queue!r}"
            raise ChannelError(text, *_NOT_FOUND) from None
        return counts.ready

    def queue_bind(
        self,
        queue: str,
        exchange: str = "",
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Bind a queue to an exchange. All queues are bound to the default one by their names."""
        if exchange:
            names = self._name(exchange), self._name(queue)
            self._shared.run(self._exchanges.bind(*names, routing_key, arguments or {}))

    def queue_unbind(
        self,
        queue: str,
        exchange: str = "",
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Remove a binding; one that does not exist is ignored."""
        if exchange:
            names = self._name(exchange), self._name(queue)
            self._shared.run(self._exchanges.unbind(*names, routing_key, arguments or {}))

    def queue_delete(
        self,
        queue: str,
        if_unused: bool = False,  # noqa: FBT001, FBT002 - kombu passes it by place
        if_empty: bool = False,  # noqa: FBT001, FBT002 - as above
        **_: Any,
    ) -> None:
        """Delete a queue; one that does not exist is ignored."""
        name = self._name(queue)
        is_used = any(each.queue == name for each, _, _ in self._consumers.values())
        if not (if_unused and is_used):
            self._shared.run(self._exchanges.delete_queue(name, if_empty=if_empty))

    def after_reply_message_received(self, queue: str) -> None:
        """Delete a reply queue, as kombu does after each call of `inspect`; without waiting."""
        work = partial(self._exchanges.delete_queue, self._name(queue), if_empty=False)
        self._shared.post(lambda: self._shared.spawn(work()))

    def queue_purge(self, queue: str, **_: Any) -> int:
        """Remove the messages that are ready or delayed; return how many."""
        return self._shared.run(self._shared.broker.purge(self._name(queue)))

    def prepare_queue_arguments(
        self, arguments: dict[str, Any] | None, **options: Any
    ) -> dict[str, Any]:
        """Return kombu's settings of a queue as arguments of RabbitMQ."""
        prepared: dict[str, Any] = base.to_rabbitmq_queue_arguments(arguments or {}, **options)
        return prepared

    def get_bindings(self) -> list[dict[str, str]]:
        """Return all bindings, as kombu's management shows them."""
        return [
            {
                "source": decoded(each.router, self._prefix),
                "destination": decoded(each.queue, self._prefix),
                "routing_key": each.pattern,
            }
            for each in self._shared.run(self._exchanges.all())
        ]

    def _name(self, name: str) -> str:
        return encoded(name, self._prefix)

    # Publishing

    def prepare_message(
        self,
        body: Any,
        priority: int | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        headers: dict[str, Any] | None = None,
        properties: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Return a message to publish.

        kombu publishes again with the same `properties`. So the id is made here, once: a repeated
        message is stored once where the broker knows ids (G1).
        """
        properties = {} if properties is None else properties
        properties.setdefault("mqcore_id", uuid4().hex)
        properties.setdefault("priority", priority or 0)
        return {
            "body": body,
            "content-type": content_type,
            "content-encoding": content_encoding,
            "headers": headers or {},
            "properties": properties,
        }

    def basic_publish(
        self,
        message: dict[str, Any],
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,  # noqa: FBT001, FBT002 - kombu passes it by place
        timeout: float | None = None,
        **_: Any,
    ) -> None:
        """Publish, and return when the broker has confirmed it (G1)."""
        publish(
            self._shared,
            self._exchanges,
            message,
            exchange,
            routing_key,
            mandatory=mandatory,
            timeout=timeout,
        )

    # Consuming

    def basic_qos(
        self,
        prefetch_size: int = 0,  # noqa: ARG002 - of AMQP; no broker of kombu counts bytes
        prefetch_count: int = 0,
        apply_global: bool = False,  # noqa: ARG002, FBT001, FBT002 - as above; kombu passes it by place
    ) -> None:
        """Bound the unsettled messages of this channel; 0 stands for no limit."""
        self._prefetch = prefetch_count
        for subscription, _, _ in self._consumers.values():
            resizing = partial(subscription.resize, prefetch_count)
            self._shared.post(lambda work=resizing: self._shared.spawn(work()))  # type: ignore[misc]  # mypy: the default of a lambda
        self.connection.inbox.signal.set()  # what was held back may have room

    def basic_consume(
        self,
        queue: str,
        no_ack: bool,  # noqa: FBT001 - kombu passes it by place
        callback: Callable[[Message], None],
        consumer_tag: str = "",
        **_: Any,
    ) -> str:
        """Consume a queue."""
        tag = consumer_tag or uuid4().hex
        inbox = self.connection.inbox
        subscription = Subscription(self._shared, inbox, self._name(queue), tag, self._prefetch)
        self._consumers[tag] = subscription, no_ack, callback
        try:
            self._shared.run(subscription.start())
        except BaseException:
            del self._consumers[tag]
            raise
        return tag

    def basic_cancel(self, consumer_tag: str, **_: Any) -> None:
        """End a consumer. What was delivered can still be acknowledged."""
        if (consumer := self._consumers.pop(consumer_tag, None)) is None:
            return
        subscription = consumer[0]
        subscription.is_cancelled = True
        self._stopped.append(subscription)
        self._shared.run(subscription.stop())
        self.connection.give_back(subscription)

    def basic_get(self, queue: str, no_ack: bool = False, **_: Any) -> Message | None:  # noqa: FBT001, FBT002 - kombu passes it by place
        """Return the next message of a queue, or None when it has none."""
        received = self._shared.run(self._shared.get(self._name(queue)))
        return None if received is None else self._message(received, "", no_ack=no_ack)

    def can_take(self, arrival: Arrival) -> bool:
        """Whether the prefetch allows to deliver this message now."""
        consumer = self._consumers.get(arrival.subscription.tag)
        is_counted = consumer is None or not consumer[1]
        return not (self._prefetch and is_counted and len(self._unsettled) >= self._prefetch)

    def owns(self, subscription: Subscription) -> bool:
        """Whether a consumer is one of this channel, and has not ended."""
        consumer = self._consumers.get(subscription.tag)
        return consumer is not None and consumer[0] is subscription

    def deliver(self, arrival: Arrival) -> None:
        """Call kombu with a message."""
        _, no_ack, callback = self._consumers[arrival.subscription.tag]
        message = self._message(arrival.received, arrival.subscription.tag, no_ack=no_ack)
        if message is not None:
            callback(message)

    def _message(self, received: Received[bytes], tag: str, *, no_ack: bool) -> Message | None:
        """Return kombu's message; None for one that this transport has not published."""
        try:
            parts = unpacked(received.value)
        except ForeignMessage as error:
            _log.error(
                "queue %s: message %s is dead-lettered: %s", received.queue, received.id, error
            )
            self._settle(partial(received.reject, str(error)))
            return None

        number = next(self._tags)
        if no_ack:
            self._settle(received.ack)
        else:
            self._unsettled[number] = received
        info = {
            "exchange": parts.exchange,
            "routing_key": parts.routing_key,
            # A requeued message is a new copy, with one attempt more.
            "redelivered": received.redelivered or received.attempt > 1,
        }
        if tag:
            info["consumer_tag"] = tag
        return Message(
            body=parts.body,
            channel=self,
            delivery_tag=number,
            content_type=parts.content_type,
            content_encoding=parts.content_encoding,
            delivery_info=info,
            properties=parts.properties,
            headers=parts.headers,
        )

    def message_to_python(self, message: Message) -> Message:
        """Return a message that `basic_get` has returned."""
        return message

    # Settling: from any thread

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:  # noqa: FBT001, FBT002 - kombu passes it by place
        """Acknowledge a message, without waiting for the broker's answer."""
        for received in self._take(delivery_tag, multiple=multiple):
            self._settle(received.ack)

    def basic_reject(self, delivery_tag: int, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - as above
        """Requeue a message, which counts as an attempt, or dead-letter it."""
        for received in self._take(delivery_tag):
            self._settle(
                partial(received.retry, 0)
                if requeue
                else partial(received.reject, "rejected by its consumer")
            )

    def basic_recover(self, requeue: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - kombu passes it by place
        """Give back all messages that are unsettled."""
        while self._unsettled:
            _, received = self._unsettled.popitem()
            self._settle(received.release)

    def _take(self, tag: int, *, multiple: bool = False) -> list[Received[bytes]]:
        tags = [each for each in list(self._unsettled) if each <= tag] if multiple else [tag]
        taken = [self._unsettled.pop(each, None) for each in tags]
        return [received for received in taken if received is not None]

    def _settle(self, work: Callable[[], Any]) -> None:
        if self._shared.is_ours:
            self._shared.post(lambda: self._shared.spawn(work()))
            transport = self.connection
            if transport is not None and transport.inbox.ready:
                transport.inbox.signal.set()  # what was held back may have room now

    # The end

    def close(self) -> None:
        """Cancel all consumers, and give back what is unsettled."""
        if self.closed:
            return
        self.closed = True
        transport = self.connection
        subscriptions = [each for each, _, _ in self._consumers.values()]
        self._consumers.clear()
        for subscription in subscriptions:
            subscription.is_cancelled = True

        if self._shared.is_ours:
            self.basic_recover()
            self._shared.run(self._close([*subscriptions, *self._stopped]))
        if transport is not None:
            transport.close_channel(self)

    async def _close(self, subscriptions: list[Subscription]) -> None:
        end = monotonic() + _LAST_ANSWERS
        await self._shared.finished(_LAST_ANSWERS)
        for subscription in subscriptions:
            self._shared.spawn(subscription.close())
        await self._shared.finished(max(end - monotonic(), 0.0))
