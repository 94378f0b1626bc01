"""The kinds of errors. Narrow classes are tested before wide ones.

In redis-py `AuthenticationError` and `BusyLoadingError` are `ConnectionError`s, and `TimeoutError`
and `ConnectionError` are not the built-in classes. The first word of an answer often says more than
its class.
"""

import ssl

from redis import exceptions as redis

from mqcore.spi import ConnectionLost, ErrorKind, QueueNotFound

__all__ = ["is_answer", "kind_of", "other_protocol", "refusal_of"]

_TRANSIENT = (redis.ConnectionError, redis.TimeoutError, ConnectionLost, OSError)
_LATER = (
    "READONLY NOREPLICAS LOADING MISCONF BUSY MASTERDOWN CLUSTERDOWN TRYAGAIN MOVED ASK UNKILLABLE"
)
_WORDS = {
    "OOM": ErrorKind.FULL,
    **dict.fromkeys(("NOPERM", "NOAUTH", "WRONGPASS"), ErrorKind.DENIED),
    **dict.fromkeys(_LATER.split(), ErrorKind.TRANSIENT),
}
"""First words of answers which say that the command had no effect."""


def kind_of(error: BaseException) -> ErrorKind:
    """Return the kind of any exception. Never raises."""
    if isinstance(error, QueueNotFound):
        return ErrorKind.NOT_FOUND
    if (kind := refusal_of(error)) is not None:
        return kind
    if isinstance(error, (redis.AuthenticationError, redis.AuthorizationError)) or _untrusted(
        error
    ):
        return ErrorKind.DENIED
    return ErrorKind.TRANSIENT if isinstance(error, _TRANSIENT) else ErrorKind.PERMANENT


def refusal_of(error: BaseException) -> ErrorKind | None:
    """Return the kind of an answer that had no effect; None where it may have had one."""
    if not is_answer(error):
        return None
    word = getattr(error, "status_code", None) or str(error).partition(" ")[0]
    return _WORDS.get(word)


def is_answer(error: BaseException) -> bool:
    """Return whether an exception is the answer to one command.

    The connection is as good as before then.
    """
    return isinstance(
        error, (redis.ResponseError, redis.BusyLoadingError, redis.AuthenticationError)
    )


def other_protocol(error: redis.InvalidResponse) -> redis.InvalidResponse:
    """Return the error for a port that speaks another protocol.

    redis-py's own error is its cause.
    """
    first = str(error).rpartition('got "')[2][:1]
    kind = {"A": " It looks like AMQP: use amqp:// for RabbitMQ.", "H": " It looks like HTTP."}.get(
        first, ""
    )
    found = redis.InvalidResponse(
        f"the server does not speak Redis' protocol: is this the port of a Redis server?{kind}"
    )
    found.__cause__ = error
    return found


def _untrusted(error: BaseException) -> bool:
    """Return whether a certificate is the cause: redis-py reports it as a broken connection."""
    for _ in range(8):  # a chain of causes may be a circle
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__ or error
    return False
