"""Profile *capability*: what a backend says of itself is true, from three sides (G16).

Declared: the limits are those of `docs/semantics.md`, and that they hold is shown by the other
profiles. Not declared: core refuses it before anything is sent. Not declared, yet it works: a
failure too, so that no application goes without what it could have.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from mqcore.broker import Broker
from mqcore.contract.case import case
from mqcore.contract.kit import ContractError, NotShown
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
    Level,
    Outgoing,
    QueueSpec,
    Stored,
    Subscription,
    SupportsAlter,
    SupportsBind,
    SupportsBrowse,
    SupportsRenew,
    SupportsSweep,
    SupportsUnwrap,
    TopologyMismatch,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mqcore.contract.kit import Kit
    from mqcore.spi import Alterations, Outcome

_LOOK = "Backend.open: the Capabilities that it returns"
_CORE = "mqcore itself: this is no fault of the driver"
_FEWEST, _LEVELS = 2, 11
_MODES = {"reject", "dead_letter"}
_DELAY = _LEASE = 0.5
_SEVERAL = 6


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _levels(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and _FEWEST <= value <= _LEVELS


def _truth(value: object) -> bool:
    return isinstance(value, bool)


def _modes(value: object) -> bool:
    return isinstance(value, str) and bool(value) and set(value.split(",")) <= _MODES


_Limits = dict[str, tuple[str, "Callable[[object], bool]"]]
_SECONDS, _COUNT = ("seconds above 0", _number), ("a number above 0", _number)
_LIMITS: dict[Capability, _Limits] = {
    Capability.DELAY: {"granularity": _SECONDS, "max": _SECONDS},
    Capability.PRIORITY: {"levels": (f"a number up to {_LEVELS}", _levels)},
    Capability.EXPIRY: {"sweep": ("True or False", _truth)},
    Capability.DEDUP: {"window": _SECONDS, "size": _COUNT},
    Capability.ORDER: {
        "release_in_place": ("True or False", _truth),
        "after_delay": ("'end' or another word", lambda it: isinstance(it, str) and bool(it)),
    },
    Capability.MAX_LENGTH: {"modes": ("'reject', 'dead_letter' or 'reject,dead_letter'", _modes)},
}


# Declared: in the words and numbers that programs read


@case("G16", ids="U03", each={one.name: one for one in Capability})
async def a_capability_has_a_level_and_its_limits(kit: Kit, capability: Capability) -> None:
    """A declared capability has a level and the documented limits, as numbers or known words."""
    support = kit.capabilities[capability]
    kit.true(
        isinstance(support.level, Level),
        f"{capability.name}: one of the four levels",
        support.level,
        _LOOK,
    )
    if support.level is Level.NONE:
        return
    for name, (kind, fits) in _LIMITS.get(capability, {}).items():
        wanted = f"{capability.name} with the limit {name!r}: {kind}"
        kit.true(name in support.limits, wanted, f"limits {dict(support.limits)}", _LOOK)
        kit.true(fits(support.limits[name]), wanted, repr(support.limits[name]), _LOOK)
    if capability is Capability.PRIORITY and support.limits["levels"] != _LEVELS:
        kit.same(
            support.level,
            Level.APPROXIMATE,
            "the level of PRIORITY with fewer than 11 levels",
            _LOOK,
        )


@case("G16", ids="U03")
async def durability_is_one_of_four_words(kit: Kit) -> None:
    """Durability is one of four levels; DURABLE is declared from *process* on, and not below."""
    durability = kit.capabilities.durability
    kit.true(isinstance(durability, Durability), "a member of Durability", repr(durability), _LOOK)
    what = f"whether DURABLE is declared at durability {durability.word!r}"
    kit.same(
        kit.capabilities.has(Capability.DURABLE), durability >= Durability.PROCESS, what, _LOOK
    )


@case("G16", ids="U02")
async def more_durability_than_there_is_is_refused(kit: Kit) -> None:
    """Declaring a queue with more durability than there is raises DurabilityUnavailable.

    The queue is not created.
    """
    for wanted in Durability:
        name = kit.name()
        spec = QueueSpec(name=name, dead_letter=None, durability=wanted)
        if wanted <= kit.capabilities.durability:
            await kit.within(kit.backend.declare([spec]))
            continue
        refused = f"DurabilityUnavailable from declare with durability {wanted.word!r}"
        look = "Backend.declare: capabilities.require_durability(spec.durability)"
        await kit.raises(DurabilityUnavailable, kit.backend.declare([spec]), refused, look)
        none = "no queue made where the durability was refused"
        error = await kit.raises(
            Exception, kit.subscribe(name), none, "Backend.declare: nothing of a refused batch"
        )
        kit.kind(error, ErrorKind.NOT_FOUND)


@case("G16")
async def names_say_which_backend_and_server_it_is(kit: Kit) -> None:
    """`Capabilities.backend` names the plugin, and `server` the product with its version."""
    kit.true(kit.capabilities.backend, "the plugin's name", repr(kit.capabilities.backend), _LOOK)
    kit.true(kit.capabilities.server, "the server's name", repr(kit.capabilities.server), _LOOK)


@case("G16")
async def protocols_and_capabilities_agree(kit: Kit) -> None:
    """A capability is declared exactly when the backend has its methods."""
    for capability, protocol, declared in (
        (Capability.LEASE, SupportsRenew, kit.capabilities.has(Capability.LEASE)),
        (Capability.BROWSE, SupportsBrowse, kit.capabilities.has(Capability.BROWSE)),
        (Capability.ROUTING, SupportsBind, kit.capabilities.has(Capability.ROUTING)),
        (Capability.EXPIRY, SupportsSweep, bool(kit.limit(Capability.EXPIRY, "sweep"))),
    ):
        there = isinstance(kit.backend, protocol)
        said = f"{capability.name}{' with sweep' if protocol is SupportsSweep else ''}"
        what = f"{said} {'declared' if declared else 'not declared'}, so {protocol.__name__} is"
        kit.same(
            "there" if there else "not there", "there" if declared else "not there", what, _LOOK
        )


@case("G16", protocols=[SupportsUnwrap])
async def what_is_unwrapped_are_clients_and_nothing_else(kit: Kit) -> None:
    """`unwrap` returns objects of the client library only.

    It returns neither text with the URL nor options nor parts of the driver.
    """
    backend = cast("SupportsUnwrap", kit.backend)
    driver = type(kit.backend).__module__.partition(".")[0]

    for client in backend.unwrap():
        modules = {kind.__module__.partition(".")[0] for kind in type(client).__mro__} - {
            "builtins",
            driver,
            "mqcore",
        }
        library = modules - {"abc", "typing", "pydantic", "collections"}
        look = "SupportsUnwrap.unwrap: return the connection or client of the client library alone"
        kit.true(library, "an object of the client library", type(client).__name__, look)

    await kit.within(kit.backend.close())
    try:
        backend.unwrap()
    except Exception as error:  # noqa: BLE001 - the driver's own
        kit.kind(error, ErrorKind.TRANSIENT)
    else:
        came = False
        kit.true(came, "an error from unwrap on a closed instance", "none", "SupportsUnwrap.unwrap")


@case("G16", "G14")
async def every_open_says_the_same(kit: Kit) -> None:
    """Each instance reports the same capabilities, also after close and open."""
    before = kit.capabilities
    other = await kit.open()
    kit.same(kit.capabilities, before, "capabilities of another instance", _LOOK)
    await kit.within(other.close())
    await kit.open(other)
    kit.same(kit.capabilities, before, "capabilities after close and open", _LOOK)


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
        told = await self._inner.open(lost)
        return told if self._declared else replace(told, durability=Durability.MEMORY, supports={})

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
        await _is_refused(kit, request, _LOOK, declared=True)


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
    wanted = [out.message.id for out in [*batch[_SEVERAL:], *batch[:_SEVERAL]]]
    return kit.ids(await kit.drain(await kit.subscribe(queue))) == wanted


async def _delay_works(kit: Kit) -> bool:
    queue = await kit.queue()
    consumer = await kit.subscribe(queue)
    before = kit.now
    if await kit.publish(Outgoing(queue, kit.message(), delay=_DELAY)) != [STORED]:
        return False
    came = await kit.receive(consumer, wait=_DELAY + kit.harness.silence)
    return bool(came) and kit.now - before >= 0.9 * _DELAY


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
        raise ContractError(
            f"{capability.name} declared, for it works", "it is not declared", _LOOK
        )


# Other settings for a queue that exists

_ALTER = "SupportsAlter.alter"
_ALTERED: dict[str, tuple[str, Any, Capability | None]] = {
    "ttl": ("ttl", 50.0, Capability.EXPIRY),
    "max_length": ("max_length", 2, Capability.MAX_LENGTH),
    "no_max_length": ("max_length", None, Capability.MAX_LENGTH),
    "retention": ("retention", 1.0, None),
}


@case("G16", "G2", protocols=(SupportsAlter,), each=_ALTERED)
async def a_queue_takes_other_settings_with_what_it_holds(
    kit: Kit, change: tuple[str, Any, Capability | None]
) -> None:
    """Altering a queue applies the new settings and keeps its messages.

    Or a TopologyMismatch names the setting that cannot be changed, and nothing is changed.
    """
    setting, value, needed = change
    has, name = kit.capabilities.has, kit.name()
    if needed is not None and not has(needed):
        raise NotShown(
            f"declares no {needed.name}, so that core refuses such a setting before the seam"
        )
    mode = str(kit.limit(Capability.MAX_LENGTH, "modes") or "reject").split(",")[0]
    settings: dict[str, Any] = {"ttl": 400.0} if has(Capability.EXPIRY) else {}
    settings |= {"max_length": 3, "overflow": mode} if has(Capability.MAX_LENGTH) else {}
    old = [
        QueueSpec(name=name, dead_letter=f"{name}.dlq", **settings),
        QueueSpec(name=f"{name}.dlq", role="dead_letter", retention=9000.0),
    ]
    await kit.within(kit.backend.declare(old))
    await kit.put(name, "a", "b")
    await kit.put(f"{name}.dlq", "letter")

    at = int(setting == "retention")
    backend, target = cast("SupportsAlter", kit.backend), old[at].name
    changes = cast("Alterations", {setting: value})
    try:
        await kit.within(backend.alter(target, changes))
    except TopologyMismatch as error:
        told = all(
            part in str(error)
            for part in (target, setting, str(getattr(old[at], setting)), str(value))
        )
        kit.true(told, "a text with the queue's name, the setting and both values", error, _ALTER)
        await kit.within((await kit.open()).declare(old))
        return

    new = [replace(spec, **(changes if number == at else {})) for number, spec in enumerate(old)]
    other = await kit.open()
    await kit.within(other.declare(new))
    await kit.raises(
        TopologyMismatch, other.declare(old), "TopologyMismatch for the old settings", _ALTER
    )
    await _has_its_new_settings(kit, new, setting, other)

    missing = cast("SupportsAlter", kit.backend).alter(kit.name(), changes)
    kit.kind(
        await kit.raises(Exception, missing, "an error for a queue that is missing", _ALTER),
        ErrorKind.NOT_FOUND,
    )


async def _has_its_new_settings(
    kit: Kit, specs: Sequence[QueueSpec], setting: str, backend: Backend
) -> None:
    """Check the effect of the new settings on stored and on new messages."""
    main, letters = specs
    (outcome,) = await kit.publish(Outgoing(main.name, kit.message("c")), backend=backend)
    full = setting == "max_length" and main.max_length is not None and main.overflow == "reject"
    wanted = ErrorKind.FULL if full else None
    kit.same(
        getattr(outcome, "kind", None),
        wanted,
        "the kind of the outcome of a third message",
        f"{_ALTER}: {setting}",
    )

    consumer = await kit.subscribe(main.name, backend=backend)
    deliveries = await kit.take(consumer, 2 + (outcome == STORED))
    kit.same(
        kit.ids(deliveries), ["a", "b", "c"][: len(deliveries)], "stored messages, in order", _ALTER
    )
    if setting == "ttl" and main.ttl is not None:
        lives = [delivery.expires_in or 0.0 for delivery in deliveries]
        fits = lives[0] > main.ttl and lives[1] > main.ttl and 0 < lives[2] <= main.ttl
        kit.true(
            fits, "the old expiry for stored messages, the new one for new messages", lives, _ALTER
        )

    if setting == "retention":
        await kit.advance((letters.retention or 0.0) + 1.5)
        kit.same(
            await kit.contents(letters.name),
            Counter(),
            "no dead letter beyond the new retention",
            _ALTER,
        )
    else:
        kit.same(await kit.contents(letters.name), Counter(["letter"]), "the dead letter", _ALTER)
