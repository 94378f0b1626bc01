"""What a job holds: a message in its body, and the state of its claim in its priority number.

Body: `mqcore/1`, a blank, one line of JSON, and the message's own body as it is. A job whose body
does not begin so comes from another client; the whole of it is the message's body.

Priority number, 32 bits, of which beanstalkd hands out the lowest first:

    LEVEL (4)   10 minus the priority of mqcore
    MARK  (4)   15 for a new job, else how often it was taken over (G4), 0 when it was only released
    TOKEN (24)  of a leased job names the claim; of a new one that was delayed, says when it was due

Jobs that come again go before new ones. Jobs with equal numbers go in the order of their ids, which
is that of publishing.
"""

import json
import random
import re
from dataclasses import dataclass
from typing import Self

from mqcore.spi import Message, Outgoing, QueueSpec, pack, unpack

__all__ = ["NEW", "Claim", "decode", "encode", "mark_of", "new_number"]

_MAGIC = b"mqcore/1 "
_OWN = ("id", "content_type", "priority", "correlation_id", "reply_to")
_TOKEN_BITS, _MARK_BITS = 24, 4
_LAST = (1 << _TOKEN_BITS) - 1
NEW = 15
"""The mark of a job that was never claimed."""
_MOST = 14
_TICKS = 4
"""Steps a second of a due time in a token.

It begins again after 48 days, and then a few jobs may go in another order.
"""
_TOKENS = random.SystemRandom()
_RECEIPT = re.compile(rb"(\d{1,20})\.([0-9a-f]{1,6})\.(\d|1[0-5])\.(\d|10)")


@dataclass(frozen=True)
class Claim:
    """One lease of one job.

    `mark` is the job's mark before it: a release must leave the takeovers as they were.
    """

    job: int
    token: int
    mark: int
    priority: int

    @classmethod
    def new(cls, job: int, mark: int, priority: int) -> Self:
        """Return a claim with a token of its own."""
        return cls(job, _TOKENS.randrange(1, _LAST), mark, priority)

    @classmethod
    def of(cls, receipt: bytes) -> Self | None:
        """Read a receipt back; None for bytes that are not one."""
        found = _RECEIPT.fullmatch(receipt)
        return found and cls(int(found[1]), int(found[2], 16), int(found[3]), int(found[4]))

    @property
    def receipt(self) -> bytes:
        """Everything that another instance needs to find the claim again."""
        return b"%d.%x.%d.%d" % (self.job, self.token, self.mark, self.priority)

    @property
    def takeovers(self) -> int:
        """How often the job had been taken over when it was claimed."""
        return 0 if self.mark == NEW else self.mark

    @property
    def leased(self) -> int:
        """The job's priority number while it is leased.

        If the lease is not renewed, the number says that the job was taken over.
        """
        return self.lost | self.token

    @property
    def lost(self) -> int:
        """The priority number of a job whose claim ended without a settlement."""
        return number(self.priority, min(self.takeovers + 1, _MOST))

    @property
    def released(self) -> int:
        """The priority number of a job that was released."""
        return number(self.priority, self.takeovers)

    @property
    def unseen(self) -> int:
        """The priority number of a job that was claimed and not handed out."""
        return number(self.priority, self.mark, _LAST if self.mark == NEW else 0)


def number(priority: int, mark: int, token: int = 0) -> int:
    """Return beanstalkd's priority number."""
    return ((10 - priority) << _MARK_BITS | mark) << _TOKEN_BITS | token


def new_number(priority: int, now: float, delay: float) -> int:
    """Return the priority number of a new job.

    Delays end in the order of their due times (G7), and beanstalkd orders by priority number and id
    alone. So a delayed job has its due time in the token. When it is due it goes to the front of
    its level.
    """
    due = int((now + delay) * _TICKS) % _LAST if delay else _LAST
    return number(priority, NEW, due)


def mark_of(number: int) -> int:
    """Return the mark in a priority number."""
    return number >> _TOKEN_BITS & (1 << _MARK_BITS) - 1


def encode(out: Outgoing, spec: QueueSpec, now: float) -> bytes:
    """Return the body of a job. Its expiry is a time on the publisher's clock (G6)."""
    message = out.message
    expires = message.expires_at if out.ttl is None else now + out.ttl
    if spec.ttl is not None and message.hop == 0:
        expires = min(now + spec.ttl, expires or now + spec.ttl)

    head = {
        "own": {field: getattr(message, field) for field in _OWN} | {"expires_at": expires},
        "headers": dict(message.headers),
        "core": dict(pack(message)),
        "stored_at": now,
    }
    return _MAGIC + json.dumps(head).encode() + b"\n" + message.body


def decode(job: int, body: bytes) -> tuple[Message, float | None]:
    """Return the message of a job and when it was stored.

    Of another client's job the body alone (G17).
    """
    head, _, rest = body.removeprefix(_MAGIC).partition(b"\n")
    try:
        if not body.startswith(_MAGIC):
            raise ValueError("not written by mqcore")  # noqa: TRY301 - it ends as a head that cannot be read does
        data = json.loads(head)
        message = Message(body=rest, headers=data["headers"], **data["own"])
        return unpack(message, data["core"]).copy(), float(data["stored_at"])
    except (ValueError, KeyError, TypeError):
        return Message(id=f"beanstalkd-{job}", body=body), None
