"""`Topology`: the queues and routers that this broker has declared, with their settings.

Code describes a queue and the settings override it; `configured` merges the two. A queue that was
declared once costs a dictionary look-up from then on. The connection declares it again after every
reconnect.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from mqcore.connection.adopted import check_adopted, given
from mqcore.connection.altering import checked_alterations, for_each_queue
from mqcore.errors import ConfigurationError, QueueNotFound, TopologyMismatch, UnsupportedFeature
from mqcore.queue import DLQ, QUARANTINE, Queue, name_of
from mqcore.rules.capabilities import Capability, Level
from mqcore.rules.retry import AfterCrash, RetryPolicy, Rules
from mqcore.rules.routing import Binding
from mqcore.spi import QueueCounts, QueueSpec, SupportsCount, SupportsStart

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mqcore.config.settings import Settings
    from mqcore.connection.altering import AlterOptions
    from mqcore.connection.connection import Connection
    from mqcore.router import Router
    from mqcore.rules.capabilities import Durability
    from mqcore.spi import Alterations

__all__ = ["Topology"]

T = TypeVar("T")
_log = logging.getLogger("mqcore")


class Topology:
    """The queues and routers that are declared on one connection."""

    def __init__(
        self, connection: Connection, settings: Settings, durability: Durability | None
    ) -> None:
        """`settings` override the code; `durability` is part of every queue's declaration."""
        self._connection = connection
        self._settings = settings
        self._durability = durability
        self._queues: dict[str, tuple[Queue[Any], Queue[Any]]] = {}
        self._routers: WeakKeyDictionary[Router[Any], int] = WeakKeyDictionary()
        """How many bindings each had when it was declared. A program may make one per publish."""
        self._warned: set[str] = set()

    def configured(self, queue: Queue[T]) -> Queue[T]:
        """Return the queue with its options from the settings, which override the code."""
        return queue.configured(**self._settings.queue_options(queue.name))

    def retry(self, queue: Queue[Any], consumer: RetryPolicy | None) -> RetryPolicy:
        """Return the retry policy of a consumer.

        The settings override the consumer's own policy, and that one overrides the queue's.
        """
        return self._settings.retry_policy(queue.name, consumer or queue.retry or RetryPolicy())

    def known(self, thing: Queue[Any] | Router[Any]) -> Queue[Any] | Router[Any] | None:
        """Return the configured queue, or the router, if it is declared already; else None."""
        if isinstance(thing, Queue):
            known = self._queues.get(thing.name)
            return known[1] if known is not None and known[0] is thing else None
        return thing if self._routers.get(thing) == len(thing.bindings) else None

    def undeclared(self, thing: Queue[Any] | Router[Any]) -> tuple[list[QueueSpec], list[Binding]]:
        """Return what `ensure_either` would declare, for a relay to declare it later."""
        queues = [thing] if isinstance(thing, Queue) else list(thing.queues.values())
        configured = [self.configured(queue) for queue in queues]
        specs = [
            spec for queue in configured if queue.declare for spec in queue.specs(self._durability)
        ]
        if isinstance(thing, Queue):
            return specs, []
        return specs, [
            *thing.bindings,
            *self._settings.router_bindings(thing.name, thing.kind),
        ]

    async def ensure_either(self, thing: Queue[Any] | Router[Any]) -> Queue[Any] | Router[Any]:
        """Call `ensure` or `ensure_router`."""
        return (
            await self.ensure(thing)
            if isinstance(thing, Queue)
            else await self.ensure_router(thing)
        )

    async def ensure(self, queue: Queue[Any]) -> Queue[Any]:
        """Declare a queue with its dead-letter queue and quarantine, once; return it as configured.

        Raises `TopologyMismatch` when it exists with other settings, and `QueueNotFound` for a
        `declare=False` queue that does not exist.
        """
        known = self._queues.get(queue.name)
        if known is not None and known[0] is queue:
            return known[1]
        configured = self.configured(queue)
        self._check(configured)
        if known is not None and _same(known[1], configured):
            return configured
        if configured.declare:
            await self._connection.declare(configured.specs(self._durability))
        else:
            await self._adopt(configured)

        self._queues[queue.name] = (queue, configured)
        return configured

    async def ensure_all(
        self, queues: Sequence[Queue[Any]], routers: Sequence[Router[Any]]
    ) -> None:
        """Declare the queues and routers of an application in one batch; raises as `ensure`."""
        own = [(queue, self.configured(queue)) for queue in queues]
        own += [
            (queue, self.configured(queue))
            for router in routers
            for queue in router.queues.values()
        ]
        for _, queue in own:
            self._check(queue)
        for router in routers:
            self._connection.capabilities.require(Capability.ROUTING, f"router {router.name!r}")
        specs: dict[str, QueueSpec] = {}

        for _, queue in own:
            for spec in queue.specs(self._durability) if queue.declare else ():
                if specs.setdefault(spec.name, spec) != spec:
                    raise TopologyMismatch(
                        f"queue {spec.name!r} is described twice in this application, with "
                        "different settings. Use one Queue(...), or the same settings in both"
                    )

        if specs:
            await self._connection.declare(list(specs.values()))
        self._queues.update({plain.name: (plain, queue) for plain, queue in own if queue.declare})
        for plain, _ in own:
            await self.ensure(plain)
        for router in routers:
            await self.ensure_router(router)

    def _check(self, queue: Queue[Any]) -> None:
        """Refuse settings that the backend cannot keep, before anything is declared (G16)."""
        if queue.declare:
            _check_used(queue)
        bound: Alterations = {} if queue.max_length is None else {"overflow": queue.overflow}
        self._check_supported(
            queue.name, {"ttl": queue.ttl, "max_length": queue.max_length, **bound}
        )

    async def ensure_router(self, router: Router[Any]) -> Router[Any]:
        """Declare the queues of a router's bindings, then the bindings of code and settings.

        It is done once, and again when bindings were added.
        """
        if self.known(router) is not None:
            return router
        self._connection.capabilities.require(Capability.ROUTING, f"router {router.name!r}")
        for queue in router.queues.values():
            await self.ensure(queue)
        added = self._settings.router_bindings(router.name, router.kind)
        if bindings := [*router.bindings, *added]:
            await self._connection.bind(bindings)
        self._routers[router] = len(router.bindings)
        return router

    async def unbind(self, bindings: Sequence[Binding]) -> None:
        """Remove bindings from the broker."""
        await self._connection.unbind(bindings)

    async def restore(self, queue: Queue[Any]) -> None:
        """Declare a queue again that was deleted. Raises `QueueNotFound` for an adopted queue."""
        if queue.declare:
            await self._connection.declare(queue.specs(self._durability))
        else:
            await self._check_there(queue.name)

    async def alter(self, queue: Queue[Any] | str, options: AlterOptions) -> None:
        """Alter an existing queue: to these settings, or without any to those of the `Queue`."""
        if isinstance(queue, Queue) and not options:
            configured = self.configured(queue)
            options = {
                "ttl": configured.ttl,
                "max_length": configured.max_length,
                "overflow": configured.overflow,
                **(
                    {"retention": configured.retention}
                    if configured.dead_letter is not None
                    else {}
                ),
            }
        name = name_of(queue)
        settings = checked_alterations(options, name)
        self._check_supported(name, settings)

        counts = await self.counts(name)
        if counts is None:
            raise QueueNotFound(
                f"queue {name!r} cannot be altered: it does not exist on the broker, or the "
                "backend cannot tell"
            )
        if isinstance(queue, Queue) and queue.declare and counts.role == "work":
            _check_dead_letter(self.configured(queue), counts)

        for target, changes in for_each_queue(counts, settings).items():
            await self._connection.alter(target, changes)
        self._queues.pop(name, None)  # its next use compares the settings again

    def _check_supported(self, name: str, settings: Alterations) -> None:
        """Refuse settings that the backend cannot keep (G16)."""
        capabilities = self._connection.capabilities
        if settings.get("ttl") is not None:
            capabilities.require(Capability.EXPIRY, f"queue {name!r} with a ttl")
        if settings.get("max_length") is None and settings.get("overflow", "reject") == "reject":
            return
        modes = capabilities.require(
            Capability.MAX_LENGTH, f"queue {name!r} with max_length"
        ).limits.get("modes")
        overflow = settings.get("overflow", "reject")
        if modes is not None and overflow not in str(modes).split(","):
            raise UnsupportedFeature(
                f"queue {name!r} with overflow={overflow!r}: the backend {capabilities.backend!r} "
                f"can only {modes}"
            )

    def missing(
        self, thing: Queue[Any] | Router[Any]
    ) -> tuple[tuple[QueueSpec, ...], tuple[Binding, ...]]:
        """Return what must be declared before a queue or router is used; nothing if it was.

        For a message that goes to the broker later, perhaps by another process.
        """
        if self.known(thing) is not None:
            return (), ()
        own = [thing] if isinstance(thing, Queue) else list(thing.queues.values())
        queues = [self.configured(queue) for queue in own]
        specs = [
            spec for queue in queues if queue.declare for spec in queue.specs(self._durability)
        ]
        if isinstance(thing, Queue):
            return tuple(specs), ()
        added = self._settings.router_bindings(thing.name, thing.kind)
        return tuple(specs), (*thing.bindings, *added)

    def declares(self, name: str) -> bool:
        """Whether this process has declared the queue, and declares it again when it is gone."""
        return name in self._queues and self._queues[name][1].declare

    def routes(self, router: Router[Any], key: str, headers: Mapping[str, str]) -> bool:
        """Whether a binding that this process has added takes such a message."""
        return any(
            binding.takes(key, headers) for binding in self._connection.bindings_of(router.name)
        )

    async def declare_again(self, queues: Sequence[str], router: Router[Any] | None) -> None:
        """Declare queues that another process has deleted, and a router with its bound queues.

        Raises as `ensure` does, when they exist with other settings now.
        """
        bindings = self._connection.bindings_of(router.name) if router is not None else []
        names = dict.fromkeys([*queues, *(binding.queue for binding in bindings)])
        specs = {
            spec.name: spec for name in names if self.declares(name) for spec in self._specs(name)
        }
        if specs:
            await self._connection.declare(list(specs.values()))
        if bindings:
            await self._connection.bind(bindings)

    def _specs(self, name: str) -> list[QueueSpec]:
        return self._queues[name][1].specs(self._durability)

    def forget(self, name: str) -> None:
        """Do not declare a queue again: it was deleted on purpose."""
        self._queues.pop(name, None)
        self._connection.forget([name, name + QUARANTINE])
        self._routers.clear()

    async def _adopt(self, queue: Queue[Any]) -> None:
        """Check that an adopted queue exists, with the settings that its options name."""
        await self._check_there(queue.name)
        counts = await self.counts(queue.name)
        have = counts.spec if counts is not None else None

        own = have.dead_letter if have is not None else None
        letters = queue.dead_letter if given(queue, "dead_letter") else own
        letter_counts = await self.counts(letters) if letters is not None else None
        check_adopted(queue, have, letter_counts.spec if letter_counts is not None else None)

        can_count = isinstance(self._connection.backend, SupportsCount)
        if (
            given(queue, "dead_letter")
            and letters is not None
            and letter_counts is None
            and can_count
        ):
            raise QueueNotFound(
                f"dead-letter queue {letters!r} of the adopted queue {queue.name!r} does not exist "
                "on the broker, and declare=False says not to create it. Declare it in the program "
                "that owns it, or name one that exists"
            )

    async def _check_there(self, name: str) -> None:
        if await self.counts(name) is None and isinstance(self._connection.backend, SupportsCount):
            raise QueueNotFound(
                f"queue {name!r} does not exist on the broker, and declare=False says not to make "
                "it"
            )

    async def counts(self, name: str) -> QueueCounts | None:
        """Return the counts of a queue; None if it does not exist or the backend cannot count."""
        backend = self._connection.backend
        if not isinstance(backend, SupportsCount):
            return None
        counts = await self._connection.call(
            f"counting queue {name!r}", lambda: backend.count([name])
        )
        return counts[0] if counts else None

    async def dead_letter_name(self, queue: Queue[Any] | str) -> str | None:
        """Return the name of a queue's dead-letter queue, or None.

        For a queue that is given by its name, the broker is asked. Raises `QueueNotFound`.
        """
        if isinstance(queue, Queue):
            configured = self.configured(queue)
            if configured.declare or given(configured, "dead_letter"):
                return configured.dead_letter
            queue = queue.name

        if queue.endswith(DLQ):
            return queue
        counts = await self.counts(queue)
        if counts is None:
            if (
                isinstance(self._connection.backend, SupportsCount)
                and await self.counts(queue + DLQ) is None
            ):
                raise QueueNotFound(f"queue {queue!r} does not exist on the broker")
            # The queue may have been deleted. Its dead letters still exist.
            return queue + DLQ

        return queue if counts.role == "dead_letter" else counts.dead_letter

    def _warn_of_drops(self, name: str, dead_letter: str | None) -> None:
        """Warn once that an adopted queue has no dead-letter queue."""
        if dead_letter is None and name not in self._warned:
            self._warned.add(name)
            _log.warning(
                "queue %r is adopted and has no dead-letter queue: a message that is rejected, "
                "expires or fails for good is dropped (G2). Name one that exists: Queue(%r, "
                "declare=False, dead_letter=...), or say dead_letter=None",
                *(name, name),
            )

    async def rules(
        self, queue: Queue[Any], retry: RetryPolicy | None, after_crash: AfterCrash = "isolate"
    ) -> Rules:
        """Return what `decide` needs to know of a queue.

        A dead-letter queue that is adopted under any name is its own dead-letter queue (G11).
        """
        policy = self.retry(queue, retry)
        if policy.max_attempts > 1 and policy.backoff.wait(1) > 0:
            self._connection.capabilities.require(
                Capability.DELAY, f"retrying in queue {queue.name!r} after a wait"
            )

        delays = self._connection.capabilities[Capability.DELAY]
        delay = delays.limits.get("max") if delays.level is not Level.NONE else 0.0
        dead_letter, quarantine = queue.dead_letter, queue.quarantine
        if not queue.declare and (counts := await self.counts(queue.name)) is not None:
            if not given(queue, "dead_letter"):
                dead_letter = queue.name if counts.role == "dead_letter" else counts.dead_letter
                self._warn_of_drops(queue.name, dead_letter)
            if counts.role == "dead_letter" or (
                quarantine and await self.counts(quarantine) is None
            ):
                quarantine = None  # a queue that another client has made has none

        rules = Rules(
            queue=queue.name,
            source=queue.name,
            retry=policy,
            dead_letter=dead_letter,
            quarantine=quarantine,
            after_crash=after_crash,
            notes_starts=isinstance(self._connection.backend, SupportsStart),
        )
        return rules if delay is None else replace(rules, max_delay=float(delay))


