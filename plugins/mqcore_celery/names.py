"""Names of queues and exchanges as mqcore allows them, and back. Pure.

kombu allows any text: `celery@host.celery.pidbox`, `amq.direct`, names in Cyrillic. mqcore allows
`A-Z a-z 0-9 . _ -` and `:`, which begins an escape here: the byte in hexadecimal.
"""

import re

from mqcore import ConfigurationError

__all__ = ["decoded", "encoded"]

_ODD = re.compile(rb"[^A-Za-z0-9._-]")
_ESCAPE = re.compile(rb":([0-9a-f]{2})")
_RESERVED_START = re.compile(rb"^(?=mq\.|amq\.)[am]|^[.-]|^_(?=:)")
_RESERVED_REST = re.compile(rb"^[dq](?=(?:lq|uarantine)\Z)")  # a prefix may end in a dot
_RESERVED_END = re.compile(rb"\.(?=(?:dlq|quarantine)\Z)")
_LONGEST = 200


def encoded(name: str, prefix: str = "") -> str:
    """Return the name that mqcore uses. Raises `ConfigurationError` when it is too long."""
    escaped = _ODD.sub(_escape, name.encode())
    escaped = (_RESERVED_REST if prefix else _RESERVED_START).sub(_escape, escaped)
    result = prefix + _RESERVED_END.sub(_escape, escaped).decode("ascii")
    if result.startswith(":"):  # no name of mqcore begins so
        result = f"_{result}"

    if not 0 < len(result) <= _LONGEST:
        raise ConfigurationError(
            f"the name {name!r:.240} has {len(result)} characters for mqcore, which takes 1 to "
            f"{_LONGEST}. Each character beyond A-Z a-z 0-9 . _ - counts three times or more. "
            "Choose a shorter name"
        )
    return result


def decoded(name: str, prefix: str = "") -> str:
    """Return the name that kombu uses."""
    plain = name.removeprefix(prefix)
    if not prefix and plain.startswith("_:"):
        plain = plain[1:]
    return _ESCAPE.sub(lambda match: bytes.fromhex(match[1].decode()), plain.encode()).decode()


def _escape(match: re.Match[bytes]) -> bytes:
    return b"".join(b":%02x" % byte for byte in match[0])
