"""What was claimed or shown, as the scripts answer it: rows, read."""

import secrets
from collections.abc import Sequence
from dataclasses import replace

from mqcore.spi import Delivery, Entry
from mqcore_redis.records import decode, read

__all__ = ["aged", "deliveries", "entries", "token"]


def token() -> str:
    """Return the fencing token of a claim: nobody has had it, and no counter that a server lost can bring it again."""
    return secrets.token_urlsafe(9)


def deliveries(now: bytes, rows: Sequence[bytes]) -> list[Delivery]:
    """Read rows of receipt, record, expiry and takeovers, which are empty for what was never handed out.

    A `*` after the takeovers says that one who was lost with it had noted that a handler starts.
    """
    at, words, found = int(now), iter(rows), []
    for receipt, record, expires, taken in zip(words, words, words, words, strict=True):
        left = (int(expires) - at) / 1e6 if expires else None
        message, unreadable = read(record, expires)
        number, started = int(taken.rstrip(b"+*") or 0), taken.endswith(b"*")
        found.append(
            Delivery(
                message, receipt, left, taken != b"", number, started=started, unreadable=unreadable
            )
        )
    return found


def aged(delivery: Delivery, age: float) -> Delivery:
    """Return a delivery as it is so many seconds after its claim was sent: the server had read its clock later than that (G6)."""
    return (
        delivery
        if delivery.expires_in is None
        else replace(delivery, expires_in=delivery.expires_in - age)
    )


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
