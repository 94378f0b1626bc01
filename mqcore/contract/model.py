"""A model of queues, as a list that is searched from end to end. Any backend is compared with it.

It is pure: no I/O and no clock. Every call passes the span of time in which the real one happened,
from before it was sent until after it was answered. What *may* have happened by the end of the span
is allowed; only what *must* have happened by its beginning is required. So a slow broker is not
wrong. `Rules` are what the backend's capabilities make of the contract.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from mqcore.contract.kit import ContractError
from mqcore.rules.capabilities import Capability, Level

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore.messages.delivery import Delivery, Outgoing
    from mqcore.messages.message import Message
    from mqcore.rules.capabilities import Capabilities

__all__ = ["Copy", "Lease", "Model", "Rules", "Span", "named"]

_EARLY = 0.005
"""Seconds that every backend may be early by (G7)."""
_TAKEOVER = 1.0
"""Seconds after the end of a lease or a consumer in which its messages go to another (G5)."""
_RECEIVE = "Subscription.receive"


class Span(NamedTuple):
    """Not before `lo`, and by `hi` at the latest."""

    lo: float
    hi: float

    def later(self, lo: float, hi: float | None = None) -> Span:
        """Return the span moved by `lo` seconds; its end by `hi` if given."""
        return Span(self.lo + lo, self.hi + (lo if hi is None else hi))


@dataclass(frozen=True)
class Rules:
    """The order and times that a backend's capabilities and limits require."""

    by_priority: bool
    ordered: bool
    release_in_place: bool
    delay_to_the_end: bool
    granularity: float
    lease: float
    slack: float

    @classmethod
    def of(cls, capabilities: Capabilities, lease: float, slack: float) -> Rules:
        """Read the capabilities.

        `lease` is what consumers ask for. `slack` is how inexact times of this server are.
        """
        exact, order = (Level.NATIVE, Level.EMULATED), capabilities[Capability.ORDER]
        return cls(
            by_priority=capabilities[Capability.PRIORITY].level in exact,
            ordered=order.level in exact,
            release_in_place=bool(order.limits.get("release_in_place")),
            delay_to_the_end=order.limits.get("after_delay") == "end",
            granularity=float(capabilities[Capability.DELAY].limits.get("granularity", 1.0)),
            lease=lease if capabilities.has(Capability.LEASE) else inf,
            slack=slack,
        )


@dataclass(eq=False)
class Copy:
    """One stored copy.

    `since` is when it is ready, `place` its place in its level; None is not judged.
    """

    queue: str
    message: Message
    number: int
    since: Span
    place: Span
    delayed: bool
    expires: Span | None = None
    loose: bool = False
    redelivered: bool | None = False
    takeovers: int | None = 0
    """None: the copy may have been sent to its consumer and back, with or without a mark."""
    recorded: int = 0
    """The takeovers that a release put on record, where the broker has only a flag."""
    counted: bool = True
    lease: Lease | None = None


@dataclass(eq=False)
class Lease:
    """One claim: `live`, then `lost` at its end, then `gone` when settled or claimed by another."""

    copy: Copy
    ends: Span
    state: str = "live"


