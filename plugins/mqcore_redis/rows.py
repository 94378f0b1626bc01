"""Reading what scripts answer: rows of claimed or shown messages."""

import secrets
from collections.abc import Sequence
from dataclasses import replace

from mqcore.spi import Delivery, Entry
from mqcore_redis.records import decode, read

__all__ = ["aged", "deliveries", "entries", "token"]


def token() -> str:
    """Return the fencing token of a claim.

    It is random, so a server that lost data cannot give it out again.
    """
    return secrets.token_urlsafe(9)


def deliveries(now: bytes, rows: Sequence[bytes], sent: float) -> list[tuple[float, Delivery]]:
    """Read rows of receipt, record, expiry and takeovers; each with when its claim was sent.

    Takeovers are empty for a message that was never handed out. A `*` after them says that a holder
    that was lost had noted the start of a handler.
    """
    at, words, found = int(now), iter(rows), []
    for receipt, record, expires, taken in zip(words, words, words, words, strict=True):
        left = (int(expires) - at) / 1e6 if expires else None
        message, unreadable = read(record, expires)
        number, started = int(taken.rstrip(b"+*") or 0), taken.endswith(b"*")
        delivery = Delivery(
            message, receipt, left, taken != b"", number, started=started, unreadable=unreadable
        )
        found.append((sent, delivery))
    return found


def aged(delivery: Delivery, age: float) -> Delivery:
    """Return a delivery as it is `age` seconds after its claim was sent.

    The server read its clock later than that, so a message never seems to live too long (G6).
    """
    return (
        delivery
        if delivery.expires_in is None
        else replace(delivery, expires_in=delivery.expires_in - age)
    )


def entries(now: bytes, rows: Sequence[bytes]) -> list[Entry]:
    """Read rows of kind, score, entry, record and expiry. Kind `d` is delayed until its score."""
    at, words, found = int(now), iter(rows), []
    for kind, score, entry, record, expires in zip(words, words, words, words, words, strict=True):
        key, message = b"/".join((kind, score, entry)).decode(), decode(record, expires)
        if kind == b"d":
            found.append(Entry(key, message, "delayed", max((int(score) - at) / 1e6, 0.0)))
        else:
            found.append(Entry(key, message))
    return found
