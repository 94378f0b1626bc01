"""What pika raises, in core's kinds and in words that help."""

from __future__ import annotations

import ssl

import pytest
from pika import exceptions as amqp

from mqcore.spi import ConnectionLost, ErrorKind, QueueNotFound
from mqcore_rabbitmq.errors import cause_of, classify


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (amqp.ChannelClosedByBroker(404, "NOT_FOUND"), ErrorKind.NOT_FOUND),
        (amqp.ChannelClosedByBroker(403, "ACCESS_REFUSED"), ErrorKind.DENIED),
        (amqp.ChannelClosedByBroker(406, "PRECONDITION_FAILED"), ErrorKind.PERMANENT),
        (amqp.ChannelClosedByBroker(311, "CONTENT_TOO_LARGE"), ErrorKind.TOO_LARGE),
        (amqp.ConnectionClosedByBroker(320, "CONNECTION_FORCED"), ErrorKind.TRANSIENT),
        (amqp.ConnectionClosedByBroker(541, "INTERNAL_ERROR"), ErrorKind.TRANSIENT),
        (amqp.ConnectionClosedByBroker(530, "NOT_ALLOWED"), ErrorKind.DENIED),
        (amqp.ProbableAuthenticationError("x"), ErrorKind.DENIED),
        (amqp.IncompatibleProtocolError("x"), ErrorKind.PERMANENT),
        (amqp.StreamLostError("x"), ErrorKind.TRANSIENT),
        (amqp.ChannelWrongStateError("x"), ErrorKind.TRANSIENT),
        (ConnectionRefusedError(111, "refused"), ErrorKind.TRANSIENT),
        (TimeoutError(), ErrorKind.TRANSIENT),
        (ConnectionLost("closed"), ErrorKind.TRANSIENT),
        (QueueNotFound("gone"), ErrorKind.NOT_FOUND),
        (ValueError("x"), ErrorKind.PERMANENT),
    ],
)
def test_kinds(error: Exception, kind: ErrorKind) -> None:
    assert classify(error) is kind


def described(error: BaseException) -> tuple[str, ErrorKind]:
    raised = cause_of(error, "shop")
    return str(raised), classify(raised)


def test_a_refused_login_says_what_to_check() -> None:
    text, kind = described(
        amqp.AMQPConnectionError(
            amqp.ProbableAuthenticationError("ConnectionClosedByBroker: (403) 'x'")
        )
    )
    assert (kind, "user name and password" in text) == (ErrorKind.DENIED, True)


@pytest.mark.parametrize(
    ("said", "words"),
    [("NOT_ALLOWED - vhost shop not found", "does not exist"), ("access to vhost", "not open")],
)
def test_a_vhost_that_is_closed_to_us_is_named(said: str, words: str) -> None:
    text, kind = described(amqp.ProbableAccessDeniedError(said))
    assert (kind, words in text, "'shop'" in text) == (ErrorKind.DENIED, True, True)


def test_an_untrusted_certificate_is_denied_and_a_plain_port_permanent() -> None:
    untrusted = ssl.SSLCertVerificationError(1, "verify failed")
    untrusted.verify_message = "self-signed certificate"
    text, kind = described(untrusted)
    assert (kind, "self-signed" in text, "cafile" in text) == (ErrorKind.DENIED, True, True)
    text, kind = described(ssl.SSLError(1, "WRONG_VERSION_NUMBER"))
    assert (kind, "TLS port" in text) == (ErrorKind.PERMANENT, True)


def test_the_innermost_error_is_the_one_that_is_raised() -> None:
    inner = ConnectionRefusedError(111, "refused")
    assert cause_of(amqp.AMQPConnectionError(inner), "/") is inner
