"""The seam on RabbitMQ: two connections, so that a blocked publisher stops no acknowledgement.

publish ─► sender ─► plan, confirms ─► the publishing connection
subscribe ─► subscription ─► unsettled, settling ─► the consuming connection
declare, count, browse, bind ─► topology, operations, routes ─► the consuming connection
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from pydantic import BaseModel

from mqcore.spi import (
    Alterations,
    Backend,
    Binding,
    Capabilities,
    ConfigurationError,
    ConnectionLost,
    Delivery,
    Entry,
    ErrorKind,
    Outcome,
    Outgoing,
    QueueCounts,
    QueueSpec,
    Subscription,
    quarantine_of,
)
from mqcore_rabbitmq.capabilities import capabilities_of
from mqcore_rabbitmq.confirms import ConfirmChannels
from mqcore_rabbitmq.errors import classify
from mqcore_rabbitmq.layout import Layout
from mqcore_rabbitmq.link import DIRECT_REPLY, Link
from mqcore_rabbitmq.operations import Operations
from mqcore_rabbitmq.options import RabbitOptions, parameters
from mqcore_rabbitmq.registry import Registry
from mqcore_rabbitmq.routes import Routes
from mqcore_rabbitmq.rpc import Rpc
from mqcore_rabbitmq.sender import Sender
from mqcore_rabbitmq.settling import Settler
from mqcore_rabbitmq.subscription import RabbitSubscription
from mqcore_rabbitmq.topology import Topology

__all__ = ["RabbitBackend"]


class _Generation:
    """The parts of one generation: both connections and what uses them."""

    def __init__(self, publishing: Link, consuming: Link, options: RabbitOptions) -> None:
        self.server = publishing.server
        self.publishing, self.consuming = publishing, consuming
        self.confirm_channels = ConfirmChannels(publishing)
        # During an alarm, the broker does not read a connection that has published.
        rpc = Rpc(consuming, self.server)
        registry = Registry(rpc, self.confirm_channels)
        self.topology = Topology(rpc, registry)
        self.sender = Sender(self.confirm_channels, self.topology, native_routes=not options.quorum)
        self.settler = Settler(self.sender, self.topology, options.clock)
        self.operations = Operations(self.topology, self.settler)
        self.routes = Routes(self.topology, native=not options.quorum)
        self.subscriptions: set[RabbitSubscription] = set()


class RabbitBackend(Backend):
    """RabbitMQ 3.10 to 4.x."""

    scheme = ("amqp", "amqps")
    spi_version = 1
    Options = RabbitOptions
    reply_queues = ("amq.gen-", DIRECT_REPLY)

    def __init__(self, url: str, options: BaseModel) -> None:
        super().__init__(url, options)
        if not isinstance(options, RabbitOptions):
            raise ConfigurationError(
                f"the RabbitMQ backend takes RabbitOptions, not {type(options).__name__}"
            )
        self._clock = options.clock
        self._options = options
        self._hosts = parameters(url, options)
        self._now: _Generation | None = None
        self._capabilities: Capabilities

    # Connecting

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        """Connect twice and probe the server.

        Raises pika's errors, and an error of kind DENIED for a refused login or vhost.
        """
        await self.close()
        now: _Generation | None = None
        errors: list[Exception] = []

        def on_lost(error: Exception) -> None:
            errors.append(error)
            if now is not None and self._now is now and len(errors) == 1:
                lost(error)

        publishing, consuming = (Link(self._options.heartbeat + 2, on_lost) for _ in range(2))
        try:
            await publishing.open(self._hosts)
            await consuming.open(self._hosts)
            now = _Generation(publishing, consuming, self._options)
            self._capabilities = capabilities_of(
                now.server, self._options, await now.confirm_channels.alarm()
            )
            if errors:
                raise errors[0]  # noqa: TRY301 - as if the driver had raised it
        except BaseException:
            await asyncio.gather(publishing.close(), consuming.close())
            raise
        self._now = now
        return self._capabilities

    async def close(self) -> None:
        """Write the acknowledgements and close both connections, within 1.6 s."""
        now, self._now = self._now, None
        if now is None:
            return
        for subscription in list(now.subscriptions):
            subscription.end()
        for unsettled in now.settler.unsettled.values():
            unsettled.flush()
        now.settler.unsettled.clear()
        await asyncio.gather(now.publishing.close(), now.consuming.close(), return_exceptions=True)

    def classify(self, error: Exception) -> ErrorKind:
        """Return the kind of an exception of pika, of the system or of this driver."""
        return classify(error)

    @property
    def _open(self) -> _Generation:
        if self._now is None:
            places = ",".join(f"{host.host}:{host.port}" for host in self._hosts)
            raise ConnectionLost(f"the connection to RabbitMQ at {places} is closed; open it first")
        return self._now

    # Queues

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Declare queues. Raises `TopologyMismatch` and `DurabilityUnavailable`."""
        await self._open.topology.declare([self._layout(spec) for spec in queues])

    def _layout(self, spec: QueueSpec) -> Layout:
        if spec.durability is not None:
            self._capabilities.require_durability(spec.durability)
        if spec.max_length is not None and spec.overflow != "reject":
            raise ConfigurationError(
                f"queue {spec.name!r}: RabbitMQ keeps max_length with overflow='reject' only"
            )
        layout = Layout.of(spec, quorum=self._options.quorum, bands=self._options.bands)
        if layout.quorum and spec.max_length is not None:
            raise ConfigurationError(
                f"queue {spec.name!r}: max_length cannot be kept with quorum queues in bands"
            )
        return layout

    async def delete(self, queue: str, *, if_empty: bool = False) -> bool:
        """Remove a queue with its quarantine and bindings. Raises `QueueNotFound`."""
        now = self._open
        consumers = [it for it in now.subscriptions if it.queue in (queue, quarantine_of(queue))]
        gone = await now.operations.delete(queue, used=bool(consumers), if_empty=if_empty)
        for subscription in consumers if gone else ():
            subscription.gone()
        return gone

    def unwrap(self) -> Sequence[object]:
        """Return pika's consuming connection; an alarm stops the other one."""
        return [self._open.consuming.connection]

    # Messages

    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        """Store a batch, confirmed; an outcome for each."""
        return await self._open.sender.publish(batch, timeout, self._clock.now())

    async def subscribe(self, queue: str, *, prefetch: int, lease: float) -> Subscription:  # noqa: ARG002 - the connection is the lease
        """Start to consume. Raises `QueueNotFound`."""
        now = self._open
        await now.topology.refresh([queue])  # others may have declared it with other bands
        channel = await now.consuming.channel()
        try:
            subscription = RabbitSubscription(
                queue, prefetch, channel, now.topology, now.settler, self._clock
            )
            await subscription.start()
        except BaseException:
            channel.abandon()
            raise
        now.subscriptions.add(subscription)
        subscription.on_end = partial(now.subscriptions.discard, subscription)
        return subscription

    # Operators' requests

    async def count(self, queues: Sequence[str] | None = None) -> Sequence[QueueCounts]:
        """Count the named queues, or all except quarantines and temporary ones."""
        return await self._open.operations.count(queues)

    async def browse(self, queue: str, limit: int, after: str | None = None) -> Sequence[Entry]:
        """Show a page of what is ready. Raises `QueueNotFound`."""
        return await self._open.operations.browse(queue, limit, after, self._clock.now())

    async def take(self, queue: str, keys: Sequence[str], lease: float) -> Sequence[Delivery]:  # noqa: ARG002 - as in subscribe
        """Hold the entries with these keys. Raises `QueueNotFound`."""
        return await self._open.operations.take(queue, keys, self._clock.now())

    async def purge(self, queue: str) -> int:
        """Remove what is ready. Raises `QueueNotFound`."""
        return await self._open.operations.purge(queue)

    async def diagnose(self) -> Sequence[str]:
        """Describe what is wrong with the records of queues and bindings."""
        return await self._open.topology.registry.diagnose()

    async def alter(self, queue: str, settings: Alterations) -> None:
        """Change the ttl of a queue. Raises `QueueNotFound` and `TopologyMismatch`."""
        await self._open.topology.alter(queue, settings)

    async def bind(self, bindings: Sequence[Binding]) -> None:
        """Add bindings, native ones too. Raises `TopologyMismatch`."""
        await self._open.routes.bind(bindings)

    async def unbind(self, bindings: Sequence[Binding]) -> None:
        """Remove bindings."""
        await self._open.routes.unbind(bindings)

    async def bindings(self, router: str | None = None) -> Sequence[Binding]:
        """Return the bindings of one router, or all."""
        return await self._open.routes.bindings(router)
