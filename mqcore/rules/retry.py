"""What becomes of a message: every rule of retry, expiry and dead-lettering.

Everything here is pure: no clock, no I/O, no broker. A consumer reports a `HandlerResult`, and
`decide` answers with the settlement to send. `decide` also counts the attempts: it writes the next
attempt into the message of a Move (G4).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from enum import Enum
from typing import Any, Literal

from mqcore.clock import seconds
from mqcore.defaults import MAX_ATTEMPTS
from mqcore.errors import ConfigurationError
from mqcore.messages.delivery import Ack, Delivery, Move, Outgoing, Release, Settlement
from mqcore.messages.message import Death, Message, Reason
from mqcore.rules.backoff import LONGEST_WAIT, Backoff, exponential, fixed, linear
from mqcore.rules.checks import check_count, check_seconds
from mqcore.rules.failure import Failure, exceptions_in, qualified

__all__ = [
    "AfterCrash",
    "Backoff",
    "Decision",
    "Ending",
    "Failure",
    "HandlerResult",
    "RetryPolicy",
    "Rules",
    "admit",
    "check_after_crash",
    "decide",
    "done",
    "exceptions_in",
    "exponential",
    "fixed",
    "linear",
    "postpone_conclusion",
    "qualified",
    "recorded",
]

_SUSPECTED = 2
"""Takeovers of one stored copy from which on it is suspected of killing its process (G4)."""
_END_WAIT = 1.0
"""Least seconds before a dead letter that its own consumer failed is delivered again."""


_ALONE_WAIT = Backoff(15.0, factor=2.0, cap=60.0)
"""The waits of a suspect that was lost alone, where a lost connection looks like a death."""


_BACKOFF = exponential(1.0, cap=60.0)
"""The waits of a policy that names none."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when a failed message is handled again (G10).

    `max_attempts` counts the first one. `max_age` (seconds since the first publish) gives up
    earlier. Only exceptions of the classes in `retry_on` are retried, and none of those in
    `give_up_on`: both go by the class and its bases, and look into exception groups. Raises
    `ConfigurationError` for what could not be acted on later.
    """

    max_attempts: int = MAX_ATTEMPTS
    backoff: Backoff = _BACKOFF
    max_age: float | timedelta | None = None
    retry_on: tuple[type[BaseException], ...] = (BaseException,)
    give_up_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        """Refuse what could not be acted on when a handler fails."""
        check_count(
            "max_attempts",
            self.max_attempts,
            "retry policy (the first run counts, so 1 means no retry)",
        )

        if not isinstance(self.backoff, Backoff):
            raise ConfigurationError(
                f"retry policy: backoff={self.backoff!r:.60} is not usable; give fixed(5), "
                "linear(5) or exponential(1), "
                "in seconds"
            )
        if self.max_age is not None:
            check_seconds("max_age", self.max_age, "retry policy", zero=True)

        for name in ("retry_on", "give_up_on"):
            classes = getattr(self, name)
            if not (
                isinstance(classes, tuple) and all(_is_exception_class(each) for each in classes)
            ):
                raise ConfigurationError(
                    f"retry policy: {name}={classes!r:.100} is not usable; give a tuple of "
                    "exception classes, for instance "
                    "(OSError,)"
                )

    def retries(self, failure: Failure | None) -> bool:
        """Whether a failure of this kind is worth another attempt.

        An exception group is, if every exception in it is. Both lists may name the group's own
        class, too.
        """
        if failure is None:
            return True

        retry_on, give_up_on = (
            set(map(qualified, self.retry_on)),
            set(map(qualified, self.give_up_on)),
        )
        if give_up_on.intersection(failure.types) or any(
            give_up_on.intersection(each) for each in failure.members
        ):
            return False
        if retry_on.intersection(failure.types):
            return True
        return bool(failure.members) and all(
            retry_on.intersection(each) for each in failure.members
        )


def _is_exception_class(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, BaseException)


class Ending(Enum):
    """How the handling of a delivery ended, as its consumer reports it."""

    SUCCEEDED = "succeeded"
    INTERRUPTED = "interrupted"
    TAKEN_OVER = "taken_over"
    RETRY = "retry"
    POSTPONED = "postponed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CRASHED = "crashed"
    REJECTED = "rejected"
    UNDECODABLE = "undecodable"
    INVALID = "invalid"
    EXPIRED = "expired"


_DEAD_IMMEDIATELY = {
    Ending.REJECTED: Reason.REJECTED,
    Ending.UNDECODABLE: Reason.UNDECODABLE,
    Ending.INVALID: Reason.INVALID,
    Ending.EXPIRED: Reason.EXPIRED,
}
_DEAD_WHEN_EXHAUSTED = {
    Ending.RETRY: Reason.RETRIES_EXHAUSTED,
    Ending.FAILED: Reason.RETRIES_EXHAUSTED,
    Ending.TIMED_OUT: Reason.TIMEOUT,
    Ending.CRASHED: Reason.CRASHED,
}


@dataclass(frozen=True, slots=True)
class HandlerResult:
    """How a handling ended, its failure, and the delay that the handler asked for (seconds)."""

    ending: Ending
    failure: Failure | None = None
    delay: float | None = None


AfterCrash = Literal["isolate", "count"]
"""What the takeover of a message means for it, when the process that held it has died (G4)."""


def check_after_crash(value: object, where: str) -> AfterCrash:
    """Return the option as it was given, or raise `ConfigurationError` for what it cannot be."""
    if value == "isolate" or value == "count":  # noqa: PLR1714 - so that the type is known after it
        return value
    raise ConfigurationError(
        f"{where}: after_crash={value!r:.60} is unknown; it is 'isolate' or 'count'"
    )


@dataclass(frozen=True, slots=True)
class Rules:
    """What `decide` must know of the queue that a delivery came from.

    `queue` is the base queue, `source` the one received from: the same, or its quarantine.
    `dead_letter` is None when the queue has none, `quarantine` is None when suspected messages run
    like any other (dead-letter and temporary queues). A dead-letter queue names itself as its
    `dead_letter`: what fails there goes to its end after a while, never away (G11). `max_delay` is
    the backend's. `after_crash` is what a takeover means: `isolate` runs a message alone from its
    second one on, `count` takes each for a failed attempt (G4). `notes_starts`: the backend keeps a
    note of each suspect that is started (`SupportsStart`). `notes_each`: with `count` each start is
    noted, so that a takeover counts only after one. `is_observed`: what happens to its messages is
    an event of the application, which a temporary queue of mqcore itself causes none of.
    """

    queue: str
    source: str
    retry: RetryPolicy
    dead_letter: str | None = None
    quarantine: str | None = None
    max_delay: float = LONGEST_WAIT
    after_crash: AfterCrash = "isolate"
    notes_starts: bool = False
    notes_each: bool = False
    is_observed: bool = True


@dataclass(frozen=True, slots=True)
class Decision:
    """The settlement to send, and what it means, for events, logs and the reply to a request."""

    settlement: Settlement
    verdict: Literal[
        "done",
        "skipped",
        "released",
        "retried",
        "postponed",
        "taken_over",
        "quarantined",
        "dead",
        "dropped",
    ]
    reason: Reason | None = None
    delay: float = 0.0

    @property
    def final(self) -> bool:
        """Whether no handler will see this message again, except after a redrive."""
        return self.verdict in {"done", "skipped", "dead", "dropped"}


def admit(delivery: Delivery, rules: Rules) -> Delivery | None:
    """Return the delivery as its handler may see it. Pure.

    None when its takeovers must be settled first, by `decide` (G4).

    A first takeover raises no suspicion: the message runs at once among the others, as soon as the
    takeover is on record.
    """
    message, taken = delivery.message, _takeovers(delivery, rules)
    if rules.source == rules.quarantine:
        # The Move that brought it here began a new copy, which is marked as new.
        return None if _may_have_started(delivery, rules) else replace(delivery, redelivered=True)

    if not taken:
        return delivery

    if rules.after_crash == "count":
        if not _is_recorded(delivery, rules) or message.attempt + taken > rules.retry.max_attempts:
            return None
        message = replace(message, attempt=message.attempt + taken, takeovers=0)

    elif rules.quarantine is not None and (
        not _is_recorded(delivery, rules) or taken >= _SUSPECTED
    ):
        return None

    return replace(delivery, message=message, redelivered=True)


def _takeovers(delivery: Delivery, rules: Rules) -> int:
    """How often the message was taken over since it was published, retried or redriven.

    Where each start is noted, only a takeover after a start counts. Its Move begins a new copy, so
    a copy has at most one.
    """
    if rules.notes_each:
        return delivery.message.takeovers + _may_have_started(delivery, rules)
    return delivery.message.takeovers + delivery.takeovers


_UNSTARTED = 10
"""Takeovers of one copy after which it counts as started: something ends each of its consumers
before the note, for instance while its body is read, and it must not come back indefinitely."""


def _may_have_started(delivery: Delivery, rules: Rules) -> bool:
    """Whether a handler was started with this copy, or may have been."""
    if rules.notes_starts:
        return delivery.started or delivery.takeovers >= _UNSTARTED
    return delivery.takeovers > 0


def _is_recorded(delivery: Delivery, rules: Rules) -> bool:
    """Whether the next consumer will know the takeovers so far if this one dies too."""
    if rules.notes_each:
        return not _may_have_started(delivery, rules)
    return delivery.counted or not delivery.takeovers


def decide(
    result: HandlerResult,
    delivery: Delivery,
    rules: Rules,
    *,
    now: float,
    expires_in: float | None,
    chance: float = 1.0,
) -> Decision:
    """Return what becomes of a delivery (G2 to G6, G10, G11). Pure.

    `now` is the wall clock, for records and `max_age`; `expires_in` the seconds that the message
    has left, None when it never expires; `chance` (0 to 1) the draw for jitter.
    """
    ending = result.ending
    if ending is Ending.SUCCEEDED:
        return done(delivery)
    if ending is Ending.INTERRUPTED:
        return _release(delivery, rules)
    if ending is Ending.TAKEN_OVER:
        return _taken_over(delivery, rules, now, expires_in)
    if (reason := _DEAD_IMMEDIATELY.get(ending)) is not None:
        started = ending is Ending.REJECTED
        return _dead_letter(delivery, rules, reason, result.failure, now, started=started)
    if ending is Ending.POSTPONED:
        return _postpone(result.delay or 0.0, delivery, rules, now, expires_in)
    return _retry(result, delivery, rules, now=now, expires_in=expires_in, chance=chance)


def done(delivery: Delivery) -> Decision:
    """Return what becomes of a delivery whose handler has succeeded (G2)."""
    return Decision(Ack(delivery.receipt), "done")


def _release(delivery: Delivery, rules: Rules) -> Decision:
    """Release.

    In the quarantine by a Move to the same queue: the next owner would take a release for a crash
    (G4).
    """
    if rules.source == rules.quarantine:
        return Decision(_move(delivery, rules, rules.source), "released")
    return Decision(Release(delivery.receipt), "released")


def _taken_over(delivery: Delivery, rules: Rules, now: float, expires_in: float | None) -> Decision:
    """Settle what a dead consumer held and `admit` has refused (G4).

    Record the takeover, count it as an attempt, or isolate the message.
    """
    taken = _takeovers(delivery, rules)
    if rules.source == rules.quarantine:
        return _died_alone(delivery, rules, now, expires_in)

    if rules.after_crash == "count":
        started = delivery.message.attempt + taken - 1
        if started >= rules.retry.max_attempts:
            counted = replace(delivery, message=replace(delivery.message, attempt=started))
            return _dead_letter(counted, rules, Reason.CRASHED, _CRASHED, now)
        if rules.notes_each:
            first = delivery.message.failed_at or now
            again = _move(delivery, rules, rules.source, attempt=started + 1, failed_at=first)
            return Decision(again, "taken_over")

    elif rules.quarantine is not None and taken >= _SUSPECTED:
        return Decision(_move(delivery, rules, rules.quarantine), "quarantined")

    return Decision(_move(delivery, rules, rules.source, takeovers=taken), "taken_over")


_CRASHED = Failure((), "the process that handled it died, or lost the message")


def _died_alone(delivery: Delivery, rules: Rules, now: float, expires_in: float | None) -> Decision:
    """Count an attempt for what died in the quarantine: nothing else can be the cause (G4).

    Where a lost connection looks like a death, the next run waits: an outage of a minute must not
    use up all attempts.
    """
    message = delivery.message
    if message.attempt >= rules.retry.max_attempts:
        return _dead_letter(delivery, rules, Reason.CRASHED, _CRASHED, now)
    wait = 0.0 if delivery.counted else min(_ALONE_WAIT.wait(message.attempt), rules.max_delay)
    wait = 0.0 if expires_in is not None and wait >= expires_in else wait
    first = message.failed_at or now
    again = _move(delivery, rules, rules.source, wait, attempt=message.attempt + 1, failed_at=first)
    return Decision(again, "quarantined", delay=wait)


def _retry(
    result: HandlerResult,
    delivery: Delivery,
    rules: Rules,
    *,
    now: float,
    expires_in: float | None,
    chance: float,
) -> Decision:
    message, policy = delivery.message, rules.retry
    if result.ending is Ending.FAILED and not policy.retries(result.failure):
        return _dead_letter(delivery, rules, Reason.REJECTED, result.failure, now)
    if message.attempt >= policy.max_attempts:
        return _dead_letter(
            delivery, rules, _DEAD_WHEN_EXHAUSTED[result.ending], result.failure, now
        )

    wait = policy.backoff.wait(message.attempt, chance) if result.delay is None else result.delay
    wait = min(max(0.0, wait), rules.max_delay)  # in this order a NaN from a handler means no wait
    if _too_old(message, policy, now + wait):
        return _dead_letter(
            delivery, rules, _DEAD_WHEN_EXHAUSTED[result.ending], result.failure, now
        )

    if expires_in is not None and wait >= expires_in:
        return _dead_letter(delivery, rules, Reason.EXPIRED, result.failure, now)
    first = message.failed_at or now
    again = _move(delivery, rules, rules.queue, wait, attempt=message.attempt + 1, failed_at=first)
    return Decision(again, "retried", delay=wait)


def _postpone(
    asked: float, delivery: Delivery, rules: Rules, now: float, expires_in: float | None
) -> Decision:
    """Store the message again as it is, with a delay. It is not an attempt and not a failure (G10).

    Nothing that the message is accused of is forgotten: its takeovers stay, and a suspect stays in
    the quarantine. Else a message that kills its process now and then and postpones itself in
    between would never be dead-lettered (G4).
    """
    if rules.max_delay <= 0 < asked:  # it would come back at once, without an end (G16)
        return _dead_letter(delivery, rules, Reason.REJECTED, _NO_DELAY, now)

    wait = min(max(0.0, asked), rules.max_delay)  # in this order a NaN means no wait
    if expires_in is not None:
        wait = min(wait, max(0.0, expires_in))  # it is found expired then, not before (G6)
    if _too_old(delivery.message, rules.retry, now + wait):
        return _dead_letter(delivery, rules, Reason.RETRIES_EXHAUSTED, _TOO_OLD, now)

    return _later(delivery, rules, wait)


def _later(delivery: Delivery, rules: Rules, wait: float) -> Decision:
    is_suspect = rules.source == rules.quarantine
    # With "count" the takeovers are part of the attempt already.
    taken = 0 if is_suspect or rules.after_crash == "count" else _takeovers(delivery, rules)
    return Decision(
        _move(delivery, rules, rules.source, wait, takeovers=taken), "postponed", delay=wait
    )


_NO_DELAY = Failure((), "it was postponed, and the backend cannot delay a message")
_TOO_OLD = Failure((), "it was postponed beyond max_age of its retry policy")


def _too_old(message: Message, policy: RetryPolicy, then: float) -> bool:
    if policy.max_age is None or message.published_at is None:
        return False
    return then - message.published_at > seconds(policy.max_age)


def _dead_letter(
    delivery: Delivery,
    rules: Rules,
    reason: Reason,
    failure: Failure | None,
    now: float,
    *,
    started: bool = True,
) -> Decision:
    """Dead-letter, or drop where there is no dead-letter queue.

    A dead letter never expires again (G6).

    `started` says whether this attempt's handler ever ran; the record counts only attempts that
    did.
    """
    message = delivery.message
    death = _record(delivery, rules, reason, failure, now, started=started)
    reason = death.reason if reason is Reason.EXPIRED else reason
    if rules.dead_letter is None:
        return Decision(Ack(delivery.receipt), "dropped", reason)

    wait = 0.0
    if rules.dead_letter == rules.queue:
        death = (
            message.death or death
        )  # the first death record says more than "its consumer failed too"
        wait = min(max(_END_WAIT, rules.retry.backoff.wait(message.attempt)), rules.max_delay)

    move = _move(
        delivery,
        rules,
        rules.dead_letter,
        wait,
        attempt=1,
        expires_at=None,
        failed_at=None,
        death=death,
    )

    return Decision(move, "dead", reason, wait)


def _record(
    delivery: Delivery,
    rules: Rules,
    reason: Reason,
    failure: Failure | None,
    now: float,
    *,
    started: bool,
) -> Death:
    """Return the death record. A message that waited for its conclusion brings its own."""
    message = delivery.message
    if message.death is not None and reason is Reason.EXPIRED:
        return message.death
    return Death(
        reason=reason,
        queue=rules.queue,
        attempts=message.attempt if started else message.attempt - 1,
        first_at=message.failed_at or now,
        last_at=now,
        error_type=failure.type if failure else "",
        error=failure.text if failure else "",
        traceback=failure.traceback if failure else "",
    )


def postpone_conclusion(
    decision: Decision,
    delivery: Delivery,
    rules: Rules,
    result: HandlerResult,
    *,
    now: float,
    wait: float,
) -> Decision:
    """Return what becomes of a message whose final outcome cannot be settled yet.

    A message that was handled is handled again. Any other must not run any more: it keeps its death
    record and expires at the end of its wait, so it comes back as expired, to any consumer (G6).
    """
    wait = min(wait, rules.max_delay)
    if decision.reason is None:
        return _later(delivery, rules, wait)

    settlement = decision.settlement
    death = settlement.to.message.death if isinstance(settlement, Move) else None
    if death is None:
        started = decision.reason not in _NEVER_STARTED
        death = _record(delivery, rules, decision.reason, result.failure, now, started=started)
    move = _move(delivery, rules, rules.source, wait, death=death)
    return Decision(replace(move, to=replace(move.to, ttl=wait)), "postponed", delay=wait)


_NEVER_STARTED = {Reason.UNDECODABLE, Reason.INVALID, Reason.EXPIRED}


def recorded(delivery: Delivery) -> HandlerResult | None:
    """Return the result of a message that comes back to be concluded; None for any other.

    No other message has both a death record and an expiry: a dead letter never expires.
    """
    death = delivery.message.death
    if death is None or delivery.expires_in is None:
        return None
    return HandlerResult(Ending.EXPIRED, Failure((death.error_type,), death.error, death.traceback))


def _move(
    delivery: Delivery,
    rules: Rules,
    to: str,
    delay: float = 0.0,
    takeovers: int = 0,
    **changes: Any,
) -> Move:
    """Move to a queue, or to the end of this one; takeovers are counted from 0 again."""
    changes["takeovers"] = takeovers
    return Move(
        delivery.receipt, Outgoing(to, delivery.message.moved(rules.source, **changes), delay)
    )
