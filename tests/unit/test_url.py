"""The broker's URL: what is one, and that none is ever shown with its secrets."""

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter

from mqcore.config.url import BrokerUrl, parse_url
from mqcore.errors import ConfigurationError
from mqcore.rules.redact import is_secret, mask_text, mask_url

SECRET = "hunter2"

GOOD: list[tuple[str, str, dict[str, str]]] = [
    ("memory://", "memory", {}),
    ("memory://shop?dedup_window=60", "memory", {"dedup_window": "60"}),
    ("REDIS://localhost/0", "redis", {}),
    ("redis://:hunter2@localhost:6379/0?socket_timeout=5", "redis", {"socket_timeout": "5"}),
    ("redis://[::1]:6379/0", "redis", {}),
    ("redis://user:p%40ss%3A%2F%23%25@h/0", "redis", {}),
    ("redis://user:p@ss@h/0", "redis", {}),
    (
        "amqp://u:p@h:5672/%2fshop?heartbeat=10&name=a%20b+c",
        "amqp",
        {"heartbeat": "10", "name": "a b c"},
    ),
    ("amqps://h:65535", "amqps", {}),
    ("amqp://u:p@one:5672,two:5673,[::1]:5674/shop", "amqp", {}),
    ("redis+cluster://one,two:7002", "redis+cluster", {}),
    ("unix:///run/redis.sock?db=1", "unix", {"db": "1"}),
    ("sqlite:////tmp/ä.db", "sqlite", {}),
    ("postgresql://h/db?options=", "postgresql", {"options": ""}),
    ("x-y.z+1://h?a=%C3%A4", "x-y.z+1", {"a": "ä"}),
]


@pytest.mark.parametrize(("url", "scheme", "options"), GOOD, ids=[case[0] for case in GOOD])
def test_a_url_is_read(url: str, scheme: str, options: dict[str, str]) -> None:
    assert parse_url(url) == (scheme, options)
    assert parse_url(BrokerUrl(url)) == (scheme, options)
    assert BrokerUrl(url).scheme == scheme
    assert BrokerUrl(url).reveal() == url


BAD = [
    "",
    " ",
    "memory",
    "memory:",
    "memory:/x",
    "://x",
    "//x",
    "1redis://h",
    "re dis://h",
    "redis:// h",
    " redis://h",
    "redis://h ",
    "redis://h\n",
    "redis://h\r\nSET x 1",
    "redis://h%0d%0aSET",
    "redis://h/%00",
    "redis://h/\x00",
    "redis://h\t",
    "redis://\u202eh",
    "redis://h\u00a0",
    "redis://\ud800",
    "redis://h:0",
    "redis://h:-1",
    "redis://h:65536",
    "redis://h:99999999999",
    "redis://h:abc",
    "redis://[::1",
    "redis://::1]",
    "redis://[zz]",
    "redis://u:p%zz@h",
    "redis://u:100%@h",
    "redis://u:p#w@h",
    "redis://u:p/w@h",
    "redis://u:p?w@h",
    "redis://h?a",
    "redis://h?a=1&b",
    "redis://h?a=1&a=2",
    "redis://h?a=%ff",
    "redis://h#x",
    "redis://" + "a" * 5000,
    "javascript:alert(1)",
    "data:text/plain,x",
    "C:\\broker",
    "user:hunter2@host",
    "http//u:hunter2@h",
    "redis:u:hunter2@h",
    "redis://u:hunter2@h:hunter2",
    "redis://user:hunter2",
    "redis://h/0?password=hunter2&password=hunter2",
]


