"""One queue as a folder: `queue.json`, `ready/`, `leased/` and `users/`.

Plain files, no asyncio; every caller tells the time.

A message's file is called LEVEL.DUE.NUMBER.RANDOM.MARK: sorted by name, files stand in the order of
delivery. LEVEL is 10 minus the priority, DUE in nanoseconds, MARK `n` for new, or how often it was
taken over, `0` when it was only released, at most `9`. In `leased/` a token follows, new with each
claim: that name is the receipt.
"""

import base64
import fcntl
import itertools
import json
import os
import re
import shutil
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO

from mqcore.spi import (
    Alterations,
    Delivery,
    Message,
    Outgoing,
    QueueSpec,
    expiry_of,
    new_id,
    pack,
    unpack,
)

_RECEIPT = re.compile(r"\d\d\.[0-9a-f]{16}\.[0-9a-f]{16}\.[0-9a-f]{8}\.[n0-9]\.[0-9a-f]{16}")
_OWN = ("id", "content_type", "priority", "expires_at", "correlation_id", "reply_to")
_EARLY = 1_000
"""Nanoseconds by which a message may be early: a timer may fire one rounding error too soon."""
_numbers = itertools.count(time.time_ns())


class Folder:
    """The files of one queue. Where there is none, its methods raise `FileNotFoundError`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ready, self.leased, self.users = path / "ready", path / "leased", path / "users"

    def spec(self) -> QueueSpec:
        """Read what the queue was declared with."""
        return QueueSpec(**json.loads((self.path / "queue.json").read_text()))

    def alter(self, settings: Alterations) -> None:
        """Write other settings, in one rename; every instance reads them with each call."""
        draft = self.path / f"{new_id()}.json"
        draft.write_text(json.dumps(asdict(replace(self.spec(), **settings))))
        draft.rename(self.path / "queue.json")

    def create(self, spec: QueueSpec) -> IO[bytes] | None:
        """Create the queue in one rename; return the locked file of a temporary one's owner."""
        draft = Folder(self.path.with_name(f".{new_id()}"))
        for part in (draft.ready, draft.leased, draft.users):
            part.mkdir(parents=True)
        (draft.path / "queue.json").write_text(json.dumps(asdict(spec) | {"durability": None}))
        owner = draft.use() if spec.role == "temporary" else None
        with suppress(OSError):  # where another was quicker, for what is there is not empty
            draft.path.rename(self.path)
            return owner
        shutil.rmtree(draft.path, ignore_errors=True)
        return None

    def use(self) -> IO[bytes]:
        """Return a new file in `users/`, locked until it is closed or this process dies."""
        file = (self.users / new_id()).open("xb")
        fcntl.flock(file, fcntl.LOCK_EX)
        return file

    def used(self) -> bool:
        """Whether somebody alive uses the queue."""
        for path in self.users.iterdir():
            with path.open() as file, suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                continue  # whoever opened it has died
            return True
        return False

    def put(self, out: Outgoing, now: float) -> None:
        """Store a message: written beside, then renamed, so that nobody sees half of it."""
        message, spec = out.message, self.spec()
        expires = expiry_of(out, spec.ttl, now)
        due = min(now + out.delay, expires or now + out.delay) if out.delay else now
        place = f"{10 - message.priority:02}.{int(due * 1e9):016x}.{next(_numbers):016x}"
        name = f"{place}.{new_id()[:8]}.n"
        own = {field: getattr(message, field) for field in _OWN} | {"expires_at": expires}
        body = base64.b64encode(message.body).decode()
        text = json.dumps(
            {"own": own, "headers": dict(message.headers), "core": pack(message), "body": body}
        )
        (self.path / name).write_text(text)
        (self.path / name).rename(self.ready / name)

    def names(self, now: float) -> list[str]:
        """Return the ready files in order; end leases and remove old dead letters first."""
        limit, retention = int(now * 1e9) + _EARLY, self.spec().retention
        for path in self.leased.iterdir():
            with suppress(FileNotFoundError):  # settled, or given back by another
                if path.stat().st_mtime_ns <= limit:
                    self.give_back(path.name, lost=True)
        due = {path.name: int(path.name[3:19], 16) for path in self.ready.iterdir()}
        for name in [
            name
            for name in due
            if retention is not None and due[name] <= limit - int(retention * 1e9)
        ]:
            (self.ready / name).unlink(missing_ok=True)
            del due[name]
        return sorted(name for name in due if due[name] <= limit)

    def claim(self, name: str, lease: float, now: float) -> Delivery | None:
        """Lease one file; None when another was quicker.

        What lies in `leased/` has the end of its lease from the first moment.
        """
        receipt = f"{name}.{new_id()[:16]}"
        try:
            os.utime(self.ready / name, ns=(int((now + lease) * 1e9),) * 2)
            (self.ready / name).rename(self.leased / receipt)
            text = (self.leased / receipt).read_text(errors="replace")
        except FileNotFoundError:
            return None
        message = _message(text, name)
        left = None if message.expires_at is None else message.expires_at - now
        return Delivery(
            message,
            receipt.encode(),
            left,
            redelivered=name[-1] != "n",
            takeovers=_takeovers(name[-1]),
        )

    def held(self, receipt: bytes, now: float) -> Path | None:
        """Return the file of a claim that still holds."""
        name = receipt.decode("ascii", "replace")
        with suppress(FileNotFoundError):
            if _RECEIPT.fullmatch(name) and (self.leased / name).stat().st_mtime_ns > int(
                now * 1e9
            ):
                return self.leased / name
        return None

    def give_back(self, receipt: str, *, lost: bool) -> None:
        """End a claim: the file goes back to its place, counted when it is lost.

        Raises `FileNotFoundError` if it has ended.
        """
        mark = min(_takeovers(receipt[46]) + lost, 9)
        (self.leased / receipt).rename(self.ready / f"{receipt[:46]}{mark}")


def _takeovers(mark: str) -> int:
    return 0 if mark == "n" else int(mark)


def _message(text: str, name: str) -> Message:
    """Read a file; a damaged one is handed out as it is, so that core can dead-letter it."""
    try:
        data = json.loads(text)
        message = Message(
            body=base64.b64decode(data["body"]), headers=data["headers"], **data["own"]
        )
        return unpack(message, data["core"]).copy()
    except (ValueError, KeyError, TypeError):
        return Message(id=name, body=text.encode())
