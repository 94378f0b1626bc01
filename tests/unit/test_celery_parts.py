"""The parts of mqcore's transport for Celery that do no I/O."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqcore import ConfigurationError, Queue
from mqcore_celery import aliases, options
from mqcore_celery.arguments import queue_of
from mqcore_celery.consuming import next_size
from mqcore_celery.names import decoded, encoded
from mqcore_celery.publishing import seconds_until
from mqcore_celery.url import address_of
from mqcore_celery.wire import ForeignMessage, packed, unpacked

# Names


@given(st.text(min_size=1, max_size=16), st.sampled_from(["", "shop."]))
def test_every_name_comes_back_and_can_be_declared(name: str, prefix: str) -> None:
    usable = encoded(name, prefix)
    Queue(usable)
    assert decoded(usable, prefix) == name


@given(st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=2, unique=True))
def test_different_names_stay_different(names: list[str]) -> None:
    assert encoded(names[0]) != encoded(names[1])


@pytest.mark.parametrize(
    ("name", "usable"),
    [
        ("celery", "celery"),
        ("celery@host.celery.pidbox", "celery:40host.celery.pidbox"),
        ("amq.gen-1", "_:61mq.gen-1"),
        ("mq.jobs", "_:6dq.jobs"),
        ("orders.dlq", "orders:2edlq"),
        ("orders.quarantine", "orders:2equarantine"),
        ("_:61", "_:5f:3a61"),
        ("заказы", "_:d0:b7:d0:b0:d0:ba:d0:b0:d0:b7:d1:8b"),
    ],
)
def test_names_that_mqcore_reserves_or_does_not_allow(name: str, usable: str) -> None:
    assert encoded(name) == usable
    assert decoded(usable) == name


@pytest.mark.parametrize("name", ["dlq", "quarantine", "_:61", "a.dlq"])
def test_reserved_names_behind_a_prefix(name: str) -> None:
    usable = encoded(name, "shop.")
    Queue(usable)
    assert decoded(usable, "shop.") == name


def test_a_name_that_is_too_long_says_how_long_it_may_be() -> None:
    with pytest.raises(ConfigurationError, match="has 220 characters for mqcore, which takes 1 to"):
        encoded("q" * 220)


# URLs


def client(hostname: str | None, **parts: Any) -> Any:
    return SimpleNamespace(
        **{
            "hostname": hostname,
            "userid": None,
            "password": None,
            "port": None,
            "virtual_host": "/",
            "transport_cls": "mqcore",
            **parts,
        }
    )


@pytest.mark.parametrize(
    ("hostname", "parts", "url"),
    [
        ("redis://h/0", {}, "redis://h/0"),
        ("mqcore+redis://h/0", {}, "redis://h/0"),
        ("redis://me:p%40ss%2F@h:7/0", {}, "redis://me:p%40ss%2F@h:7/0"),
        ("redis://:secret@h", {}, "redis://:secret@h"),
        ("amqp://h/shop", {"userid": "me", "password": "a:b@c"}, "amqp://me:a%3Ab%40c@h/shop"),
        ("sqlite:////tmp/x.db?synchronous=full", {}, "sqlite:////tmp/x.db?synchronous=full"),
        # after a failover, kombu has taken the URL apart
        (
            "b",
            {"transport_cls": "mqcore+redis", "port": 6380, "virtual_host": "2", "password": "x"},
            "redis://:x@b:6380/2",
        ),
        ("b", {"transport_cls": "mqcore+amqp"}, "amqp://b/"),
        (None, {"transport_cls": "mqcore+sqlite", "virtual_host": "/a/x.db"}, "sqlite:////a/x.db"),
    ],
)
def test_the_url_for_the_broker(hostname: str | None, parts: dict[str, Any], url: str) -> None:
    assert address_of(client(hostname, **parts)).whole == url


def test_the_url_without_its_secrets() -> None:
    address = address_of(client("redis://me:pass@h/0"))
    assert (address.url, address.user, address.password) == ("redis://h/0", "me", "pass")
    assert address.masked("**") == "mqcore+redis://me:**@h/0"


@pytest.mark.parametrize("hostname", ["mqcore://h", "mqcore://me:secret@h/0"])
def test_a_url_without_an_inner_scheme_says_what_to_write(hostname: str) -> None:
    with pytest.raises(ConfigurationError, match=r"Write mqcore\+redis://") as caught:
        address_of(client(hostname))
    assert "secret" not in str(caught.value)


# Options


def test_options_of_kombu_itself_and_of_other_transports_are_no_errors(
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = {"max_retries": 3, "visibility_timeout": 3600, "eta": "broker", "lease": 5}
    assert options.read(given) == options.TransportOptions(eta="broker", lease=5)
    options.read(given)
    lines = [line for line in caplog.messages if "'visibility_timeout' has no effect" in line]
    assert len(lines) <= 1  # one warning in a process


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"etaa": "broker"}, "'etaa' is unknown to mqcore. Known are eta, ignore_arguments"),
        ({"eta": "never"}, 'give "worker" or "broker"'),
        ({"priority_order": 5}, 'give "higher_first" or "lower_first"'),
        ({"max_requeues": 0}, "give 1 or more"),
        ({"max_payload": True}, "give 1 or more"),
        ({"lease": "5"}, "give seconds"),
        ({"queue_prefix": "a b"}, "give letters"),
        ({"queue_prefix": ".a"}, "give letters"),
        ({"ignore_arguments": 1}, "give True or False"),
    ],
)
def test_wrong_options_say_what_to_give(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        options.read(given)


# Queue arguments


def test_what_kombu_says_of_a_queue() -> None:
    queue = queue_of(
        "q",
        {"x-message-ttl": 5000, "x-max-length": 7, "x-max-priority": 10, "x-queue-type": "quorum"},
        is_temporary=False,
        ignores=False,
    )
    assert (queue.ttl, queue.max_length, queue.temporary, queue.dead_letter) == (
        5.0,
        7,
        False,
        "q.dlq",
    )
    for arguments, is_temporary in (({"x-expires": 1000}, False), ({}, True)):
        queue = queue_of("q", arguments, is_temporary=is_temporary, ignores=False)
        assert (queue.temporary, queue.dead_letter) == (True, None)


def test_an_argument_without_a_meaning_is_refused_or_ignored() -> None:
    arguments = {"x-dead-letter-exchange": "dead"}
    with pytest.raises(ConfigurationError, match=r"x-dead-letter-exchange.*ignore_arguments"):
        queue_of("q", arguments, is_temporary=False, ignores=False)
    assert queue_of("q", arguments, is_temporary=False, ignores=True).name == "q"


# What travels


def test_a_message_comes_back_and_carries_the_properties_of_amqp_alone() -> None:
    message = {
        "body": "naïve",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"id": "1", "eta": None, "retries": 0},
        "properties": {
            "correlation_id": "1",
            "priority": 3,
            "reply_to": None,
            "mqcore_id": "abc",
            "mine": object(),  # JSON cannot carry it
        },
    }
    parts = unpacked(packed(message, "", "celery"))
    assert parts.body == "naïve".encode()
    assert (parts.content_type, parts.content_encoding) == ("application/json", "utf-8")
    assert parts.headers == {"id": "1", "eta": None, "retries": 0}
    assert parts.properties == {"correlation_id": "1", "priority": 3}
    assert (parts.exchange, parts.routing_key) == ("", "celery")


@pytest.mark.parametrize("data", [b"", b"[]", b"kombu1", b"kombu1\0\0\0\2{}", b"kombu1\xff\xff"])
def test_a_message_of_another_origin_is_refused(data: bytes) -> None:
    with pytest.raises(ForeignMessage, match="was not published by mqcore's transport"):
        unpacked(data)


# Waiting


@pytest.mark.parametrize(
    ("size", "wanted", "base", "result"),
    [
        (8, 8, 8, 8),
        (8, 9, 8, 10),  # by a quarter
        (10, 9, 8, 10),  # enough is there
        (10, 8, 8, 8),  # back where it began
        (100, 60, 8, 100),
        (100, 50, 8, 50),
        (8, 100, 8, 100),
    ],
)
def test_a_prefetch_follows_in_steps(size: int, wanted: int, base: int, result: int) -> None:
    assert next_size(size, wanted, base) == result


def test_a_hundred_eta_tasks_take_few_steps() -> None:
    size, steps = 8, 0
    for wanted in range(9, 109):
        new = next_size(size, wanted, 8)
        steps, size = steps + (new != size), new
    assert size >= 108
    assert steps < 20


@pytest.mark.parametrize("eta", [None, "soon", 5, "2000-01-01T00:00:00", "2000-01-01T00:00:00Z"])
def test_an_eta_that_is_over_or_cannot_be_read_is_not_awaited(eta: Any) -> None:
    assert seconds_until(eta) <= 0


def test_an_eta_in_another_zone() -> None:
    assert seconds_until("2999-01-01T02:00:00+02:00") == pytest.approx(
        seconds_until("2999-01-01T00:00:00"), abs=60
    )


# The entry point


def test_the_entry_point_imports_no_serialization_and_is_a_serializer() -> None:
    program = (
        "import sys, mqcore_celery.aliases\n"
        "assert 'kombu.serialization' not in sys.modules\n"
        "assert 'mqcore_celery.transport' not in sys.modules\n"
        "import kombu.serialization\n"
        "from kombu.transport import get_transport_cls\n"
        "print(get_transport_cls('mqcore+redis').__name__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.stdout, done.stderr) == ("Transport\n", "")

    encode, decode, content_type, encoding = aliases.serializer
    assert decode(encode({"a": [1, "ü"]})) == {"a": [1, "ü"]}
    assert (content_type, encoding) == ("application/vnd.mqcore.json", "utf-8")
    with pytest.raises(ValueError, match="Out of range"):
        encode(float("nan"))
    assert json.loads(encode({"a": 1})) == {"a": 1}
