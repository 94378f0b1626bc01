"""Messages as AMQP properties, and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pika import BasicProperties

from mqcore.spi import Death, Message, Reason
from mqcore_rabbitmq.frames import Properties
from mqcore_rabbitmq.message_format import level_of, message_of, properties, released, released_as

WHOLE = Message(
    id="me",
    body=b"body",
    content_type="application/json",
    headers={"plain": "text", "CC": "an address", "unicode": "Grüße"},
    priority=9,
    attempt=3,
    hop=4,
    lineage="0123abcd",
    published_at=1_700_000_000.25,
    expires_at=1_800_000_000.5,
    correlation_id="c",
    reply_to="r",
    failed_at=1_700_000_001.5,
    redriven=2,
    death=Death(
        reason=Reason.REJECTED, queue="q", attempts=2, first_at=1.0, last_at=2.0, error="no"
    ),
)


def sent(**given: object) -> Properties:
    """What a plain client has sent, as it is received."""
    return Properties.read(b"".join(BasicProperties(**given).encode()))  # type: ignore[arg-type]  # as the tests name them


def received(message: Message, **options: object) -> Message:
    there = properties(message, message.expires_at, **options)  # type: ignore[arg-type]  # as the tests name them
    return message_of(there, message.body, None, 0.0)


def test_a_message_comes_back_as_it_was() -> None:
    assert received(WHOLE) == WHOLE
    assert received(WHOLE, native=False, ageless=True) == WHOLE
    bare = Message(id="bare", body=b"")
    assert received(bare) == bare


def test_any_client_finds_the_usual_properties() -> None:
    there = properties(WHOLE, None)
    plain = (
        there.message_id,
        there.content_type,
        there.correlation_id,
        there.reply_to,
        there.priority,
    )
    assert plain == ("me", "application/json", "c", "r", 9)
    assert (there.timestamp, there.delivery_mode) == (1_700_000_000, 2)


def test_nothing_that_would_act_by_itself_is_sent() -> None:
    """An expiry delivers early in the ladder, CC as text closes the channel, priority waits."""
    there = properties(WHOLE, WHOLE.expires_at, native=False)
    assert there.expiration is None
    assert there.priority is None
    assert "CC" not in there.headers
    assert level_of(there) == 9


def test_a_plain_message_is_a_first_attempt_with_an_id_of_its_own() -> None:
    one, two = (message_of(BasicProperties(), b"x", None, 0.0) for _ in range(2))
    assert one == Message(id=one.id, body=b"x")
    assert one.id != two.id


def test_what_brokers_added_is_not_seen_and_not_sent_again() -> None:
    there = sent(
        headers={"x-death": [{"count": 1}], "x-first-death-queue": "q", "mine": "1", "number": 7}
    )
    assert message_of(there, b"", None, 0.0).headers == {"mine": "1", "number": "7"}
    given_back = b"".join(released(there, None, 0, None).encode())
    assert Properties.read(given_back).headers == {"mine": "1", "number": 7, "mq-released": "1"}


def test_what_is_given_back_stays_what_it_was() -> None:
    there = sent(
        content_type="text/plain",
        app_id="plain client",
        priority=3,
        expiration="1000",
        user_id="bob",
        headers={"h": "v"},
    )
    again = released(there, 12.5, 0, 3)
    first = message_of(there, b"x", None, 0.0)
    assert message_of(again, b"x", None, 0.0) == replace(
        first, id=again.message_id, expires_at=12.5
    )
    assert (again.app_id, again.expiration, again.user_id) == ("plain client", None, None)


@pytest.mark.parametrize("priority", [None, 3, 7])
def test_what_is_given_back_has_the_queues_priority_and_keeps_its_level(
    priority: int | None,
) -> None:
    """A plain client's, too: a quorum queue takes a native priority for something else."""
    for there in (sent(priority=3), sent(), sent(headers={"mq-priority": "8"})):
        again = released(there, None, 0, priority)
        assert again.priority == priority
        assert level_of(again) == level_of(there)


@pytest.mark.parametrize(
    ("native", "ours", "level"),
    [(None, None, 5), (3, None, 3), (200, None, 10), (3, "9", 9), (3, "forged", 3), (0, None, 0)],
)
def test_the_priority_is_ours_then_the_brokers_then_the_default(
    native: int | None, ours: str | None, level: int
) -> None:
    headers = {} if ours is None else {"mq-priority": ours}
    assert level_of(BasicProperties(priority=native, headers=headers)) == level


@pytest.mark.parametrize("forged", ["soon", 7])
def test_a_forged_expiry_is_none(forged: object) -> None:
    assert (
        message_of(BasicProperties(headers={"mq-expires": forged}), b"", None, 0.0).expires_at
        is None
    )


def test_the_ttl_of_the_queue_counts_here_if_it_did_not_at_publish() -> None:
    fresh = replace(WHOLE, hop=0, expires_at=None, published_at=100.0)
    known, unknown = properties(fresh, None), properties(fresh, None, ageless=True)
    assert message_of(known, b"", 5.0, 200.0).expires_at is None
    assert message_of(unknown, b"", 5.0, 200.0).expires_at == 105.0
    assert message_of(BasicProperties(), b"", 5.0, 200.0).expires_at == 205.0
    assert message_of(properties(fresh, 101.0, ageless=True), b"", 5.0, 200.0).expires_at == 101.0
    assert (
        message_of(
            properties(replace(fresh, hop=1), None, ageless=True), b"", 5.0, 200.0
        ).expires_at
        is None
    )


def test_a_mark_tells_how_often_a_message_was_taken_over_when_it_was_released() -> None:
    there = properties(WHOLE, None)
    assert released_as(there) == (False, False)
    for takeovers in (0, 1, 12):
        again = released(there, None, takeovers, 3)
        assert released_as(again) == (True, takeovers)
        assert message_of(again, WHOLE.body, None, 0.0) == replace(WHOLE, expires_at=None)
