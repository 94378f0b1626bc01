"""What is not declared: it is refused, and it does not work."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from mqcore.broker import Broker
from mqcore.contract.case import case
from mqcore.contract.cases.capability.common import OPEN
from mqcore.contract.kit import ContractError
from mqcore.errors import DurabilityUnavailable, UnsupportedFeature
from mqcore.queue import Queue
from mqcore.router import Router
from mqcore.rules.retry import RetryPolicy, fixed
from mqcore.spi import (
    STORED,
    Backend,
    Capabilities,
    Capability,
    Durability,
    ErrorKind,
    Outgoing,
    QueueSpec,
    Stored,
    Subscription,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mqcore.contract.kit import Kit
    from mqcore.spi import Outcome


_CORE = "mqcore itself: this is not a fault of the driver"


_DELAY = _LEASE = 0.5


_SEVERAL = 6


# Not declared: refused before anything is sent


class _Bare(Backend):
    """The author's backend without optional protocols, which records what core sends.

    Unless `declared`, it also declares no capability.
    """

    scheme = "bare"

    def __init__(self, inner: Backend, sent: list[str], *, declared: bool = False) -> None:
        """Forward to `inner` what core calls, and record it in `sent`.

        `declared`: keep the capabilities that `inner` declares.
        """
        super().__init__("", Backend.Options())
        self._inner, self._sent, self._declared = inner, sent, declared

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        """Open, and by default declare nothing."""
        capabilities = await self._inner.open(lost)
        return (
            capabilities
            if self._declared
            else replace(capabilities, durability=Durability.MEMORY, supports={})
        )

    async def close(self) -> None:
        """Close."""
        await self._inner.close()

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Record the call, and forward it."""
        self._sent.append(f"declare of {', '.join(spec.name for spec in queues)}")
        await self._inner.declare(queues)

    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        """Record the call, and forward it."""
        self._sent.append(f"publish to {', '.join(str(out.to) for out in batch)}")
        return await self._inner.publish(batch, timeout=timeout)

    async def subscribe(self, queue: str, *, prefetch: int, lease: float) -> Subscription:
        """Record the call, and forward it."""
        self._sent.append(f"subscribe to {queue}")
        return await self._inner.subscribe(queue, prefetch=prefetch, lease=lease)

    def classify(self, error: Exception) -> ErrorKind:
        """Forward to the author's backend."""
        return self._inner.classify(error)


@dataclass(frozen=True)
class _Request:
    """A request of an application, and the capability it needs.

    None: it needs only a `Supports…` protocol.
    """

    capability: Capability | None
    ask: Callable[[Broker, str], Awaitable[Any]]


async def _consume_with_retries(broker: Broker, name: str) -> None:
    async with broker.consume(Queue(name, declare=False), retry=RetryPolicy(2, fixed(1.0))):
        pass


_REQUESTS = {
    "priority": _Request(
        Capability.PRIORITY, lambda broker, name: broker.publish(name, b"", priority=9)
    ),
    "priority of many": _Request(
        Capability.PRIORITY, lambda broker, name: broker.publish_many(name, [b"", b""], priority=0)
    ),
    "delay": _Request(Capability.DELAY, lambda broker, name: broker.publish(name, b"", delay=1)),
    "retry after a wait": _Request(Capability.DELAY, _consume_with_retries),
    "ttl": _Request(Capability.EXPIRY, lambda broker, name: broker.publish(name, b"", ttl=5)),
    "ttl of a queue": _Request(
        Capability.EXPIRY, lambda broker, name: broker.declare(Queue(name, ttl=60))
    ),
    "max_length": _Request(
        Capability.MAX_LENGTH, lambda broker, name: broker.declare(Queue(name, max_length=5))
    ),
    "publish to a bounded queue": _Request(
        Capability.MAX_LENGTH, lambda broker, name: broker.publish(Queue(name, max_length=5), b"")
    ),
    "router": _Request(
        Capability.ROUTING,
        lambda broker, name: broker.declare(Router(f"{name}.r", kind="fanout").bind(Queue(name))),
    ),
    "publish to a router": _Request(
        Capability.ROUTING,
        lambda broker, name: broker.publish(Router(f"{name}.r", kind="fanout"), b""),
    ),
    "peek": _Request(Capability.BROWSE, lambda broker, name: broker.peek(name)),
    "list of dead letters": _Request(
        Capability.BROWSE, lambda broker, name: broker.dead_letters(name).list()
    ),
    "counts": _Request(None, lambda broker, name: broker.counts(name)),
    "purge": _Request(None, lambda broker, name: broker.purge(name)),
    "delete": _Request(None, lambda broker, name: broker.delete(name)),
}


