"""What an AMQP URL says, and what is never shown of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from mqcore.spi import ConfigurationError, Durability, ErrorKind
from mqcore_rabbitmq import RabbitBackend, RabbitOptions
from mqcore_rabbitmq.options import parameters


def test_a_whole_url_is_read() -> None:
    (host,) = parameters(
        "amqp://me:p%40ss%2Fword@broker:5673/my%2Fhost?durability=machine", RabbitOptions()
    )
    assert (host.host, host.port, host.virtual_host) == ("broker", 5673, "my/host")
    assert (host.credentials.username, host.credentials.password) == ("me", "p@ss/word")
    assert host.ssl_options is None


@pytest.mark.parametrize(
    ("url", "vhost"),
    [("amqp://h", "/"), ("amqp://h/", "/"), ("amqp://h/a", "a"), ("amqp://h/%2F", "/")],
)
def test_the_vhost_is_the_path(url: str, vhost: str) -> None:
    (host,) = parameters(url, RabbitOptions())
    assert (host.virtual_host, host.port, host.credentials.username) == (vhost, 5672, "guest")


def test_several_hosts_are_tried_in_their_order() -> None:
    hosts = parameters("amqp://u:p@one:1,two,[::1]:3/v", RabbitOptions())
    assert [(host.host, host.port) for host in hosts] == [("one", 1), ("two", 5672), ("::1", 3)]
    assert {host.credentials.password for host in hosts} == {"p"}


def test_tls_checks_the_hosts_name() -> None:
    (host,) = parameters("amqps://broker", RabbitOptions())
    assert (host.port, host.ssl_options.server_hostname) == (5671, "broker")
    assert host.ssl_options.context.check_hostname
    (named,) = parameters("amqps://10.0.0.1", RabbitOptions(server_name="broker"))
    assert named.ssl_options.server_hostname == "broker"


@pytest.mark.parametrize("url", ["amqp://h/a/b", "amqp://u:secret@one,two:99999"])
def test_an_invalid_url_is_reported_without_secrets(url: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        parameters(url, RabbitOptions())
    assert "secret" not in str(raised.value)


def test_a_missing_certificate_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cafile, certfile or keyfile cannot be used"):
        parameters("amqps://h", RabbitOptions(cafile=tmp_path / "no.pem"))


@pytest.mark.parametrize(
    ("word", "quorum"), [("process", False), ("machine", True), ("replicated", True)]
)
def test_durability_chooses_the_queues(word: str, quorum: bool) -> None:  # noqa: FBT001 - a variant
    options = RabbitOptions.model_validate({"durability": word, "bands": "3"})
    assert (options.quorum, options.bands, options.durability) == (
        quorum,
        3,
        Durability.parse(word),
    )


@pytest.mark.parametrize("wrong", [{"bands": "7"}, {"heartbeat": "0"}, {"durable": "yes"}])
def test_wrong_options_are_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        RabbitOptions.model_validate(wrong)


def test_a_closed_backend_names_its_place_and_not_its_password() -> None:
    backend = RabbitBackend("amqp://me:secret@broker:5673/v", RabbitOptions())
    with pytest.raises(Exception, match=r"broker:5673 is closed") as raised:
        backend._open  # noqa: B018 - a property that raises
    assert "secret" not in str(raised.value)
    assert backend.classify(raised.value) is ErrorKind.TRANSIENT
