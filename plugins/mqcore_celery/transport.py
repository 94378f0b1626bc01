"""The transport: what a `kombu.Connection` connects with."""

from __future__ import annotations

from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING, Any

from kombu.exceptions import ChannelError
from kombu.transport import base
from kombu.utils.compat import detect_environment

from mqcore import (
    Blocked,
    BrokerError,
    ConfigurationError,
    ConnectionLost,
    MqcoreError,
    PublishUnknown,
)
from mqcore_celery import options
from mqcore_celery.channel import Channel
from mqcore_celery.inbox import Inbox
from mqcore_celery.shared import SharedBroker, acquire
from mqcore_celery.url import Address, address_of

if TYPE_CHECKING:
    from mqcore_celery.consuming import Arrival, Subscription

__all__ = ["Transport"]


class Transport(base.Transport):
    """The transport of one `kombu.Connection`, and its connection too.

    Nothing is opened before `establish_connection`: Celery makes transports, and forks afterwards.
    """

    can_parse_url = True
    driver_type = driver_name = "mqcore"
    connection_errors = (ConnectionLost, PublishUnknown, Blocked)
    channel_errors = (ChannelError, BrokerError, ConfigurationError)
    recoverable_connection_errors = connection_errors
    recoverable_channel_errors = ()
    implements = base.Transport.implements.extend(
        asynchronous=True,
        exchange_type=frozenset(("direct", "topic", "fanout", "headers")),
        heartbeats=False,
    )

    def __init__(self, client: Any, **kwargs: Any) -> None:
        """Move user and password out of the connection's `hostname`.

        Celery publishes that in `inspect stats`, and removes the password alone.
        """
        super().__init__(client, **kwargs)
        self.channels: list[Channel] = []
        self.inbox = Inbox()
        self._shared: SharedBroker | None = None
        self._hub: Any = None
        self._address: Address | None = None
        with suppress(ConfigurationError):  # raised where it is connected
            self._address = address = address_of(client)
            client.hostname, client.userid, client.password = (
                address.url,
                address.user,
                address.password,
            )

    # The connection

    def establish_connection(self) -> Transport:
        """Connect, or share the connection that this process has. Raises what prevents it."""
        if (environment := detect_environment()) != "default":
            raise ConfigurationError(
                f"mqcore's transport does not work under {environment}, which replaces threads and "
                "sockets. Use the pool prefork, threads or solo"
            )
        own = options.read(self.client.transport_options or {})
        self._address = self._address or address_of(self.client)
        if self.inbox.error is not None:  # its channels belong to the connection that was lost
            self._close()
        if self._shared is None:
            self._shared = shared = acquire(self._address.whole, own)
            self.inbox.error = None
            shared.inboxes.add(self.inbox)
        return self

    def verify_connection(self, connection: Transport) -> bool:
        """Whether it is open, and belongs to this process."""
        shared = connection._shared
        return shared is not None and shared.is_ours and connection.inbox.error is None

    def close_connection(self, connection: Transport) -> None:
        """Close its channels, and the broker when no other connection uses it."""
        connection._close()

    def _collect(self, connection: Transport | None) -> None:
        """Forget the connection, after an error or a fork."""
        if connection is not None:
            connection._close()  # noqa: SLF001 - of the same class

    def _close(self) -> None:
        shared, self._shared = self._shared, None
        if shared is None:
            return
        channels, self.channels = self.channels, []
        shared.inboxes.discard(self.inbox)
        if shared.is_ours:
            for channel in channels:
                with suppress(MqcoreError):
                    channel.close()
            self.unregister_from_event_loop(self, self._hub)
            shared.release()
        self.inbox.ready.clear()

    def create_channel(self, connection: Transport) -> Channel:
        """Return a new channel."""
        if connection._shared is None:
            raise ConnectionLost("the connection is closed; connect again")
        channel = Channel(connection, connection._shared)
        connection.channels.append(channel)
        return channel

    def close_channel(self, channel: Channel) -> None:
        """Forget a channel that was closed."""
        with suppress(ValueError):
            self.channels.remove(channel)
        channel.connection = None

    def driver_version(self) -> str:
        """Return the version of mqcore."""
        from importlib.metadata import version  # noqa: PLC0415 - rarely needed

        return version("mqcore")

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:  # noqa: ARG002, FBT001, FBT002 - kombu's signature
        """Return the URL to show. Only `include_password` shows the password."""
        if self._address is None:
            return "mqcore://"
        return self._address.written if include_password else self._address.masked(mask)

    # Receiving

    def drain_events(self, connection: Transport, timeout: float | None = None, **_: Any) -> None:
        """Deliver all that has come in, or wait for it. Raises `socket.timeout`."""
        deadline = None if timeout is None else monotonic() + timeout
        while not connection._deliver():
            left = None if deadline is None else deadline - monotonic()
            if (left is not None and left <= 0) or not connection.inbox.signal.wait(left):
                raise TimeoutError("nothing has come in")

    def register_with_event_loop(self, connection: Transport, loop: Any) -> None:
        """Let Celery's event loop wait for what comes in. May be called again after its reset."""
        connection._hub = loop
        loop.add_reader(connection.inbox.signal.fileno(), self.on_readable, connection, loop)

    def unregister_from_event_loop(self, connection: Transport, loop: Any) -> None:
        """Do not wait any more."""
        if loop is not None:
            with suppress(Exception):
                loop.remove_reader(connection.inbox.signal.fileno())
            connection._hub = None

    def on_readable(self, connection: Transport, loop: Any) -> None:  # noqa: ARG002 - kombu's signature
        """Deliver all that has come in."""
        connection._deliver()

    def _deliver(self) -> int:
        """Deliver what the channels may take; return how many. Raises why the connection ended.

        The signal is cleared first: what comes in from now on gives another one.
        """
        inbox = self.inbox
        inbox.signal.clear()
        if inbox.error is not None:
            raise inbox.error

        delivered = 0
        held_back: list[Arrival] = []
        try:
            while inbox.ready:
                arrival = inbox.ready.popleft()
                channel = self._channel_of(arrival)
                if channel is None:
                    self._release(arrival)
                elif channel.can_take(arrival):
                    delivered += 1
                    channel.deliver(arrival)
                else:
                    held_back.append(arrival)
        finally:
            inbox.ready.extendleft(reversed(held_back))
            # An acknowledgement of another thread gave no signal while these were not in `ready`.
            if any(self._has_room(arrival) for arrival in held_back):
                inbox.signal.set()
        return delivered

    def _has_room(self, arrival: Arrival) -> bool:
        """Whether a message need not be held back."""
        channel = self._channel_of(arrival)
        return channel is None or channel.can_take(arrival)

    def _channel_of(self, arrival: Arrival) -> Channel | None:
        owners = (each for each in self.channels if each.owns(arrival.subscription))
        return next(owners, None)

    def give_back(self, subscription: Subscription) -> None:
        """Release what has come in for a consumer that was cancelled."""
        for _ in range(len(self.inbox.ready)):
            arrival = self.inbox.ready.popleft()
            if arrival.subscription is subscription:
                self._release(arrival)
            else:
                self.inbox.ready.append(arrival)

    def _release(self, arrival: Arrival) -> None:
        shared = self._shared
        if shared is not None:
            shared.post(lambda: shared.spawn(arrival.received.release()))