async def _is_refused(kit: Kit, request: _Request, look: str, *, declared: bool) -> None:
    """Fail unless core refuses the request without calling the driver.

    Only `open` and `close` are allowed.
    """
    sent: list[str] = []
    inner = kit.harness.make_backend
    broker = await kit.broker(make_backend=lambda: _Bare(inner(), sent, declared=declared))
    await kit.raises(
        UnsupportedFeature,
        request.ask(broker, kit.name()),
        "UnsupportedFeature, raised by core",
        look,
    )
    kit.same(sent, [], "calls of the driver", _CORE)


@case("G16", ids="U02", each=_REQUESTS)
async def what_nobody_declared_is_refused_before_anything_is_sent(
    kit: Kit, request: _Request
) -> None:
    """Without a capability core raises UnsupportedFeature and calls no method of the driver."""
    await _is_refused(kit, request, _CORE, declared=False)


@case("G16", ids="U02", each=_REQUESTS)
async def what_this_backend_does_not_declare_is_refused(kit: Kit, request: _Request) -> None:
    """Requests that need a capability this backend lacks raise UnsupportedFeature."""
    if request.capability is not None and not kit.capabilities.has(request.capability):
        await _is_refused(kit, request, OPEN, declared=True)


@case("G16", ids="U02")
async def a_broker_that_asks_for_too_much_durability_does_not_open(kit: Kit) -> None:
    """Connecting with more `durability=` than there is raises DurabilityUnavailable.

    Nothing has been declared by then.
    """
    sent: list[str] = []
    queue = Queue(kit.name())
    broker = Broker(
        make_backend=lambda: _Bare(kit.harness.make_backend(), sent),
        clock=kit.clock,
        durability="process",
        queues=[queue],
    )
    await kit.raises(
        DurabilityUnavailable, broker.open(), "DurabilityUnavailable, raised by core", _CORE
    )
    kit.same(sent, [], "calls of the driver", _CORE)


# Not declared, and it works


async def _priority_works(kit: Kit) -> bool:
    queue = await kit.queue()
    batch = [
        Outgoing(queue, kit.message(priority=priority))
        for priority in (0, 10)
        for _ in range(_SEVERAL)
    ]
    outcomes = await kit.publish(*batch)
    if not all(isinstance(outcome, Stored) for outcome in outcomes):
        return False
    expected = [out.message.id for out in [*batch[_SEVERAL:], *batch[:_SEVERAL]]]

    return kit.ids(await kit.drain(await kit.subscribe(queue))) == expected


async def _delay_works(kit: Kit) -> bool:
    queue = await kit.queue()
    consumer = await kit.subscribe(queue)
    before = kit.now
    if await kit.publish(Outgoing(queue, kit.message(), delay=_DELAY)) != [STORED]:
        return False
    actual = await kit.receive(consumer, wait=_DELAY + kit.harness.silence)
    return bool(actual) and kit.now - before >= 0.9 * _DELAY


async def _dedup_works(kit: Kit) -> bool:
    queue = await kit.queue()
    out = Outgoing(queue, kit.message())
    outcomes = [*await kit.publish(out), *await kit.publish(out)]
    if not all(isinstance(outcome, Stored) for outcome in outcomes):
        return False
    return (await kit.contents(queue)).total() == 1


async def _lease_works(kit: Kit) -> bool:
    queue = await kit.queue()
    await kit.put(queue, "a")
    owner, other = (
        await kit.subscribe(queue, lease=_LEASE),
        await kit.subscribe(queue, lease=_LEASE),
    )
    await kit.take(owner, 1)
    return bool(await kit.receive(other, wait=_LEASE + 1.0))


async def _max_length_works(kit: Kit) -> bool:
    try:
        queue = await kit.queue(max_length=1)
    except ContractError:
        raise
    except Exception:  # noqa: BLE001 - a driver may refuse what it does not declare in its own words
        return False
    outcomes = await kit.publish(*[Outgoing(queue, kit.message()) for _ in range(_SEVERAL)])
    return sum(isinstance(outcome, Stored) for outcome in outcomes) == 1


_WORKS = {
    "PRIORITY": (Capability.PRIORITY, _priority_works),
    "DELAY": (Capability.DELAY, _delay_works),
    "DEDUP": (Capability.DEDUP, _dedup_works),
    "LEASE": (Capability.LEASE, _lease_works),
    "MAX_LENGTH": (Capability.MAX_LENGTH, _max_length_works),
}


@case("G16", ids="U03", each=_WORKS)
async def what_works_is_declared(
    kit: Kit, probe: tuple[Capability, Callable[[Kit], Awaitable[bool]]]
) -> None:
    """A capability that works is declared: it is tried on the backend where it is not."""
    capability, works = probe
    if not kit.capabilities.has(capability) and await works(kit):
        raise ContractError(f"{capability.name} declared, for it works", "it is not declared", OPEN)
