"""What a worker says while it runs: one line for each event, for people or as JSON."""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from mqcore.cli.common import place_of
from mqcore.cli.output import one_line
from mqcore.events import Event

__all__ = ["logging_set_up"]

_OURS = "mqcore"


@contextmanager
def logging_set_up(*, as_json: bool) -> Iterator[None]:
    """Log from level INFO on, as JSON lines to standard output, else as text to standard error; put back what was there after it.

    An application that has configured the root logger itself keeps its way, unless JSON was asked for.
    """
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    if before and not as_json:
        yield
        return
    handler = logging.StreamHandler(sys.stdout if as_json else sys.stderr)
    handler.setFormatter(_JsonLines() if as_json else _Lines())
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers = before
        root.setLevel(level)


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Lines(logging.Formatter):
    """Time, level, logger and text. mqcore's own records are one line each; the application's keep their tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        head = f"{_time(record)} {record.levelname} {record.name}"
        error = record.exc_info[1] if record.exc_info else None
        if record.name.split(".")[0] != _OURS:
            trace = f"\n{self.formatException(record.exc_info)}" if record.exc_info and error else ""
            return f"{head} {record.getMessage()}{trace}"
        why = f": {type(error).__name__}: {error}{place_of(error)}" if error is not None else ""
        return f"{head} {one_line(record.getMessage() + why)}"


class _JsonLines(logging.Formatter):
    """One object a line: time, level, logger, and either an event with its fields or a message."""

    def format(self, record: logging.LogRecord) -> str:
        data: dict[str, object] = {"time": _time(record), "level": record.levelname, "logger": record.name}
        event = getattr(record, "mqcore", None)
        if isinstance(event, Event):
            about = {"queue": event.queue, "id": event.message_id, "attempt": event.attempt}
            data |= {"event": event.name, **{name: value for name, value in about.items() if value}}
            data["fields"] = {name: _plain(value) for name, value in event.fields.items()}
        else:
            data["message"] = one_line(record.getMessage())
        if record.exc_info and record.exc_info[1] is not None:
            data["traceback"] = self.formatException(record.exc_info)
        return json.dumps(data, default=str)


def _plain(value: object) -> object:
    return value if isinstance(value, int | float | None) else one_line(str(value))
