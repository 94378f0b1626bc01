"""The exceptions of pika, and their kinds.

The driver raises pika's exceptions as they are, and core asks `classify` for their kind. Some of
pika's texts do not help the user: a TLS failure is wrapped four times, and a refused login is
"probably" one. `cause_of` finds the innermost exception and says what to do.
"""

import ssl

from pika import exceptions as amqp

from mqcore.spi import ConfigurationError, ConnectionLost, ErrorKind, QueueNotFound

__all__ = ["CannotConnect", "cause_of", "classify", "closed_by", "missing"]

NOT_FOUND, ACCESS_REFUSED, RESOURCE_LOCKED, PRECONDITION_FAILED = 404, 403, 405, 406
CONTENT_TOO_LARGE, CONNECTION_FORCED, INVALID_PATH = 311, 320, 402
NOT_ALLOWED, INTERNAL_ERROR = 530, 541
_CODES = {
    NOT_FOUND: ErrorKind.NOT_FOUND,
    ACCESS_REFUSED: ErrorKind.DENIED,
    CONTENT_TOO_LARGE: ErrorKind.TOO_LARGE,
    CONNECTION_FORCED: ErrorKind.TRANSIENT,
    INVALID_PATH: ErrorKind.DENIED,
    NOT_ALLOWED: ErrorKind.DENIED,
    INTERNAL_ERROR: ErrorKind.TRANSIENT,
}
_LOST = (
    ConnectionLost,
    amqp.AMQPConnectionError,
    amqp.ChannelClosed,
    amqp.ChannelWrongStateError,
    TimeoutError,
    OSError,
)
_KINDS: tuple[tuple[type[Exception] | tuple[type[Exception], ...], ErrorKind], ...] = (
    (QueueNotFound, ErrorKind.NOT_FOUND),
    ((ConfigurationError, amqp.IncompatibleProtocolError), ErrorKind.PERMANENT),
    (amqp.AuthenticationError, ErrorKind.DENIED),
    ((amqp.ProbableAuthenticationError, amqp.ProbableAccessDeniedError), ErrorKind.DENIED),
    (_LOST, ErrorKind.TRANSIENT),
)
"""The first match counts: some of pika's errors inherit from others."""


class CannotConnect(Exception):
    """The broker refused the connection, or is not the expected one; pika's error is the cause."""

    def __init__(self, text: str, kind: ErrorKind, cause: BaseException) -> None:
        super().__init__(text)
        self.kind = kind
        self.__cause__ = cause


def classify(error: Exception) -> ErrorKind:
    """Return the kind of an exception; an unknown one is PERMANENT. Pure."""
    if isinstance(error, CannotConnect):
        return error.kind
    if isinstance(error, (amqp.ConnectionClosedByBroker, amqp.ChannelClosedByBroker)):
        return _CODES.get(error.reply_code, ErrorKind.PERMANENT)
    return next((kind for types, kind in _KINDS if isinstance(error, types)), ErrorKind.PERMANENT)


def closed_by(error: BaseException | None, *codes: int) -> bool:
    """Whether the broker closed a channel with one of these reply codes."""
    return isinstance(error, amqp.ChannelClosedByBroker) and error.reply_code in codes


def missing(queue: str) -> QueueNotFound:
    """Return the error for a queue that does not exist."""
    return QueueNotFound(f"RabbitMQ has no queue {queue!r}: declare it first")


def cause_of(error: BaseException, vhost: str) -> Exception:
    """Return the exception to raise for a failed connect; its text says what to do."""
    innermost = _innermost(error)
    text = f"{innermost}"
    kind = ErrorKind.DENIED

    if isinstance(innermost, ssl.SSLCertVerificationError):
        reason = (
            f"TLS: the broker's certificate is not trusted: {innermost.verify_message}. "
            "Check cafile and the host name in the URL"
        )
    elif isinstance(innermost, ssl.SSLError):
        reason, kind = f"TLS: {innermost}: is this the TLS port?", ErrorKind.PERMANENT
    elif isinstance(innermost, amqp.IncompatibleProtocolError) and "StreamLostError" in text:
        kind = ErrorKind.TRANSIENT
        reason = (
            "the connection ended before any AMQP frame came: the broker is starting, or the port "
            "serves another protocol"
        )
    elif "Timeout while setting up AMQP" in text:
        kind = ErrorKind.TRANSIENT
        reason = (
            "nothing speaks AMQP on this port, or the broker hangs. RabbitMQ has port 5672, with "
            "TLS 5671; Redis is redis://"
        )
    elif (
        isinstance(innermost, amqp.ProbableAuthenticationError) or "ACCESS_REFUSED - Login" in text
    ):
        reason = "the broker refused the login: check user name and password"
    elif isinstance(innermost, _VHOST_REFUSED) and "vhost" in text:
        why = "does not exist" if "not found" in text else "is not open to this user"
        reason = f"the vhost {vhost!r} {why}"
    else:
        return innermost if isinstance(innermost, Exception) else amqp.AMQPConnectionError(text)

    return CannotConnect(reason, kind, innermost)


_VHOST_REFUSED = amqp.ProbableAccessDeniedError, amqp.ConnectionClosedByBroker


def _innermost(error: BaseException) -> BaseException:
    """Return the cause of pika's workflow errors, which is in `exceptions` or `exception`."""
    for _ in range(8):
        inner = getattr(error, "exceptions", None) or ()
        following = inner[-1] if inner else getattr(error, "exception", None)
        if following is None and isinstance(error, amqp.AMQPConnectionError) and error.args:
            following = error.args[0]
        if not isinstance(following, BaseException):
            return error
        error = following
    return error