@dataclass
class Model:
    """All copies of all queues."""

    rules: Rules
    copies: list[Copy] = field(default_factory=list)
    numbers: int = 0
    _lost: dict[int, list[Lease]] = field(default_factory=dict)

    def of(self, queue: str) -> list[Copy]:
        """Return a queue's copies."""
        return [copy for copy in self.copies if copy.queue == queue]

    def put(self, out: Outgoing, at: Span, expires: Span | None = None) -> None:
        """Store a copy."""
        self.numbers += 1
        late = self.rules.slack + (self.rules.granularity if out.delay else 0.0)
        since, place = at.later(out.delay, out.delay + late), at.later(out.delay)
        loose = bool(out.delay) and not self.rules.delay_to_the_end
        expires = at.later(out.ttl) if out.ttl is not None else expires
        self.copies.append(
            Copy(
                str(out.to),
                out.message,
                self.numbers,
                since,
                place,
                bool(out.delay),
                expires,
                loose=loose,
            )
        )

    def received(self, queue: str, got: Sequence[Delivery], limit: int, at: Span) -> list[Lease]:
        """Check what was received, and record who holds it now."""
        ready = [copy for copy in self.of(queue) if self._must(copy, at)]
        actual = [self._came(queue, delivery, at) for delivery in got]
        twice = [named(copy) for copy, count in Counter(actual).items() if count > 1]
        _true(not twice, "each copy once", f"{', '.join(twice)} twice", f"{_RECEIVE}: claims")

        if len(got) < limit:
            late = [named(copy) for copy in ready if copy not in actual]
            _true(
                not late,
                f"every ready message of {queue}",
                f"{', '.join(late)} did not arrive",
                _RECEIVE,
            )

        for index, copy in enumerate(actual):
            passed = [
                item
                for item in ready
                if item not in actual[:index] and self._before(item, copy, at)
            ]
            if passed:
                came_first = f"{named(copy)} came before it in {queue}"
                raise ContractError(f"{named(passed[0])} first", came_first, f"{_RECEIVE}: order")

        return [self._claim(copy, delivery, at) for copy, delivery in zip(actual, got, strict=True)]

    def settled(self, lease: Lease, how: str, done: bool, at: Span) -> None:  # noqa: FBT001 - the outcome
        """Follow the outcome of a settlement; `how` is `ack`, `release` or `move`.

        The caller calls `put` for the successor of a Move.
        """
        copy, live = lease.copy, lease.state == "live" and lease.ends.lo > at.hi
        _true(not done or lease.state != "gone", "Stale", "Done", "Subscription.settle: fencing")
        _true(
            done or not live,
            f"Done for the {how} of a held message",
            "Stale",
            "Subscription.settle",
        )

        if not done:
            if lease.state == "live":
                self._lose(copy, at)
            return

        lease.state, copy.lease = "gone", None
        self._forget(copy)
        if how == "release":
            copy.redelivered, copy.takeovers = True, copy.takeovers if live else None
            copy.recorded = copy.takeovers or 0
            copy.since, copy.loose = (
                at.later(0, self.rules.slack),
                copy.loose or not self.rules.release_in_place,
            )
            self._suspect_the_next(copy, at)
        else:
            self.copies.remove(copy)

    def renewed(self, lease: Lease, done: bool, at: Span) -> None:  # noqa: FBT001 - the outcome
        """Follow the outcome of a renewal."""
        live = lease.state == "live" and lease.ends.lo > at.hi
        _true(done or not live, "True for a held message", done, "renew")
        _true(not done or lease.state != "gone", "False for a lost message", done, "renew")
        if done:
            lease.state, lease.copy.lease, lease.ends = "live", lease, self._ends(at)
        elif lease.state == "live":
            self._lose(lease.copy, at)

    def crashed(self, queue: str, at: Span) -> None:
        """End the queue's only consumer: what it held comes back as taken over.

        What it had only buffered may be marked so too.
        """
        for copy in self.of(queue):
            if copy.lease is not None:
                self._lose(copy, at)
                copy.since = at.later(
                    0, _TAKEOVER + (self.rules.lease if self.rules.lease < inf else 0.0)
                )
            elif copy.since.lo - _EARLY <= at.hi:
                copy.redelivered, copy.takeovers = copy.redelivered or None, None
                copy.since = Span(copy.since.lo, max(copy.since.hi, at.hi + self.rules.slack))
                copy.loose = copy.loose or not self.rules.release_in_place

    def counts(self, queue: str, at: Span) -> tuple[int, int, int] | None:
        """Return how many are ready, leased and delayed; None while the time leaves it open."""
        mine = self.of(queue)
        if any(self._may(copy, at) != self._must(copy, at) for copy in mine):
            return None
        ready, delayed = (
            sum(self._must(copy, at) for copy in mine),
            sum(copy.lease is None and copy.since.lo > at.hi for copy in mine),
        )
        return ready, len(mine) - ready - delayed, delayed

    def quiet_at(self) -> float:
        """Return when everything is ready that is not held without an end."""
        ends = [
            copy.lease.ends.hi
            for copy in self.copies
            if copy.lease is not None and copy.lease.ends.hi < inf
        ]
        return max([copy.since.hi for copy in self.copies] + ends, default=0.0)

    # What each step needs

    def _may(self, copy: Copy, at: Span) -> bool:
        return copy.since.lo - _EARLY <= at.hi and (
            copy.lease is None or copy.lease.ends.lo <= at.hi
        )

    def _must(self, copy: Copy, at: Span) -> bool:
        return copy.since.hi <= at.lo and (copy.lease is None or copy.lease.ends.hi <= at.lo)

    def _before(self, one: Copy, other: Copy, at: Span) -> bool:
        """Whether `one` certainly goes before `other`: of a higher level, or earlier in the same.

        Expired messages are not judged.
        """
        if any(
            item.expires is not None and item.expires.lo - self.rules.slack <= at.hi
            for item in (one, other)
        ):
            return False

        if one.message.priority != other.message.priority:
            return self.rules.by_priority and one.message.priority > other.message.priority
        if one.loose or other.loose or not self.rules.ordered:
            return False

        if one.delayed == other.delayed:
            same = not one.delayed or (one.place == other.place and one.place.lo == one.place.hi)
            return one.number < other.number if same else one.place.hi < other.place.lo
        late = self.rules.granularity + self.rules.slack if one.delayed else _EARLY

        return one.place.hi + late < other.place.lo

    def _came(self, queue: str, delivery: Delivery, at: Span) -> Copy:
        """Find the delivered copy, and check its marks."""
        message = delivery.message
        copy = next(
            (
                delivery
                for delivery in self.of(queue)
                if delivery.message.copy_name == message.copy_name
            ),
            None,
        )

        if copy is None:
            stray = f"{message.copy_name} (priority {message.priority}), which is not in it"
            raise ContractError(f"a message of {queue}", stray, f"{_RECEIVE}: settlements")
        _true(
            self._may(copy, at),
            "a message that is due and not held",
            named(copy),
            f"{_RECEIVE}: claims",
        )
        _same(_look(message), _look(copy.message), f"{named(copy)} as it was stored")

        lost = copy.lease is not None
        for name, actual, expected in (
            ("redelivered", delivery.redelivered, True if lost else copy.redelivered),
            ("takeovers", delivery.takeovers, _one_more(copy) if lost else copy.takeovers),
            ("that it expires", delivery.expires_in is not None, copy.expires is not None),
        ):
            _same(actual, actual if expected is None else expected, f"{named(copy)}: {name}")

        if copy.expires is not None and delivery.expires_in is not None:
            early, late = copy.expires.later(-self.rules.slack - _EARLY, self.rules.slack + _EARLY)
            fits = (delivery.expires_in <= 0 or late > at.lo) and (
                delivery.expires_in > 0 or early <= at.hi
            )
            wanted_in = f"{named(copy)}: expires_in of about {copy.expires.lo - at.hi:g}"
            _true(fits, wanted_in, delivery.expires_in, f"{_RECEIVE}: expires_in")

        return copy

    def _claim(self, copy: Copy, delivery: Delivery, at: Span) -> Lease:
        if copy.lease is not None:
            self._lose(copy, at)
        copy.redelivered, copy.takeovers, copy.counted = (
            delivery.redelivered,
            delivery.takeovers,
            delivery.counted,
        )
        self._forget(copy)
        copy.lease = Lease(copy, self._ends(at))
        return copy.lease

    def _ends(self, at: Span) -> Span:
        return at.later(self.rules.lease - _EARLY, self.rules.lease + _TAKEOVER)

    def _suspect_the_next(self, released: Copy, at: Span) -> None:
        """Allow marks on messages that were on their way at a release.

        A driver that releases by storing a copy stops consuming for it.
        """
        for copy in () if self.rules.release_in_place else self.of(released.queue):
            if copy is not released and copy.lease is None and copy.since.lo - _EARLY <= at.hi:
                copy.redelivered, copy.takeovers = copy.redelivered or None, None

    def _forget(self, copy: Copy) -> None:
        for lease in self._lost.pop(copy.number, []):
            lease.state = "gone"

    def _lose(self, copy: Copy, at: Span) -> None:
        if copy.lease is not None:
            copy.lease.state = "lost"
            self._lost.setdefault(copy.number, []).append(copy.lease)
        copy.lease, copy.redelivered, copy.takeovers = None, True, _one_more(copy)
        copy.since, copy.loose = (
            at.later(0, _TAKEOVER),
            copy.loose or not self.rules.release_in_place,
        )


def _one_more(copy: Copy) -> int | None:
    """Return the takeovers after a lost lease: one more.

    Where the broker has only a flag, at least one.
    """
    if not copy.counted:
        return copy.recorded + 1
    return None if copy.takeovers is None else copy.takeovers + 1


def named(copy: Copy) -> str:
    """Return how a failure names a message: its id with its priority."""
    return f"{copy.message.id} (priority {copy.message.priority})"


def _look(message: Message) -> tuple[object, ...]:
    reason = message.death.reason if message.death else None
    return message.body, message.priority, message.attempt, message.hop, message.lineage, reason


def _same(actual: object, expected: object, what: str) -> None:
    _true(actual == expected, f"{what}: {expected!r}", repr(actual), _RECEIVE)


def _true(holds: object, expected: str, actual: object, look: str) -> None:
    if not holds:
        raise ContractError(expected, actual, look)