@pytest.mark.parametrize("url", BAD, ids=range(len(BAD)))
def test_what_is_no_url_is_refused_in_one_line_without_secrets(url: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        parse_url(url)
    text = str(caught.value)
    assert text.isprintable()
    assert SECRET not in text
    assert len(text) < 600
    assert "not usable: " in text
    with pytest.raises(ConfigurationError):
        BrokerUrl(url)


MASKED = [
    ("redis://:hunter2@h/0", "redis://:***@h/0"),
    ("amqp://u:hunter2@h:5672/v", "amqp://u:***@h:5672/v"),
    ("amqp://u@h", "amqp://u@h"),
    ("redis://h:6379/0", "redis://h:6379/0"),
    ("redis://[::1]:6379", "redis://[::1]:6379"),
    ("redis://u:hun@ter2@h/0", "redis://***"),
    ("redis://u:hunter2/@h/0", "redis://***"),
    ("redis://u:hunter2?@h/0", "redis://***"),
    ("redis://u:hunter2#@h/0", "redis://***"),
    ("redis://u:hunter2://@h/0", "***"),
    ("u:hunter2@h", "***"),
    ("redis://u:hunter2", "redis://u:***"),
    ("redis://u:a,hunter2", "redis://u:***"),
    ("amqp://u:hunter2@one:5672,two:5673/v", "amqp://u:***@one:5672,two:5673/v"),
    ("redis://h/0?password=@hunter2", "redis://***"),
    ("redis://h/0?password=hunter2&db=1", "redis://h/0?password=***&db=1"),
    ("redis://h/0?Auth_Token=hunter2;b=1", "redis://h/0?Auth_Token=***"),
    ("redis://h/0?%70ass=hunter2", "redis://h/0?%70ass=***"),
    ("redis://h/0?a=1&ssl_key=hunter2&sslpwd=hunter2", "redis://h/0?a=1&ssl_key=***&sslpwd=***"),
    ("redis://h/0?client_secret=hunter2=&hunter2&a=1", "redis://h/0?client_secret=***&***&a=1"),
    ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
    ("redis://h\r\nx", "redis://h\\r\\nx"),
]


@pytest.mark.parametrize(("url", "shown"), MASKED, ids=[case[0] for case in MASKED])
def test_what_is_secret_is_masked(url: str, shown: str) -> None:
    assert mask_url(url) == shown


@given(
    st.text("hunter2:/@?#%=[]; x", max_size=12),
    st.text("ab:/", max_size=4),
    st.sampled_from(
        [
            "redis://user:{}@host/{}",
            "redis://user:{}@host:6379/{}?a=b",
            "redis://h/{1}?a=b&password={0}",
        ]
    ),
)
def test_no_password_gets_out_whatever_it_is_made_of(password: str, path: str, url: str) -> None:
    shown = mask_url(url.format(f"<{password}>", path))
    assert "<" not in shown
    assert ">" not in shown


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_with_a_typed_error(text: str) -> None:
    for url in (text, f"redis://{text}", f"redis://h?{text}"):
        assert mask_url(url).isprintable()
        try:
            scheme, _ = parse_url(url)
        except ConfigurationError:
            continue
        assert scheme == url.partition("://")[0].lower()


class Holder(BaseModel):
    url: BrokerUrl


def test_a_url_shows_itself_masked_and_is_revealed_only_on_request() -> None:
    url = BrokerUrl("redis://:hunter2@h/0?token=hunter2")
    holder = Holder.model_validate({"url": url.reveal()})
    shown = [str(url), repr(url), f"{url}", f"{url!r:>99}", repr(holder), str(holder)]
    shown += [str(holder.model_dump()), holder.model_dump_json(), str([url]), str({"a": url})]
    assert not [text for text in shown if SECRET in text]
    assert url.reveal() == "redis://:hunter2@h/0?token=hunter2"
    assert holder.url == url == BrokerUrl(url)
    assert hash(holder.url) == hash(url)
    assert url != url.reveal()
    assert copy.copy(url) == pickle.loads(pickle.dumps(url)) == url  # noqa: S301 - our own bytes


@pytest.mark.parametrize("value", [5, None, b"redis://h", "redis://u:hunter2@h:xx"], ids=repr)
def test_pydantics_errors_about_a_url_are_secret_free(value: object) -> None:
    with pytest.raises(ValueError, match="URL") as caught:
        TypeAdapter(BrokerUrl).validate_python(value)
    said = caught.value.errors(include_input=False)  # type: ignore[attr-defined]  # pydantic's ValidationError
    assert SECRET not in str(said)


@pytest.mark.parametrize(
    "name", ["password", "PASSWD", "sentinel_pwd", "api-key", "secret", "sasl_token", "credentials"]
)
def test_names_of_secrets_are_known(name: str) -> None:
    assert is_secret(name)


@pytest.mark.parametrize("name", ["db", "heartbeat", "timeout", "name", "lease"])
def test_other_options_are_shown(name: str) -> None:
    assert not is_secret(name)


def test_every_url_in_a_text_is_masked() -> None:
    text = (
        "cannot reach redis://u:hunter2@h/0 or 1amqp://:hunter2@h: "
        "redis://h?password=hunter2#hunter2"
    )
    assert (
        mask_text(text)
        == "cannot reach redis://u:***@h/0 or 1amqp://:***@h: redis://h?password=***"
    )


def test_a_long_word_without_a_url_is_read_in_one_go() -> None:
    word = (
        "x" * 1_000_000
    )  # where each letter began a search to the end, this took longer than any test may
    assert mask_text(word) == word


def test_punctuation_after_a_url_in_a_text_is_not_taken_for_a_part_of_it() -> None:
    assert (
        mask_text("cannot connect to redis://u:p@h:6379: refused")
        == "cannot connect to redis://u:***@h:6379: refused"
    )
    assert (
        mask_text("redis://h:1, redis://h:2; redis://h:3")
        == "redis://h:1, redis://h:2; redis://h:3"
    )