def _same(first: Queue[Any], second: Queue[Any]) -> bool:
    """Whether the second one needs no declaration and no check after the first one."""
    if first.declare and second.declare:
        return first.specs() == second.specs()
    return first.declare == second.declare and first.options == second.options


def _check_used(queue: Queue[Any]) -> None:
    """Refuse an option that has no effect without another one."""
    if queue.overflow == "dead_letter" and queue.max_length is None:
        raise ConfigurationError(
            f"queue {queue.name!r}: overflow='dead_letter' has no effect without max_length. Set "
            "max_length, or leave overflow out"
        )
    if queue.retention is not None and queue.dead_letter is None:
        raise ConfigurationError(
            f"queue {queue.name!r}: retention={queue.retention:g} is for its dead-letter queue, "
            "and dead_letter=None says that there is none. Leave one of them out"
        )


def _check_dead_letter(queue: Queue[Any], counts: QueueCounts) -> None:
    """Refuse to alter a queue that has another dead-letter queue: that cannot be altered."""
    if queue.dead_letter != counts.dead_letter:
        raise TopologyMismatch(
            f"queue {queue.name!r} exists with dead_letter={counts.dead_letter!r}, and the code "
            f"declares dead_letter={queue.dead_letter!r}, which cannot be altered. Change the "
            f'code, or delete the queue with "mqcore queues delete {queue.name}"'
        )
