"""What pika raises, and what core must know of it.

A driver's exception goes up as it is; `classify` says what kind it is when core asks. Where pika's
own words would not help (a TLS failure wrapped four times, a login refused while "probably
tuning"), `cause_of` digs out the exception that tells.
"""

import ssl

from pika import exceptions as amqp

from mqcore.spi import ConfigurationError, ConnectionLost, ErrorKind, QueueNotFound

__all__ = ["CannotConnect", "cause_of", "classify", "closed_by", "missing"]

NOT_FOUND, ACCESS_REFUSED, RESOURCE_LOCKED, PRECONDITION_FAILED = 404, 403, 405, 406
CONTENT_TOO_LARGE, CONNECTION_FORCED, INVALID_PATH, NOT_ALLOWED, INTERNAL_ERROR = (
    311,
    320,
    402,
    530,
    541,
)
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
"""In this order: pika's errors are each other's children."""


class CannotConnect(Exception):
    """The broker was reached and did not let us in, or was not who it should be: in plain words, the driver's own as its cause."""

    def __init__(self, text: str, kind: ErrorKind, cause: BaseException) -> None:
        super().__init__(text)
        self.kind = kind
        self.__cause__ = cause


def classify(error: Exception) -> ErrorKind:
    """Say what kind an exception is; what nobody knows is PERMANENT. Pure."""
    if isinstance(error, CannotConnect):
        return error.kind
    if isinstance(error, (amqp.ConnectionClosedByBroker, amqp.ChannelClosedByBroker)):
        return _CODES.get(error.reply_code, ErrorKind.PERMANENT)
    return next((kind for types, kind in _KINDS if isinstance(error, types)), ErrorKind.PERMANENT)


def closed_by(error: BaseException | None, *codes: int) -> bool:
    """Whether the broker closed a channel with one of these reply codes."""
    return isinstance(error, amqp.ChannelClosedByBroker) and error.reply_code in codes


def missing(queue: str) -> QueueNotFound:
    """Return the error for a queue that is not there."""
    return QueueNotFound(f"RabbitMQ has no queue {queue!r}")


def cause_of(error: BaseException, vhost: str) -> Exception:
    """Return what is to be raised for a connect that failed: one exception whose text says what to do."""
    innermost = _innermost(error)
    text = f"{innermost}"
    if isinstance(innermost, ssl.SSLCertVerificationError):
        said = f"TLS: the broker's certificate is not trusted: {innermost.verify_message}"
        return CannotConnect(
            f"{said}. Check cafile and the host's name in the URL", ErrorKind.DENIED, innermost
        )
    if isinstance(innermost, ssl.SSLError):
        return CannotConnect(
            f"TLS: {innermost}: is this the TLS port?", ErrorKind.PERMANENT, innermost
        )
    if (other := _other_protocol(innermost, text)) is not None:
        return CannotConnect(other, ErrorKind.TRANSIENT, innermost)
    if isinstance(innermost, amqp.ProbableAuthenticationError) or "ACCESS_REFUSED - Login" in text:
        return CannotConnect(
            "the broker refused the login: check user name and password",
            ErrorKind.DENIED,
            innermost,
        )
    if (
        isinstance(innermost, (amqp.ProbableAccessDeniedError, amqp.ConnectionClosedByBroker))
        and "vhost" in text
    ):
        why = "does not exist" if "not found" in text else "is not open to this user"
        return CannotConnect(f"the vhost {vhost!r} {why}", ErrorKind.DENIED, innermost)
    return innermost if isinstance(innermost, Exception) else amqp.AMQPConnectionError(text)


def _other_protocol(innermost: BaseException, text: str) -> str | None:
    """Say so when not one frame of AMQP came."""
    if isinstance(innermost, amqp.IncompatibleProtocolError) and "StreamLostError" in text:
        return (
            "the connection ended before a word of AMQP came: a broker that is starting, or a "
            "port for something else"
        )

    if "Timeout while setting up AMQP" in text:
        return (
            "nothing there speaks AMQP, or the broker hangs. RabbitMQ has port 5672, with TLS "
            "5671; Redis is redis://"
        )
    return None


def _innermost(error: BaseException) -> BaseException:
    """Follow pika's workflow errors, which keep what happened in `exceptions` or `exception`, to what happened."""
    for _ in range(8):
        inner = getattr(error, "exceptions", None) or ()
        following = inner[-1] if inner else getattr(error, "exception", None)
        if following is None and isinstance(error, amqp.AMQPConnectionError) and error.args:
            following = error.args[0]
        if not isinstance(following, BaseException):
            return error
        error = following
    return error
