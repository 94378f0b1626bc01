"""The seam: two connections, and what is done on them.

publish ─► sender ─► ladder, confirms ─► the publishing connection
subscribe ─► subscription ─► window ─► the consuming connection, so that a blocked publisher never stops an acknowledgement
declare, count, browse, bind ─► topology, manage, routes ─► either, and the registry for what AMQP does not tell
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from functools import partial

from pydantic import BaseModel

from mqcore.spi import (
    Backend,
    Binding,
    Capabilities,
    ConfigurationError,
    ConnectionLost,
    Delivery,
    Entry,
    ErrorKind,
    Failed,
    Outcome,
    Outgoing,
    QueueCounts,
    QueueSpec,
    Settled,
    Settlement,
    Subscription,
)
from mqcore_rabbitmq.capabilities import capabilities_of
from mqcore_rabbitmq.confirms import Each, Sending
from mqcore_rabbitmq.errors import classify
from mqcore_rabbitmq.layout import Layout, Server, compare
from mqcore_rabbitmq.link import Link
from mqcore_rabbitmq.manage import Manager
from mqcore_rabbitmq.options import RabbitOptions, parameters
from mqcore_rabbitmq.registry import Registry
from mqcore_rabbitmq.routes import Routes
from mqcore_rabbitmq.sender import QUEUES, RECORDS, Sender
from mqcore_rabbitmq.settling import Passing, Settling
from mqcore_rabbitmq.subscription import RabbitSubscription
from mqcore_rabbitmq.topology import Admin
from mqcore_rabbitmq.window import Held, Window, read_receipt

__all__ = ["RabbitBackend"]

_A_MOMENT = 0.1
"""Seconds after which the last acknowledgements of a channel are written."""


class _Open:
    """Everything that belongs to one generation."""

    def __init__(
        self, publishing: Link, consuming: Link, capabilities: Capabilities, sender: Sender, admin: Admin
    ) -> None:
        self.publishing, self.consuming, self.capabilities = publishing, consuming, capabilities
        self.sender, self.admin = sender, admin
        self.manager = Manager(sender, admin, consuming)
        self.routes = Routes(sender.registry, admin)


class RabbitBackend(Backend):
    """RabbitMQ 3.10 to 4.x."""

    scheme = ("amqp", "amqps")
    Options = RabbitOptions

    def __init__(self, url: str, options: BaseModel) -> None:
        super().__init__(url, options)
        if not isinstance(options, RabbitOptions):
            raise ConfigurationError(f"the RabbitMQ backend takes RabbitOptions, not {type(options).__name__}")
        self.clock = options.clock
        self.generation = b""
        self.passing = Passing()
        self._options = options
        self._hosts = parameters(url, options)
        self._now: _Open | None = None
        self._windows: dict[int, Window] = {}
        self._subscriptions: set[RabbitSubscription] = set()

    # Connecting

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        """Connect twice and look at the server. Raises what the driver says, DENIED for a login or vhost that is refused."""
        await self.close()
        told = False
        generation = self.generation = os.urandom(4)

        def on_lost(error: Exception) -> None:
            nonlocal told
            if not told and self.generation == generation:
                told = True
                lost(error)

        publishing, consuming = (Link(self._options.heartbeat + 2, on_lost) for _ in range(2))
        try:
            await publishing.open(self._hosts)
            await consuming.open(self._hosts)
            server = Server(
                str(publishing.properties.get("product", "?")), str(publishing.properties.get("version", "0"))
            )
            admin = Admin(consuming, server)  # a connection that has published is not read at all while an alarm is on
            sender = Sender(publishing, admin, native_routes=not self._options.quorum)
            sender.registry = Registry(
                consuming, lambda: sender.confirms(RECORDS), lambda: publishing.blocked is not None
            )
            capabilities = capabilities_of(server, self._options, await sender.alarm())
            self._now = _Open(publishing, consuming, capabilities, sender, admin)
        except BaseException:
            await asyncio.gather(publishing.close(), consuming.close())
            raise
        return capabilities

    async def close(self) -> None:
        """Write what was settled and let go of both connections; at most 1.6 s."""
        now, self._now = self._now, None
        self.generation = b""
        for subscription in list(self._subscriptions):
            subscription.end()
        self._subscriptions.clear()
        for window in self._windows.values():
            window.flush()
        self._windows.clear()
        if now is not None:
            await asyncio.gather(now.publishing.close(), now.consuming.close(), return_exceptions=True)

    def classify(self, error: Exception) -> ErrorKind:
        """Say what kind an exception of pika, of the system or of ours is."""
        return classify(error)

    @property
    def _open(self) -> _Open:
        if self._now is None:
            raise ConnectionLost(f"the connection to RabbitMQ at {self._place()} is closed; open it first")
        return self._now

    def _place(self) -> str:
        return ",".join(f"{host.host}:{host.port}" for host in self._hosts)

    # Queues

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Make sure of queues. Raises `TopologyMismatch`, and `DurabilityUnavailable` for more than this server gives."""
        now = self._open
        layouts = {spec.name: self._layout(spec, now.capabilities) for spec in queues}
        temporary = [layout for layout in layouts.values() if layout.spec.role == "temporary"]
        lasting = [layout for layout in layouts.values() if layout.spec.role != "temporary"]
        if lasting:
            await now.sender.refresh([])
            for layout in lasting:
                await self._reconcile(layout, layouts)
            lasting = [layouts[layout.name] for layout in lasting]
            await now.admin.declare(lasting)
            known = now.sender.registry.picture.queues
            await now.sender.registry.append(
                [layout.record() for layout in lasting if known.get(layout.name) != layout]
            )
        for layout in temporary:
            await now.admin.temporary(layout, now.consuming)
            now.sender.own[layout.name] = layout

    def _layout(self, spec: QueueSpec, capabilities: Capabilities) -> Layout:
        options = self._options
        if spec.durability is not None:
            capabilities.require_durability(spec.durability)
        if spec.max_length is not None and spec.overflow != "reject":
            raise ConfigurationError(f"queue {spec.name!r}: RabbitMQ keeps max_length with overflow='reject' only")
        layout = Layout.of(spec, quorum=options.quorum, bands=options.bands)
        if layout.quorum and spec.max_length is not None:
            raise ConfigurationError(f"queue {spec.name!r}: max_length cannot be kept with quorum queues in bands")
        return layout

    async def _reconcile(self, want: Layout, layouts: dict[str, Layout]) -> None:
        """Compare with what others have declared; one that is as it should be, or better, is taken as it is."""
        now = self._open
        have = now.sender.registry.picture.queues.get(want.name)
        if have is None or have == want:
            return
        try:
            compare(have, want)
        except ConfigurationError:
            (found,) = await now.admin.counts([have.name])
            if found is not None:
                raise
            return  # somebody deleted it without mqcore: what the registry says is out of date
        layouts[want.name] = have

    # Messages

    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        """Store a batch, confirmed; an outcome for each."""
        return await self._open.sender.publish(batch, timeout, self.clock.now(), moved=False)

    async def subscribe(self, queue: str, *, prefetch: int, lease: float) -> Subscription:  # noqa: ARG002 - the connection is the lease
        """Start to consume. Raises `QueueNotFound`."""
        now = self._open
        if queue not in now.sender.own:
            await now.sender.refresh([queue])  # others may have deleted it and declared it with other bands
        layout = now.sender.layout(queue)
        careful = layout is not None and layout.spec.role == "quarantine"
        subscription = RabbitSubscription(self, queue, prefetch, await now.consuming.channel(), careful=careful)
        await subscription.start([queue] if layout is None else layout.queues)
        self._windows[subscription.window.channel.serial] = subscription.window
        self._subscriptions.add(subscription)
        return subscription

    def leave(self, subscription: RabbitSubscription) -> None:
        """Forget a subscription that was closed."""
        self._subscriptions.discard(subscription)
        self._windows.pop(subscription.window.channel.serial, None)

    def ttl_of(self, queue: str) -> float | None:
        """Return the ttl of a queue as far as it is known."""
        layout = self._now.sender.layout(queue) if self._now is not None else None
        return layout.spec.ttl if layout is not None else None

    def refuge(self, queue: str) -> str:
        """Return the queue of the broker in which something that was in `queue` is stored again without being refused."""
        layout = self._now.sender.layout(queue) if self._now is not None else None
        return queue if layout is None or layout.due is None else layout.due

    async def pause(self, windows: set[Window]) -> None:
        """Let the subscriptions of these windows take nothing more for now."""
        for subscription in list(self._subscriptions):
            if subscription.window in windows:
                await subscription.pause()

    def held_by(self, receipt: bytes) -> tuple[Window, Held] | None:
        """Return what a receipt stands for, None when it is not ours any more."""
        found = read_receipt(receipt, self.generation)
        window = self._windows.get(found[0]) if found else None
        if found is None or window is None or not window.alive:
            return None
        held = window.held.get(found[1])
        return (window, held) if held is not None and held.out and not held.busy else None

    async def settle(self, batch: Sequence[Settlement], timeout: float) -> Sequence[Settled]:
        """Settle for whichever subscription handed it out."""
        return await Settling(self, batch).run(timeout)

    async def store(
        self, moves: Sequence[Outgoing], copies: Sequence[Sending], timeout: float, each: Each
    ) -> list[Outcome]:
        """Store successors and copies that are given back; an outcome for each, the moves first; `each` hears at once."""
        try:
            sender, now = self._open.sender, self.clock.now()
            gifts = sender.send(
                [(QUEUES, copy) for copy in copies], timeout, lambda at, outcome: each(len(moves) + at, outcome)
            )
            stored = await asyncio.gather(sender.publish(moves, timeout, now, moved=True, each=each), gifts)
        except Exception as error:  # noqa: BLE001 - whatever it was, nothing is known to be stored, so no source may go
            failed = Failed(classify(error), f"{error}", error)
            return [failed] * (len(moves) + len(copies))
        return [*stored[0], *stored[1]]

    # Looking and tidying

    async def count(self, queues: Sequence[str] | None = None) -> Sequence[QueueCounts]:
        """Count the named queues, or all but quarantines and temporary ones; what others hold is not told by AMQP."""
        return await self._open.manager.count(queues, list(self._windows.values()), self.clock.now())

    async def browse(self, queue: str, limit: int, after: str | None = None) -> Sequence[Entry]:
        """Show a page of what is ready. Raises `QueueNotFound`."""
        return await self._open.manager.browse(queue, limit, after, self.clock.now())

    async def take(self, queue: str, keys: Sequence[str], lease: float) -> Sequence[Delivery]:  # noqa: ARG002 - as in subscribe
        """Hold chosen entries. Raises `QueueNotFound`."""
        window, deliveries = await self._open.manager.take(queue, keys, self.generation, self.clock.now())
        if deliveries:
            self._windows[window.channel.serial] = window
            window.on_room = partial(self._drop_when_empty, window)
        return deliveries

    def _drop_when_empty(self, window: Window) -> None:
        """Close the channel of what was taken once all of it is settled."""
        if not window.held:
            self._windows.pop(window.channel.serial, None)
            asyncio.get_running_loop().call_later(_A_MOMENT, window.channel.abandon)

    async def purge(self, queue: str) -> int:
        """Remove what is ready. Raises `QueueNotFound`."""
        return await self._open.manager.purge(queue)

    async def delete(self, queue: str, *, if_empty: bool = False, if_unused: bool = False) -> bool:
        """Remove a queue with its quarantine and bindings. Raises `QueueNotFound`."""
        windows = list(self._windows.values())
        consumers = [it for it in self._subscriptions if it.queue in (queue, f"{queue}.again")]
        gone = await self._open.manager.delete(
            queue, windows, used=bool(consumers), if_empty=if_empty, if_unused=if_unused
        )
        if gone:
            for subscription in consumers:
                subscription.gone()
        return gone

    async def bind(self, bindings: Sequence[Binding]) -> None:
        """Add bindings, native ones too. Raises `TopologyMismatch`."""
        await self._open.routes.bind(bindings)

    async def unbind(self, bindings: Sequence[Binding]) -> None:
        """Remove bindings."""
        await self._open.routes.unbind(bindings)

    async def bindings(self, router: str | None = None) -> Sequence[Binding]:
        """Return the bindings of one router, or all."""
        return await self._open.routes.bindings(router)
