"""What a Redis URL and its options may say, and which keys follow from them."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from mqcore.clock import SystemClock
from mqcore.config.settings import Settings, options_for
from mqcore.errors import ConfigurationError
from mqcore_redis import RedisBackend, RedisOptions
from mqcore_redis.keys import KINDS, Keys
from mqcore_redis.options import read

SECRET = "hunter2"


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "db", "who"),
    [
        ("redis://localhost/0", "tcp", (("localhost", 6379),), 0, (None, None)),
        ("redis://", "tcp", (("localhost", 6379),), 0, (None, None)),
        ("redis://:hunter2@h:7000/3", "tcp", (("h", 7000),), 3, (None, "hunter2")),
        ("redis://me:p%40ss%2F@[::1]:7000", "tcp", (("::1", 7000),), 0, ("me", "p@ss/")),
        ("rediss://h", "tcp", (("h", 6379),), 0, (None, None)),
        (
            "redis+sentinel://one,two:7/1?master=shop",
            "sentinel",
            (("one", 26379), ("two", 7)),
            1,
            (None, None),
        ),
        (
            "redis+cluster://u:hunter2@one:7,two",
            "cluster",
            (("one", 7), ("two", 6379)),
            0,
            ("u", "hunter2"),
        ),
        ("unix:///run/redis%20a.sock", "unix", (), 0, (None, None)),
    ],
    ids=range(8),
)
def test_a_url_says_where_and_who(
    url: str, kind: str, hosts: object, db: int, who: tuple[str, str]
) -> None:
    options = options_for(RedisBackend, url, Settings(), SystemClock())
    assert isinstance(options, RedisOptions)
    place = read(url, options)
    assert (place.kind, place.hosts, place.db, (place.username, place.password)) == (
        kind,
        hosts,
        db,
        who,
    )
    assert (place.tls is not None) == url.startswith("rediss")
    assert place.path == ("/run/redis a.sock" if kind == "unix" else place.path)
    assert SECRET not in f"{place!r} {place.shown} {options!r}"


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2@h/x",
        "redis://:hunter2@h/-1",
        "redis://:hunter2@h/99999999999",
        "redis://:hunter2@h/0/1",
        "redis://:hunter2@h:x",
        "redis+sentinel://:hunter2@h",
        "redis+cluster://:hunter2@h/1",
        "redis://:hunter2@h:1,i:2/0",
    ],
)
def test_what_cannot_be_meant_is_refused_without_secrets(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        RedisBackend(url, RedisOptions())
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "option",
    [
        {"socket_timeout": 1},
        {"retry": 3},
        {"dedup_size": 0},
        {"prefix": "a{b"},
        {"tag": "}"},
        {"assume_durability": "replicated"},
    ],
    ids=str,
)
def test_an_option_that_is_none_is_refused(option: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        RedisOptions.model_validate(option)


def test_files_for_tls_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    (tmp_path / "none.pem").write_text("no certificate")
    for options in (
        RedisOptions(cafile=tmp_path / "gone.pem"),
        RedisOptions(cafile=tmp_path / "none.pem"),
    ):
        with pytest.raises(ConfigurationError, match="TLS"):
            RedisBackend("rediss://h", options)


def test_tls_always_checks_names_and_certificates() -> None:
    for url, options in (
        ("rediss://h", RedisOptions()),
        ("redis+cluster://h", RedisOptions(tls=True)),
    ):
        context = read(url, options).tls
        assert context is not None
        assert context.check_hostname


# Keys


def test_a_queue_and_what_belongs_to_it_share_a_slot() -> None:
    keys = Keys("mq", spread=True)
    assert keys.one("orders", "r") == "mq:{orders}:r"
    assert keys.one("orders.dlq", "r") == "mq:{orders}.dlq:r"
    assert keys.one("orders.dlq.quarantine", "r") == "mq:{orders}.dlq.quarantine:r"
    names = ("orders", "orders.dlq", "orders.quarantine", "orders.dlq.quarantine")
    assert {keys.group(name) for name in names} == {"orders"}
    assert keys.group("other") != keys.group("orders")
    assert keys.kick("orders").startswith("mq:{orders}:")


def test_no_two_queues_share_a_key() -> None:
    names = [
        "a",
        "a.dlq",
        "a.quarantine",
        "a.dlq.quarantine",
        "a.quarantine.dlq",
        "again",
        ".dlq",
        ".quarantine",
        "a.dlq.dlq",
        "A",
        "a:r",
        "in",
    ]
    for keys in (Keys("mq"), Keys("mq", "tag")):
        found = [key for name in names for key in keys.of(name)]
        assert len(set(found)) == len(names) * len(KINDS)


def test_a_tag_puts_all_into_one_slot() -> None:
    keys = Keys("mq", "shop", spread=True)
    assert {key[: key.index("}")] for name in ("a", "b.dlq") for key in keys.of(name)} == {
        "mq:{shop"
    }
    assert keys.group("a") == keys.group("b")


def test_where_there_are_no_slots_everything_goes_together() -> None:
    assert Keys("mq").group("a") == Keys("mq").group("b")
