"""What becomes of a message: G2 to G6, G10 and G11 as tables, without a broker or a clock."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqcore.errors import ConfigurationError
from mqcore.messages.delivery import Ack, Delivery, Move, Release
from mqcore.messages.message import Death, Message, Reason
from mqcore.rules.retry import (
    AfterCrash,
    Backoff,
    Decision,
    Ending,
    Failure,
    HandlerResult,
    RetryPolicy,
    Rules,
    admit,
    check_after_crash,
    decide,
    exponential,
    fixed,
    linear,
    postpone_conclusion,
    qualified,
    recorded,
)

NOW = 1_000_000.0
TEN_YEARS = 10 * 365 * 86_400
WORK = Rules(
    queue="q",
    source="q",
    retry=RetryPolicy(3, fixed(4)),
    dead_letter="q.dlq",
    quarantine="q.quarantine",
)
ALONE = replace(WORK, source="q.quarantine")
BARE = replace(WORK, dead_letter=None)
ALONE_BARE = replace(ALONE, dead_letter=None)
DLQ = Rules(queue="q.dlq", source="q.dlq", retry=RetryPolicy(3, fixed(4)), dead_letter="q.dlq")
TEMPORARY = Rules(queue="t", source="t", retry=RetryPolicy(3, fixed(4)))
ALL_RULES = {
    "work": WORK,
    "alone": ALONE,
    "bare": BARE,
    "alone, bare": ALONE_BARE,
    "dlq": DLQ,
    "temporary": TEMPORARY,
}
BOOM = Failure.of(ValueError("boom"))
AT_ONCE = {Ending.UNDECODABLE, Ending.INVALID, Ending.EXPIRED, Ending.REJECTED}


def delivery(
    attempt: int = 1, taken: int = 0, *, counted: bool = True, **changes: object
) -> Delivery:
    message = Message(
        id="m1",
        body=b"body",
        content_type="application/json",
        headers=MappingProxyType({"tenant": "a"}),
        priority=8,
        attempt=attempt,
        hop=6,
        published_at=NOW - 50,
        expires_at=777.0,
        correlation_id="c1",
        reply_to="r1",
        redriven=2,
    )
    message = replace(message, **changes)  # type: ignore[arg-type]  # a test's choice
    return Delivery(
        message,
        b"receipt",
        expires_in=60.0,
        redelivered=taken > 0,
        takeovers=taken,
        counted=counted,
    )


def judged(ending: Ending, rules: Rules, attempt: int = 1, **changes: object) -> Decision:
    failure = None if ending in {Ending.SUCCEEDED, Ending.INTERRUPTED, Ending.TAKEN_OVER} else BOOM
    taken = 2 if ending is Ending.TAKEN_OVER else 0
    return decide(
        HandlerResult(ending, failure),
        delivery(attempt, taken, **changes),
        rules,
        now=NOW,
        expires_in=60.0,
    )


def moved(decision: Decision) -> tuple[str, Message, float]:
    assert isinstance(decision.settlement, Move)
    assert decision.settlement.receipt == b"receipt"
    to = decision.settlement.to
    assert isinstance(to.to, str)
    assert to.ttl is None
    return to.to, to.message, to.delay


def expected(ending: Ending, rules: Rules, attempt: int) -> tuple[str, str | None, int]:  # noqa: PLR0911 - a table
    """Return verdict, target and attempt of the successor, by G4, G10 and G11."""
    at_end = attempt >= 3
    buried = ("dropped", None, 0) if rules.dead_letter is None else ("dead", rules.dead_letter, 1)
    if ending is Ending.SUCCEEDED:
        return "done", None, 0
    if ending is Ending.INTERRUPTED:
        return (
            ("released", "q.quarantine", attempt)
            if rules.source == "q.quarantine"
            else ("released", None, 0)
        )
    if ending is Ending.TAKEN_OVER and rules.quarantine is None:
        return "taken_over", rules.queue, attempt
    if ending is Ending.TAKEN_OVER and rules.source == "q":
        return "quarantined", "q.quarantine", attempt
    if ending is Ending.POSTPONED:
        return "postponed", rules.source, attempt
    if ending in AT_ONCE or at_end:
        return buried
    if ending is Ending.TAKEN_OVER:
        return "quarantined", "q.quarantine", attempt + 1
    return "retried", rules.queue, attempt + 1


@pytest.mark.parametrize("rules", ALL_RULES)
@pytest.mark.parametrize("ending", Ending, ids=lambda ending: ending.value)
def test_every_ending_of_every_attempt_in_every_kind_of_queue(ending: Ending, rules: str) -> None:
    for attempt in range(1, 5):
        decision = judged(ending, ALL_RULES[rules], attempt)
        verdict, target, successor_attempt = expected(ending, ALL_RULES[rules], attempt)
        assert decision.verdict == verdict
        assert decision.final == (verdict in {"done", "dead", "dropped"})
        if target is None:
            assert decision.settlement == (
                Release(b"receipt") if verdict == "released" else Ack(b"receipt")
            )
        else:
            to, message, delay = moved(decision)
            assert (to, message.attempt) == (target, successor_attempt)
            waits = verdict == "retried" or (verdict == "dead" and to == ALL_RULES[rules].queue)
            assert delay == decision.delay == (4 if waits else 0)


@pytest.mark.parametrize("rules", ALL_RULES)
@pytest.mark.parametrize(
    ("ending", "attempt", "reason", "started"),
    [
        (Ending.REJECTED, 2, Reason.REJECTED, 2),
        (Ending.UNDECODABLE, 2, Reason.UNDECODABLE, 1),
        (Ending.INVALID, 1, Reason.INVALID, 0),
        (Ending.EXPIRED, 3, Reason.EXPIRED, 2),
        (Ending.RETRY, 3, Reason.RETRIES_EXHAUSTED, 3),
        (Ending.FAILED, 3, Reason.RETRIES_EXHAUSTED, 3),
        (Ending.TIMED_OUT, 3, Reason.TIMEOUT, 3),
        (Ending.CRASHED, 4, Reason.CRASHED, 4),
    ],
    ids=lambda value: getattr(value, "value", str(value)),
)
def test_the_death_record_says_why_where_when_and_how_often(
    ending: Ending, attempt: int, reason: Reason, started: int, rules: str
) -> None:
    decision = judged(ending, ALL_RULES[rules], attempt, failed_at=NOW - 9)
    assert decision.reason is reason
    if ALL_RULES[rules].dead_letter is None:
        assert decision.verdict == "dropped"
        return
    _, message, _ = moved(decision)
    assert message.death == Death(
        reason=reason,
        queue=ALL_RULES[rules].queue,
        attempts=started,
        first_at=NOW - 9,
        last_at=NOW,
        error_type="ValueError",
        error="boom",
        traceback="ValueError: boom\n",
    )
    assert message.failed_at is None


def test_the_first_failure_of_a_message_starts_its_record() -> None:
    _, message, _ = moved(judged(Ending.FAILED, WORK, 1))
    assert message.failed_at == NOW
    _, message, _ = moved(judged(Ending.FAILED, WORK, 2, failed_at=5.0))
    assert message.failed_at == 5.0
    _, message, _ = moved(judged(Ending.REJECTED, WORK, 1))
    assert message.death is not None
    assert message.death.first_at == message.death.last_at == NOW


def test_what_dies_alone_is_recorded_as_crashed() -> None:
    decision = judged(Ending.TAKEN_OVER, ALONE, 3)
    to, message, _ = moved(decision)
    assert (to, decision.reason) == ("q.dlq", Reason.CRASHED)
    assert message.death is not None
    assert (message.death.attempts, message.death.queue) == (3, "q")
    assert message.death.error


@pytest.mark.parametrize(
    "counted", [True, False], ids=["the broker counts", "the broker has a flag"]
)
@pytest.mark.parametrize(("after_crash", "starts"), [("isolate", 5), ("count", 3)])
def test_a_killer_is_started_so_often_and_no_more(
    after_crash: AfterCrash, starts: int, *, counted: bool
) -> None:
    """Three attempts: five starts when isolated, three when each takeover counts (G4)."""
    rules, message, taken, started, alone = (
        replace(WORK, after_crash=after_crash),
        delivery().message,
        0,
        0,
        0,
    )
    while True:
        here = Delivery(
            message, b"receipt", redelivered=taken > 0, takeovers=taken, counted=counted
        )
        if (seen := admit(here, rules)) is not None:
            assert seen.redelivered == (started > 0)
            assert seen.attempt == (started + 1 if after_crash == "count" else max(1, started - 1))
            started += 1
            alone += rules.source == "q.quarantine"
            taken = taken + 1 if counted else 1  # its process dies each time that it runs
            continue
        decision = decide(HandlerResult(Ending.TAKEN_OVER), here, rules, now=NOW, expires_in=None)
        to, message, _ = moved(decision)
        taken = 0
        if to == "q.dlq":
            break
        rules = replace(rules, source=to)
    assert (started, alone) == (starts, 3 if after_crash == "isolate" else 0)
    assert decision.reason is Reason.CRASHED
    assert message.death is not None
    assert message.death.attempts == 3


def test_a_first_takeover_raises_no_suspicion_and_costs_no_attempt() -> None:
    seen = admit(delivery(2, taken=1), WORK)
    assert seen is not None
    assert (seen.attempt, seen.redelivered) == (2, True)


def test_with_only_a_flag_the_first_takeover_is_recorded_before_the_message_runs() -> None:
    lost = delivery(2, taken=1, counted=False)
    assert admit(lost, WORK) is None
    decision = decide(HandlerResult(Ending.TAKEN_OVER), lost, WORK, now=NOW, expires_in=None)
    to, message, delay = moved(decision)
    assert (decision.verdict, to, message.takeovers, message.attempt, delay) == (
        "taken_over",
        "q",
        1,
        2,
        0,
    )
    again = Delivery(message, b"receipt", counted=False)
    seen = admit(again, WORK)
    assert seen is not None, "it is on record: now it runs among the others"
    assert seen.redelivered
    assert admit(replace(again, redelivered=True, takeovers=1), WORK) is None, (
        "and this was the second"
    )


@pytest.mark.parametrize(
    "ending", [Ending.RETRY, Ending.REJECTED, Ending.TAKEN_OVER], ids=lambda it: it.value
)
def test_a_retry_a_dead_letter_and_a_suspect_begin_with_no_takeover(ending: Ending) -> None:
    assert moved(judged(ending, WORK, takeovers=1))[1].takeovers == 0


def test_only_what_had_started_counts_where_the_backend_notes_starts() -> None:
    noting = replace(ALONE, notes_starts=True)
    lost = delivery(taken=7)
    assert admit(lost, ALONE) is None
    assert admit(lost, noting) == replace(lost, redelivered=True)
    assert admit(replace(lost, started=True), noting) is None


@pytest.mark.parametrize(("attempt", "wait"), [(1, 15), (2, 30), (3, 60), (4, 60)])
def test_a_suspect_waits_between_its_runs_where_a_lost_connection_looks_like_a_death(
    attempt: int, wait: int
) -> None:
    rules = replace(ALONE, retry=RetryPolicy(9))

    def settled(expires_in: float | None, *, counted: bool, max_delay: float = 1000.0) -> Decision:
        lost = delivery(attempt, taken=1, counted=counted)
        limited = replace(rules, max_delay=max_delay)
        return decide(
            HandlerResult(Ending.TAKEN_OVER), lost, limited, now=NOW, expires_in=expires_in
        )

    by_flag = settled(None, counted=False)
    to, message, delay = moved(by_flag)
    assert (to, message.attempt, delay, by_flag.delay) == ("q.quarantine", attempt + 1, wait, wait)
    assert moved(settled(None, counted=True))[2] == 0, "here the broker knows"
    assert moved(settled(wait, counted=False))[2] == 0, "it would expire meanwhile"
    assert moved(settled(None, counted=False, max_delay=0.0))[2] == 0, "the backend has no delays"


def test_an_innocent_is_isolated_without_a_count() -> None:
    _, innocent, _ = moved(judged(Ending.TAKEN_OVER, WORK))
    assert innocent.attempt == 1


@pytest.mark.parametrize("rules", [DLQ, TEMPORARY], ids=["dlq", "temporary"])
def test_where_there_is_no_quarantine_what_was_taken_over_runs_like_any_other(rules: Rules) -> None:
    for taken in (1, 5):
        seen = admit(delivery(taken=taken, counted=False), rules)
        assert seen is not None
        assert seen.attempt == 1


def test_after_crash_is_one_of_two_words() -> None:
    assert check_after_crash("count", "handler f") == "count"
    with pytest.raises(
        ConfigurationError,
        match="handler f: after_crash='never' is unknown; it is 'isolate' or 'count'",
    ):
        check_after_crash("never", "handler f")


def test_failures_of_a_dead_letter_queues_consumer_keep_their_first_record() -> None:
    first = Death(reason=Reason.TIMEOUT, queue="q", attempts=3, first_at=1.0, last_at=2.0)
    to, message, delay = moved(judged(Ending.REJECTED, DLQ, 1, death=first))
    assert (to, delay, message.death, message.attempt) == ("q.dlq", 4, first, 1)
    impatient = replace(DLQ, retry=RetryPolicy(3, fixed(0)))
    assert moved(judged(Ending.UNDECODABLE, impatient, 1))[2] == 1, "it must not spin"
    to, message, _ = moved(judged(Ending.REJECTED, DLQ, 1))
    assert message.death is not None
    assert (to, message.death.reason) == ("q.dlq", Reason.REJECTED)


@pytest.mark.parametrize(
    ("delay", "wait"),
    [(None, 4), (0, 0), (0.5, 0.5), (-1, 0), (1e9, 100), (float("inf"), 100), (float("nan"), 0)],
    ids=[
        "policy",
        "zero",
        "half a second",
        "negative",
        "beyond the backend's maximum",
        "endless",
        "nan",
    ],
)
def test_the_handler_may_choose_the_wait(delay: float | None, wait: float) -> None:
    rules = replace(WORK, max_delay=100)
    decision = decide(
        HandlerResult(Ending.RETRY, None, delay), delivery(), rules, now=NOW, expires_in=None
    )
    assert (decision.verdict, moved(decision)[2], decision.delay) == ("retried", wait, wait)


def test_a_chosen_wait_overrides_neither_attempts_nor_age() -> None:
    asked = HandlerResult(Ending.RETRY, None, 0.0)
    assert decide(asked, delivery(3), WORK, now=NOW, expires_in=None).verdict == "dead"
    young = replace(WORK, retry=RetryPolicy(3, max_age=40))
    assert (
        decide(asked, delivery(), young, now=NOW, expires_in=None).reason
        is Reason.RETRIES_EXHAUSTED
    )


@pytest.mark.parametrize(
    ("expires_in", "verdict", "reason"),
    [
        (None, "retried", None),
        (4.001, "retried", None),
        (4.0, "dead", Reason.EXPIRED),
        (0.0, "dead", Reason.EXPIRED),
        (-5.0, "dead", Reason.EXPIRED),
    ],
)
def test_a_wait_that_ends_after_the_expiry_is_a_dead_letter_at_once(
    expires_in: float | None, verdict: str, reason: Reason | None
) -> None:
    decision = decide(
        HandlerResult(Ending.FAILED, BOOM), delivery(), WORK, now=NOW, expires_in=expires_in
    )
    assert (decision.verdict, decision.reason) == (verdict, reason)
    if verdict == "dead":
        death = moved(decision)[1].death
        assert death is not None
        assert death.attempts == 1


@pytest.mark.parametrize(
    ("max_age", "published_at", "verdict"),
    [
        (53.9, NOW - 50, "dead"),
        (54, NOW - 50, "retried"),
        (timedelta(seconds=53), NOW - 50, "dead"),
        (timedelta(minutes=1), NOW - 50, "retried"),
        (1, None, "retried"),
        (60, NOW + 1000, "retried"),
        (None, 0.0, "retried"),
    ],
    ids=[
        "too old by then",
        "just",
        "as timedelta",
        "in time",
        "foreign",
        "from the future",
        "no limit",
    ],
)
def test_max_age_counts_from_the_publish_to_the_next_start(
    max_age: float | timedelta | None, published_at: float | None, verdict: str
) -> None:
    rules = replace(WORK, retry=RetryPolicy(3, fixed(4), max_age=max_age))
    assert judged(Ending.FAILED, rules, published_at=published_at).verdict == verdict


def postponed(
    here: Delivery, rules: Rules, delay: float, expires_in: float | None = None
) -> Decision:
    asked = HandlerResult(Ending.POSTPONED, None, delay)
    return decide(asked, here, rules, now=NOW, expires_in=expires_in)


@pytest.mark.parametrize("attempt", [1, 3, 9])
def test_a_postponed_message_stays_what_it_was(attempt: int) -> None:
    here = delivery(attempt, failed_at=5.0)
    decision = postponed(here, WORK, 7)
    to, message, delay = moved(decision)
    assert (decision.verdict, decision.reason, decision.final) == ("postponed", None, False)
    assert (to, delay, decision.delay) == ("q", 7, 7)
    assert message == here.message.moved("q"), "only the name of the copy is another one (G1)"


@pytest.mark.parametrize(
    ("delay", "expires_in", "wait"),
    [
        (7, 7.5, 7),
        (7, 7, 7),
        (7, 3, 3),
        (7, 0, 0),
        (7, -2, 0),
        (float("inf"), 3, 3),
        (float("inf"), None, 100),
        (-1, None, 0),
        (float("nan"), None, 0),
    ],
)
def test_the_wait_of_a_postponed_message_ends_at_its_expiry(
    delay: float, expires_in: float | None, wait: float
) -> None:
    decision = postponed(delivery(), replace(WORK, max_delay=100), delay, expires_in)
    _, message, actual = moved(decision)
    assert (decision.verdict, actual, message.expires_at) == ("postponed", wait, 777.0)


def test_max_age_applies_to_a_postponed_message() -> None:
    young = replace(WORK, retry=RetryPolicy(3, max_age=60))
    assert postponed(delivery(), young, 10).verdict == "postponed"
    late = postponed(delivery(), young, 10.1)
    assert (late.verdict, late.reason) == ("dead", Reason.RETRIES_EXHAUSTED)
    death = moved(late)[1].death
    assert death is not None
    assert "max_age" in death.error


def test_a_backend_without_delays_does_not_postpone_without_an_end() -> None:
    decision = postponed(delivery(), replace(WORK, max_delay=0.0), 5)
    assert (decision.verdict, decision.reason) == ("dead", Reason.REJECTED)
    assert "cannot delay" in (getattr(moved(decision)[1].death, "error", ""))


def test_a_postponed_message_keeps_its_takeovers_and_a_suspect_its_quarantine() -> None:
    once = delivery(taken=1)
    assert moved(postponed(once, WORK, 1))[1].takeovers == 1
    assert moved(postponed(delivery(takeovers=1), WORK, 1))[1].takeovers == 1
    to, message, delay = moved(postponed(delivery(2), ALONE, 5))
    assert (to, message.attempt, message.takeovers, delay) == ("q.quarantine", 2, 0, 5)
    counting = replace(WORK, after_crash="count")
    seen = admit(once, counting)
    assert seen is not None
    _, message, _ = moved(postponed(seen, counting, 1))
    assert (message.attempt, message.takeovers) == (2, 0), "counted as an attempt already"


@pytest.mark.parametrize(
    "counted", [True, False], ids=["the broker counts", "the broker has a flag"]
)
@pytest.mark.parametrize("after_crash", ["isolate", "count"])
def test_a_killer_that_postpones_itself_in_between_is_dead_lettered_all_the_same(
    after_crash: AfterCrash, *, counted: bool
) -> None:
    rules, message, taken = replace(WORK, after_crash=after_crash), delivery().message, 0
    kills = starts = 0
    while starts < 100:
        here = Delivery(message, b"receipt", takeovers=taken, counted=counted)
        seen = admit(here, rules)
        if seen is None:
            asked, here_now = HandlerResult(Ending.TAKEN_OVER), here
        elif (starts := starts + 1) % 2:
            kills += 1
            taken = taken + 1 if counted else 1
            continue
        else:
            asked, here_now = HandlerResult(Ending.POSTPONED, None, 1.0), seen
        decision = decide(asked, here_now, rules, now=NOW, expires_in=None)
        to, message, _ = moved(decision)
        taken = 0
        if to == "q.dlq":
            break
        rules = replace(rules, source=to)
    assert decision.reason is Reason.CRASHED
    assert kills == (5 if after_crash == "isolate" else 3)


@pytest.mark.parametrize("rules", ALL_RULES)
def test_the_conclusion_of_a_done_message_is_postponed_as_the_message_is(rules: str) -> None:
    result, here = HandlerResult(Ending.SUCCEEDED), delivery(2, failed_at=5.0)
    decision = decide(result, here, ALL_RULES[rules], now=NOW, expires_in=60.0)
    later = postpone_conclusion(decision, here, ALL_RULES[rules], result, now=NOW, wait=7)
    assert moved(later)[0] == ALL_RULES[rules].source
    assert moved(later)[1] == here.message.moved(ALL_RULES[rules].source)
    assert (later.verdict, later.final, later.delay) == ("postponed", False, 7)


@pytest.mark.parametrize("rules", ALL_RULES)
@pytest.mark.parametrize(
    "ending",
    [Ending.REJECTED, Ending.FAILED, Ending.UNDECODABLE, Ending.EXPIRED, Ending.CRASHED],
    ids=lambda ending: ending.value,
)
def test_a_postponed_conclusion_comes_back_as_it_was_and_never_runs(
    ending: Ending, rules: str
) -> None:
    queue, here = ALL_RULES[rules], delivery(3, failed_at=NOW - 9)
    result = HandlerResult(ending, BOOM)
    first = decide(result, here, queue, now=NOW, expires_in=60.0)
    for wait in (7, 9):  # postponed twice
        later = postpone_conclusion(first, here, queue, result, now=NOW, wait=wait)
        assert isinstance(later.settlement, Move)
        out = later.settlement.to
        assert (out.to, out.delay, out.ttl, later.delay) == (queue.source, wait, wait, wait)
        assert out.message.attempt == 3

        here = Delivery(out.message, b"receipt", expires_in=0.0)
        again = recorded(here)
        assert again is not None
        assert again.failure is not None
        assert (again.failure.type, again.failure.text) == ("ValueError", "boom")
        result = again
        last = decide(result, here, queue, now=NOW + 100, expires_in=0.0)
        assert (last.verdict, last.reason) == (first.verdict, first.reason)
        if last.verdict == "dead":
            assert moved(last)[1].death == out.message.death
            assert moved(last)[1].expires_at is None
        first = last


def test_a_dead_letter_and_a_message_that_has_expired_are_not_taken_for_a_conclusion() -> None:
    death = Death(reason=Reason.TIMEOUT, queue="q", attempts=3, first_at=1.0, last_at=2.0)
    assert recorded(Delivery(delivery(death=death).message, b"receipt", expires_in=None)) is None
    assert recorded(Delivery(delivery().message, b"receipt", expires_in=-1.0)) is None


def test_a_postponed_conclusion_waits_no_longer_than_the_backend_can() -> None:
    limited, result = replace(WORK, max_delay=100.0), HandlerResult(Ending.REJECTED, BOOM)
    decision = decide(result, delivery(), limited, now=NOW, expires_in=None)
    later = postpone_conclusion(decision, delivery(), limited, result, now=NOW, wait=1e9)
    assert later.delay == 100


class Base(Exception):
    pass


class Derived(Base):
    pass


@pytest.mark.parametrize(
    ("policy", "error", "again"),
    [
        (RetryPolicy(), Derived(), True),
        (RetryPolicy(), SystemExit(1), True),
        (RetryPolicy(), KeyboardInterrupt(), True),
        (RetryPolicy(retry_on=(Base,)), Derived(), True),
        (RetryPolicy(retry_on=(Derived,)), Base(), False),
        (RetryPolicy(retry_on=(OSError,)), TimeoutError(), True),
        (RetryPolicy(retry_on=(OSError,)), Derived(), False),
        (RetryPolicy(give_up_on=(Base,)), Derived(), False),
        (RetryPolicy(give_up_on=(Derived,)), Base(), True),
        (RetryPolicy(retry_on=(Base,), give_up_on=(Derived,)), Derived(), False),
        (RetryPolicy(retry_on=()), Derived(), False),
    ],
    ids=range(11),
)
def test_which_exceptions_are_retried_goes_by_class_and_bases(
    policy: RetryPolicy, error: BaseException, *, again: bool
) -> None:
    decision = decide(
        HandlerResult(Ending.FAILED, Failure.of(error)),
        delivery(),
        replace(WORK, retry=policy),
        now=NOW,
        expires_in=None,
    )
    assert (decision.verdict, decision.reason) == (
        ("retried", None) if again else ("dead", Reason.REJECTED)
    )


def test_classes_are_compared_by_name_only() -> None:
    assert qualified(OSError) == "builtins.OSError"
    assert qualified(Derived).endswith("test_policy.Derived")
    assert Failure.of(Derived()).types[:2] == (qualified(Derived), qualified(Base))
    assert RetryPolicy(retry_on=(ValueError,)).retries(None)


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_any_exception_can_be_described() -> None:
    failure = Failure.of(Unprintable())
    assert "RuntimeError" in failure.text
    assert failure.type.endswith("Unprintable")
    assert Failure.of(ValueError("\ud800")).text == "?"
    assert Failure((), "").type == ""
    huge = Failure.of(ValueError("x" * 10**6))
    assert (len(huge.text), len(huge.traceback)) == (2_000, 4_000)
    assert huge.type == "ValueError"


@pytest.mark.parametrize(
    ("backoff", "waits"),
    [
        (fixed(3), [3, 3, 3, 3]),
        (fixed(0), [0, 0, 0, 0]),
        (linear(2, jitter=False), [2, 4, 6, 8]),
        (linear(2, cap=5, jitter=False), [2, 4, 5, 5]),
        (exponential(1, jitter=False), [1, 2, 4, 8]),
        (exponential(0.5, cap=3, factor=3, jitter=False), [0.5, 1.5, 3, 3]),
        (exponential(100, jitter=False), [60, 60, 60, 60]),
        (Backoff(1, step=2, factor=2), [1, 4, 8, 14]),
    ],
    ids=range(8),
)
def test_backoff(backoff: Backoff, waits: list[float]) -> None:
    assert [backoff.wait(attempt) for attempt in (1, 2, 3, 4)] == waits


def test_jitter_is_full() -> None:
    backoff = exponential(10)
    assert [backoff.wait(1, chance) for chance in (0.0, 0.25, 1.0)] == [0, 2.5, 10]
    assert fixed(10).wait(1, 0.25) == 10
    assert fixed(10, jitter=True).wait(1, 0.25) == 2.5


@given(
    st.builds(
        Backoff,
        base=st.floats(0, TEN_YEARS),
        step=st.floats(0, TEN_YEARS),
        factor=st.floats(1, 1e300) | st.integers(1, 10**6),
        cap=st.floats(0, TEN_YEARS),
        jitter=st.booleans(),
    ),
    st.integers(1, 2_000),
    st.floats(0, 1),
)
def test_no_backoff_overflows_or_leaves_its_bounds(
    backoff: Backoff, attempt: int, chance: float
) -> None:
    wait = backoff.wait(attempt, chance)
    assert 0 <= wait <= backoff.cap
    assert backoff.wait(attempt, 1.0) <= backoff.wait(attempt + 1, 1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"base": -1.0},
        {"base": float("nan")},
        {"base": float("inf")},
        {"base": TEN_YEARS + 1.0},
        {"base": 1.0, "step": -1.0},
        {"base": 1.0, "factor": 0.5},
        {"base": 1.0, "factor": float("nan")},
        {"base": 1.0, "cap": -1.0},
        {"base": 1.0, "cap": float("nan")},
    ],
    ids=str,
)
def test_an_unusable_backoff_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="not usable"):
        Backoff(**wrong)  # type: ignore[arg-type]  # mypy sees one type for all options


@pytest.mark.parametrize("attempts", [0, -1])
def test_a_policy_that_never_runs_is_refused(attempts: int) -> None:
    with pytest.raises(ConfigurationError, match="1 means no retry"):
        RetryPolicy(max_attempts=attempts)


MESSAGES = st.builds(
    Message,
    id=st.just("m"),
    body=st.binary(max_size=3),
    content_type=st.sampled_from([None, "text/plain"]),
    headers=st.dictionaries(st.sampled_from("ab"), st.text(max_size=2)),
    priority=st.integers(0, 10),
    attempt=st.integers(1, 6),
    hop=st.integers(0, 100),
    published_at=st.none() | st.floats(0, 2 * NOW),
    expires_at=st.none() | st.floats(0, 2 * NOW),
    correlation_id=st.sampled_from([None, "c"]),
    reply_to=st.sampled_from([None, "r"]),
    failed_at=st.none() | st.floats(1, NOW),
    redriven=st.integers(0, 3),
)
OUTCOMES = st.builds(
    HandlerResult,
    st.sampled_from(Ending),
    st.sampled_from([None, BOOM]),
    st.none() | st.floats(allow_nan=True),
)
POLICIES = st.builds(
    RetryPolicy,
    max_attempts=st.integers(1, 5),
    backoff=st.builds(exponential, st.floats(0, 1e6), cap=st.floats(0, 1e6)),
    max_age=st.none() | st.floats(0, 1e6),
)


@given(
    OUTCOMES,
    MESSAGES,
    st.sampled_from(list(ALL_RULES.values())),
    POLICIES,
    st.none() | st.floats(-10, 1e6),
    st.floats(0, 1),
)
def test_what_every_move_keeps_and_changes(
    result: HandlerResult,
    message: Message,
    rules: Rules,
    policy: RetryPolicy,
    expires_in: float | None,
    chance: float,
) -> None:
    rules = replace(rules, retry=policy, max_delay=3600.0)
    given_delivery = Delivery(message, b"receipt", expires_in)
    decision = decide(result, given_delivery, rules, now=NOW, expires_in=expires_in, chance=chance)
    assert (decision.reason is not None) == (decision.verdict in {"dead", "dropped"})
    if not isinstance(decision.settlement, Move):
        assert decision.settlement in (Ack(b"receipt"), Release(b"receipt"))
        return
    to, after, delay = moved(decision)
    assert after.hop == message.hop + 1
    kept = (
        "id",
        "body",
        "content_type",
        "headers",
        "priority",
        "published_at",
        "correlation_id",
        "reply_to",
        "redriven",
    )
    assert [getattr(after, name) for name in kept] == [getattr(message, name) for name in kept]
    assert 0 <= delay <= 3600
    if decision.verdict == "dead":
        assert (to, after.attempt, after.expires_at, after.failed_at) == (
            rules.dead_letter,
            1,
            None,
            None,
        )
        assert after.death is not None
        assert after.death.attempts >= 0
    else:
        assert after.expires_at == message.expires_at
        assert message.attempt <= after.attempt <= message.attempt + 1
        assert after.attempt <= max(policy.max_attempts, message.attempt)
        assert after.death == message.death
        assert expires_in is None or delay < expires_in or decision.verdict != "retried"
    if decision.verdict == "retried":
        assert to == rules.queue
        assert after.attempt == message.attempt + 1
        assert after.failed_at is not None


NOT_A_DURATION = ["soon", float("nan"), float("inf"), -1, True, [], object()]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("max_attempts", value) for value in (0, -1, 2.5, True, "3", None, float("nan"))),
        *(("max_age", value) for value in NOT_A_DURATION),
        *(("backoff", value) for value in (5, None, "fixed", fixed, {"base": 1})),
        *(
            (name, value)
            for name in ("retry_on", "give_up_on")
            for value in ((int,), (OSError(),), OSError, None)
        ),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_a_policy_that_could_not_be_acted_on_is_refused_when_it_is_made(
    option: str, value: Any
) -> None:
    with pytest.raises(ConfigurationError, match=rf"retry policy.*{option}="):
        RetryPolicy(**{option: value})


@pytest.mark.parametrize("value", NOT_A_DURATION, ids=lambda value: repr(value)[:30])
@pytest.mark.parametrize(
    "make", [fixed, linear, exponential], ids=["fixed", "linear", "exponential"]
)
def test_a_backoff_of_no_duration_is_refused(make: Callable[[Any], Backoff], value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"backoff.* is not usable"):
        make(value)


@pytest.mark.parametrize(
    "options", [{"cap": "soon"}, {"factor": float("inf")}, {"factor": True}, {"jitter": 1}], ids=str
)
def test_a_backoff_with_wrong_options_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=r"backoff.* is not usable"):
        exponential(1, **options)


def test_a_policys_durations_may_be_timedeltas() -> None:
    assert fixed(timedelta(minutes=1)) == fixed(60)
    assert linear(timedelta(seconds=2), cap=timedelta(minutes=1)) == linear(2, cap=60)
    assert exponential(timedelta(seconds=2), cap=timedelta(minutes=1)) == exponential(2, cap=60)
    assert RetryPolicy(max_age=timedelta(hours=1)).max_age == timedelta(hours=1)


def noted_run(rules: Rules, starts: Sequence[bool]) -> tuple[list[int], str]:
    """Let a consumer die at each turn, after a start or before; return the attempts that were
    started, and where the message went at the end."""
    message, taken, started, seen = delivery().message, 0, False, list[int]()
    for begins in starts:
        while True:
            here = Delivery(
                message, b"receipt", redelivered=taken > 0, takeovers=taken, started=started
            )
            if (admitted := admit(here, rules)) is not None:
                break
            decision = decide(
                HandlerResult(Ending.TAKEN_OVER), here, rules, now=NOW, expires_in=None
            )
            to, message, _ = moved(decision)
            taken, started = 0, False
            if to != rules.source:
                return seen, to
        if begins:
            seen.append(admitted.attempt)
        taken, started = taken + 1, started or begins
    return seen, rules.source


NOTING = replace(WORK, after_crash="count", notes_starts=True, notes_each=True)


def test_with_count_only_a_noted_start_is_an_attempt() -> None:
    assert noted_run(NOTING, [True] * 10) == ([1, 2, 3], "q.dlq")
    assert noted_run(NOTING, [False] * 9 + [True, True]) == ([1, 2], "q")
    mixed = [False, True, False, False, True, False, True, False]
    assert noted_run(NOTING, mixed) == ([1, 2, 3], "q.dlq")


def test_what_ends_its_consumers_before_the_note_is_dead_lettered_too() -> None:
    """Ten takeovers of one copy count as one attempt, so it does not come back for ever (G4)."""
    assert noted_run(NOTING, [False] * 30) == ([], "q")
    assert noted_run(NOTING, [False] * 31) == ([], "q.dlq")
    alone = replace(ALONE, notes_starts=True)
    assert noted_run(alone, [False] * 30) == ([], "q.quarantine")
    assert noted_run(alone, [False] * 31) == ([], "q.dlq")
