"""What kind a trouble is: narrow before wide, for redis-py's tree is not what its names say.

`AuthenticationError` and `BusyLoadingError` are `ConnectionError`s there, `TimeoutError` and
`ConnectionError` are not the built-in ones, and much is told only by the first word of the server's
answer.
"""

import ssl

from redis import exceptions as redis

from mqcore.spi import ConnectionLost, ErrorKind, QueueNotFound

__all__ = ["certain", "is_answer", "kind_of", "other_protocol"]

_TRANSIENT = (redis.ConnectionError, redis.TimeoutError, ConnectionLost, OSError)
_LATER = (
    "READONLY NOREPLICAS LOADING MISCONF BUSY MASTERDOWN CLUSTERDOWN TRYAGAIN MOVED ASK UNKILLABLE"
)
_WORDS = {
    "OOM": ErrorKind.FULL,
    **dict.fromkeys(("NOPERM", "NOAUTH", "WRONGPASS"), ErrorKind.DENIED),
    **dict.fromkeys(_LATER.split(), ErrorKind.TRANSIENT),
}
"""First words of answers that say: nothing was done."""


def kind_of(error: BaseException) -> ErrorKind:
    """Say what kind any exception is; never raises."""
    if isinstance(error, QueueNotFound):
        return ErrorKind.NOT_FOUND
    if (told := certain(error)) is not None:
        return told
    if isinstance(error, (redis.AuthenticationError, redis.AuthorizationError)) or _untrusted(
        error
    ):
        return ErrorKind.DENIED
    return ErrorKind.TRANSIENT if isinstance(error, _TRANSIENT) else ErrorKind.PERMANENT


def certain(error: BaseException) -> ErrorKind | None:
    """Return the kind of an answer that says that nothing was done; None where something may have been."""
    if not is_answer(error):
        return None
    word = getattr(error, "status_code", None) or str(error).partition(" ")[0]
    return _WORDS.get(word)


def is_answer(error: BaseException) -> bool:
    """Whether an exception of redis-py is a server's answer to one command, and the connection as good as before."""
    return isinstance(
        error, (redis.ResponseError, redis.BusyLoadingError, redis.AuthenticationError)
    )


def other_protocol(error: redis.InvalidResponse) -> redis.InvalidResponse:
    """Return the error for a port that answers in another protocol, in plain words, with redis-py's own as its cause."""
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
    """Whether a certificate is behind it, which redis-py tells as a broken connection."""
    for _ in range(8):  # a chain may be a circle
        if isinstance(error, ssl.SSLError):
            return True
        error = error.__cause__ or error.__context__ or error
    return False
