"""What was claimed or shown, as the scripts answer it: rows, read."""

import secrets
from collections.abc import Sequence

from mqcore.spi import Delivery, Entry
from mqcore_redis.records import decode, read

__all__ = ["deliveries", "entries", "token"]


def token() -> str:
    """Return the fencing token of a claim: nobody has had it, and no counter that a server lost can bring it again."""
    return secrets.token_urlsafe(9)


def deliveries(now: bytes, rows: Sequence[bytes]) -> list[Delivery]:
    """Read rows of receipt, record, expiry and takeovers, which are empty for what was never handed out."""
    at, words, found = int(now), iter(rows), []
    for receipt, record, expires, taken in zip(words, words, words, words, strict=True):
        left = (int(expires) - at) / 1e6 if expires else None
        message, unreadable = read(record, expires)
        takeovers = int(taken or 0)
        found.append(
            Delivery(message, receipt, left, redelivered=taken != b"", takeovers=takeovers, unreadable=unreadable)
        )
    return found


def entries(now: bytes, rows: Sequence[bytes]) -> list[Entry]:
    """Read rows of kind, score, entry, record and expiry: `r` is ready, `d` delayed until its score."""
    at, words, found = int(now), iter(rows), []
    for kind, score, entry, record, expires in zip(words, words, words, words, words, strict=True):
        key, message = b"/".join((kind, score, entry)).decode(), decode(record, expires)
        if kind == b"d":
            found.append(Entry(key, message, "delayed", max((int(score) - at) / 1e6, 0.0)))
        else:
            found.append(Entry(key, message))
    return found
