"""What a command and its answer look like on the wire: plain JSON, read as data only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["QUEUES", "ROUTER", "Answer", "Command", "queue_of"]

ROUTER = "mq.control"
"""The fanout router to which the queues of all workers are bound."""
QUEUES = "mq.control."
"""How the name of a worker's queue begins; the rest is the worker's name."""


def queue_of(worker: str) -> str:
    """Return the name of the queue in which a worker gets commands."""
    return f"{QUEUES}{worker}"


@dataclass(frozen=True, slots=True)
class Command:
    """What a worker is to do, with arguments by name."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Return the body of its message."""
        return json.dumps({"command": self.name, "arguments": dict(self.arguments)}).encode()

    @classmethod
    def decode(cls, body: bytes) -> Command:
        """Read a body. Raises `ValueError` for one that is not a command."""
        try:
            record = json.loads(body)
        except RecursionError as error:
            raise ValueError("nested too deeply") from error
        if not isinstance(record, dict):
            raise ValueError("not an object")  # noqa: TRY004 - one kind of error for a wrong body
        name, arguments = record.get("command"), record.get("arguments", {})
        if not isinstance(name, str) or not isinstance(arguments, dict):
            raise ValueError("without a command and its arguments")  # noqa: TRY004 - as above
        return cls(name, arguments)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a worker has answered. `error` says why it did nothing, or that it has not answered."""

    worker: str
    data: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def ok(self) -> bool:
        """Whether the command was executed."""
        return not self.error

    def encode(self) -> bytes:
        """Return the body of its message."""
        record = {"worker": self.worker, "data": dict(self.data), "error": self.error}
        return json.dumps(record).encode()

    @classmethod
    def decode(cls, body: bytes) -> Answer:
        """Read a body. Raises `ValueError` for one that is not an answer."""
        record = json.loads(body)
        if not isinstance(record, dict) or not isinstance(record.get("data"), dict):
            raise ValueError("not an answer")  # noqa: TRY004 - as in Command
        return cls(str(record.get("worker")), record["data"], str(record.get("error", "")))
