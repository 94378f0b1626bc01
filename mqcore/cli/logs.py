"""The log of a worker: one line for each event, as text or as JSON."""

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from typing import TextIO

from mqcore.cli.common import place_of
from mqcore.cli.output import one_line
from mqcore.events import Event
from mqcore.log import log

__all__ = ["json_stream", "logging_set_up"]

_ROOT_LOGGER = "mqcore"


@contextmanager
def json_stream(*, enabled: bool) -> Iterator[TextIO | None]:
    """Reserve standard output for JSON, and return a stream to it; do nothing if not `enabled`.

    What the application and the programs that it starts print goes to standard error.
    """
    if not enabled:
        yield None
        return

    out = sys.stdout
    with redirect_stdout(sys.stderr):
        if not _is_standard_output(out):  # a test that captures it
            yield out
            return

        out.flush()
        ours = os.dup(1)  # no program inherits it
        os.dup2(2, 1)
        try:
            with os.fdopen(
                os.dup(ours), "w", encoding=out.encoding, errors="backslashreplace"
            ) as stream:
                yield stream
        finally:
            os.dup2(ours, 1)
            os.close(ours)


def _is_standard_output(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 1
    except (OSError, ValueError):
        return False


@contextmanager
def logging_set_up(json_to: TextIO | None) -> Iterator[None]:
    """Log from level INFO on: JSON lines to a stream, or text to standard error.

    The logging configuration is restored at the end. An application's own configuration of the root
    logger is kept. JSON is written even then: always for mqcore's records, and for the
    application's records until it sets handlers of the root logger.
    """
    root, ours = logging.getLogger(), log()
    handlers, level, own_level = root.handlers[:], root.level, ours.level
    if handlers and json_to is None:
        yield
        return

    added: logging.Handler | None = None
    handler = logging.StreamHandler(json_to or sys.stderr)
    handler.setFormatter(_Lines() if json_to is None else _JsonLines())
    if json_to is not None:
        added = logging.StreamHandler(json_to)
        added.setFormatter(_JsonLines())
        handler.addFilter(lambda record: not _is_ours(record))  # written by the other one
        ours.addHandler(added)
    if ours.level == logging.NOTSET:
        ours.setLevel(logging.INFO)
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.handlers = handlers
        root.setLevel(level)
        ours.setLevel(own_level)
        if added is not None:
            ours.removeHandler(added)


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.split(".")[0] == _ROOT_LOGGER


def _time(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Lines(logging.Formatter):
    """Time, level, logger and text.

    A record of mqcore is one line; a record of the application keeps its traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        head = f"{_time(record)} {record.levelname} {record.name}"
        error = record.exc_info[1] if record.exc_info else None
        if not _is_ours(record):
            trace = (
                f"\n{self.formatException(record.exc_info)}" if record.exc_info and error else ""
            )
            return f"{head} {record.getMessage()}{trace}"
        why = f": {type(error).__name__}: {error}{place_of(error)}" if error is not None else ""
        return f"{head} {one_line(record.getMessage() + why)}"


class _JsonLines(logging.Formatter):
    """One JSON object for each record: time, level, logger, and an event or a message."""

    def format(self, record: logging.LogRecord) -> str:
        data: dict[str, object] = {
            "time": _time(record),
            "level": record.levelname,
            "logger": record.name,
        }
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
