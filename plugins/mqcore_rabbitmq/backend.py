"""The seam: two connections, and what is done on them.

publish ─► sender ─► ladder, confirms ─► the publishing connection subscribe ─► subscription ─►
unsettled ─► the consuming connection, so that a blocked publisher never stops an acknowledgement
declare, count, browse, bind ─► topology, manage, routes ─► either, and the registry for what AMQP
does not tell
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
)
from mqcore_rabbitmq.capabilities import capabilities_of
from mqcore_rabbitmq.confirms import ConfirmChannels
from mqcore_rabbitmq.errors import classify
from mqcore_rabbitmq.layout import Layout, Server
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
    """Everything that belongs to one generation."""

    def __init__(self, publishing: Link, consuming: Link, options: RabbitOptions) -> None:
        said = publishing.properties
        product, version = str(said.get("product", "?")), str(said.get("version", "0"))
        self.server = Server(product, version, publishing.user, publishing.room)
        self.publishing, self.consuming = publishing, consuming
        self.confirm_channels = ConfirmChannels(publishing)
        rpc = Rpc(
            consuming, self.server
        )  # a connection that has published is not read at all while an alarm is on
        registry = Registry(rpc, self.confirm_channels)
        self.topology = Topology(rpc, registry)
        self.sender = Sender(self.confirm_channels, self.topology, native_routes=not options.quorum)
        self.settler = Settler(self.sender, self.topology, options.clock)
        self.operations = Operations(self.topology, self.settler)
        self.routes = Routes(registry, rpc)
        self.subscriptions: set[RabbitSubscription] = set()


class RabbitBackend(Backend):
    """RabbitMQ 3.10 to 4.x."""

    scheme = ("amqp", "amqps")
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
        """Connect twice and look at the server.

        Raises what the driver says, DENIED for a login or vhost that is refused.
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
        """Write what was settled and let go of both connections; at most 1.6 s."""
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
        """Say what kind an exception of pika, of the system or of ours is."""
        return classify(error)

    @property
    def _open(self) -> _Generation:
        if self._now is None:
            places = ",".join(f"{host.host}:{host.port}" for host in self._hosts)
            raise ConnectionLost(f"the connection to RabbitMQ at {places} is closed; open it first")
        return self._now

    # Queues

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Make sure of queues.

        Raises `TopologyMismatch`, and `DurabilityUnavailable` for more than this server gives.
        """
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

    async def delete(self, queue: str, *, if_empty: bool = False, if_unused: bool = False) -> bool:
        """Remove a queue with its quarantine and bindings. Raises `QueueNotFound`."""
        now = self._open
        consumers = [it for it in now.subscriptions if it.queue in (queue, f"{queue}.again")]
        gone = await now.operations.delete(
            queue, used=bool(consumers), if_empty=if_empty, if_unused=if_unused
        )
        for subscription in consumers if gone else ():
            subscription.gone()
        return gone

    def unwrap(self) -> Sequence[object]:
        """Return pika's connection: the one that consumes, because a broker with an alarm does not read the other."""
        return [self._open.consuming.connection]

    # Messages

    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        """Store a batch, confirmed; an outcome for each."""
        return await self._open.sender.publish(batch, timeout, self._clock.now())

    async def subscribe(self, queue: str, *, prefetch: int, lease: float) -> Subscription:  # noqa: ARG002 - the connection is the lease
        """Start to consume. Raises `QueueNotFound`."""
        now = self._open
        await now.topology.refresh([queue])  # others may have declared it anew, with other bands
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

    # Looking and tidying

    async def count(self, queues: Sequence[str] | None = None) -> Sequence[QueueCounts]:
        """Count the named queues, or all but quarantines and temporary ones; what others hold is not told by AMQP."""
        return await self._open.operations.count(queues, self._clock.now())

    async def browse(self, queue: str, limit: int, after: str | None = None) -> Sequence[Entry]:
        """Show a page of what is ready. Raises `QueueNotFound`."""
        return await self._open.operations.browse(queue, limit, after, self._clock.now())

    async def take(self, queue: str, keys: Sequence[str], lease: float) -> Sequence[Delivery]:  # noqa: ARG002 - as in subscribe
        """Hold chosen entries. Raises `QueueNotFound`."""
        return await self._open.operations.take(queue, keys, self._clock.now())

    async def purge(self, queue: str) -> int:
        """Remove what is ready. Raises `QueueNotFound`."""
        return await self._open.operations.purge(queue)

    async def diagnose(self) -> Sequence[str]:
        """Say which records of queues and bindings cannot be read."""
        return await self._open.topology.registry.diagnose()

    async def alter(self, queue: str, settings: Alterations) -> None:
        """Change what mqcore itself keeps of a queue: its ttl.

        Raises `QueueNotFound`, and `TopologyMismatch` for the rest.
        """
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
