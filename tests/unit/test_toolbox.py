"""The toolbox of the seam: what several drivers need, said and decided once."""

import ssl
from pathlib import Path
from typing import Any

import pytest

from mqcore.spi import (
    Binding,
    ConfigurationError,
    Durability,
    Message,
    Outgoing,
    QueueSpec,
    Reason,
    TopologyMismatch,
    check_router_kinds,
    check_spec,
    expiry_of,
    not_alterable,
    overflowed,
    quarantine_of,
    split_hosts,
    tls_context,
)

JOBS = QueueSpec(name="jobs", ttl=60.0, max_length=5)


def test_equal_specs_and_another_durability_are_no_mismatch() -> None:
    check_spec(JOBS, QueueSpec(name="jobs", ttl=60.0, max_length=5, durability=Durability.MACHINE))


@pytest.mark.parametrize(
    ("alterable", "cure"),
    [
        (("ttl",), "mqcore queues alter jobs --ttl 120"),
        ((), "The broker fixes ttl when a queue is made"),
    ],
)
def test_a_mismatch_names_queue_setting_both_values_and_what_to_do(
    alterable: tuple[str, ...], cure: str
) -> None:
    want = QueueSpec(name="jobs", ttl=120.0, max_length=5)

    with pytest.raises(TopologyMismatch) as caught:
        check_spec(JOBS, want, alterable=alterable)

    assert "queue 'jobs' exists with ttl=60.0, but the code declares ttl=120.0" in str(caught.value)
    assert cure in str(caught.value)


def test_a_setting_that_cannot_be_altered_names_no_code_because_it_may_come_from_a_command() -> (
    None
):
    text = str(not_alterable("jobs", "max_length", 5, 6))
    assert "queue 'jobs' has max_length=5, which cannot be altered to 6" in text
    assert "mqcore queues delete jobs" in text
    assert "code" not in text


def test_a_router_has_one_kind_in_what_exists_and_in_what_is_added() -> None:
    direct = Binding(router="r", kind="direct", queue="q", pattern="k")
    fanout = Binding(router="r", kind="fanout", queue="q")
    check_router_kinds([direct], [direct, Binding(router="other", kind="fanout", queue="q")])

    for existing, added in (([direct], [fanout]), ([], [direct, fanout])):
        with pytest.raises(
            TopologyMismatch, match=r"router 'r' exists with kind='direct'.*kind='fanout'"
        ):
            check_router_kinds(existing, added)


@pytest.mark.parametrize(
    ("message", "ttl", "queue_ttl", "expires"),
    [
        ({}, None, None, None),
        ({"expires_at": 7.0}, None, None, 7.0),
        ({"expires_at": 7.0}, 2.0, None, 102.0),
        ({}, None, 5.0, 105.0),
        ({}, 9.0, 5.0, 105.0),
        ({}, 2.0, 5.0, 102.0),
        ({"hop": 1}, None, 5.0, None),
        ({"hop": 1, "expires_at": 300.0}, None, 5.0, 300.0),
    ],
)
def test_the_shorter_ttl_wins_and_the_queues_counts_for_publishes_only(
    message: dict[str, Any], ttl: float | None, queue_ttl: float | None, expires: float | None
) -> None:
    out = Outgoing("q", Message(id="m", body=b"", **message), ttl=ttl)
    assert expiry_of(out, queue_ttl, 100.0) == expires


@pytest.mark.parametrize(("failed_at", "first_at"), [(None, 50.0), (40.0, 40.0)])
def test_an_evicted_message_is_a_dead_letter_with_its_attempts(
    failed_at: float | None, first_at: float
) -> None:
    message = Message(id="m", body=b"x", attempt=3, expires_at=60.0, failed_at=failed_at)
    letter = overflowed(message, "jobs", 50.0)

    assert (letter.id, letter.hop, letter.attempt, letter.expires_at) == ("m", 1, 1, None)
    death = letter.death
    assert death is not None
    assert (death.reason, death.queue, death.attempts) == (Reason.OVERFLOW, "jobs", 2)
    assert (death.first_at, death.last_at) == (first_at, 50.0)


def test_a_quarantine_is_named_after_its_queue() -> None:
    assert quarantine_of("jobs") == "jobs.quarantine"


@pytest.mark.parametrize(
    ("netloc", "hosts"),
    [
        ("", (("localhost", 5),)),
        ("one", (("one", 5),)),
        ("user:pass@one:7,two", (("one", 7), ("two", 5))),
        ("[::1]:9", (("::1", 9),)),
    ],
)
def test_hosts_are_split(netloc: str, hosts: tuple[tuple[str, int], ...]) -> None:
    assert split_hosts(netloc, 5) == hosts


@pytest.mark.parametrize("netloc", ["user:canary@one:70000", "one:canary", "[::1"])
def test_hosts_that_are_not_valid_are_refused_without_secrets(netloc: str) -> None:
    with pytest.raises(ConfigurationError, match="not valid") as caught:
        split_hosts(netloc, 5)
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_tls_checks_names_and_certificates(tmp_path: Path) -> None:
    context = tls_context(None, None, None)
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)

    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    for files in ((tmp_path / "missing.pem", None, None), (None, bad, None)):
        with pytest.raises(ConfigurationError, match="cafile, certfile or keyfile"):
            tls_context(*files)
