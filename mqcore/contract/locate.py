"""Where a failure is in the author's code, and what was logged meanwhile.

An exception has passed through mqcore and perhaps a client library; a call that does not return
waits in one of them. The author can change the innermost line of the backend's own package, so a
failure names that line.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import FrameType

    from mqcore.spi import Backend

__all__ = [
    "LogCapture",
    "call_name",
    "raised_at",
    "raised_in",
    "root_cause",
    "seen_by_application",
    "suspended_at",
]

_NOT_OURS = {"mqcore", "abc", "builtins", "typing"}
_LINES = 2
_LONGEST = 240


def root_cause(error: BaseException) -> BaseException:
    """Return the first error of a chain: core's errors have the driver's as their cause.

    The cause of a `TimeoutError` is often the cancellation by which `asyncio.timeout` ends a call.
    That is not an error of its own.
    """
    seen = {id(error)}  # a chain of causes may be circular
    while (
        isinstance(cause := error.__cause__, Exception)
        and cause.__traceback__ is not None
        and id(cause) not in seen
    ):
        seen.add(id(cause))
        error = cause
    return error


def seen_by_application(error: BaseException) -> str:
    """Return how an application would see the root cause.

    Empty when the error is the root cause itself.
    """
    began = root_cause(error)
    if began is error:
        return ""
    return f"{type(error).__name__}: {error}".replace(f"{type(began).__name__}: {began}", "…")


def raised_at(error: BaseException, backend: Backend | None, *, own: bool = False) -> str:
    """Return the line to look at first: where an exception was raised, or the await that timed out.

    With `own`, empty when that line is not in the backend.
    """
    found: list[tuple[FrameType, int]] = []
    # Before Python 3.11.3, asyncio's TimeoutError has the cancellation as its context only.
    for raised in (error, error.__cause__ or error.__context__):
        if raised is error or isinstance(raised, asyncio.CancelledError):
            trace = raised.__traceback__
            while isinstance(trace, TracebackType):
                found.append((trace.tb_frame, trace.tb_lineno))
                trace = trace.tb_next
    return _innermost(found, backend, own=own)


def raised_in(error: BaseException) -> str:
    """Return the module that raised an exception; empty when it was not raised."""
    trace, module = error.__traceback__, ""
    while isinstance(trace, TracebackType):
        module = trace.tb_frame.f_globals.get("__name__", "")
        trace = trace.tb_next
    return module


def suspended_at(task: asyncio.Future[Any], backend: Backend | None) -> str:
    """Return the line of the backend at which a call waits; empty when it waits elsewhere."""
    found: list[tuple[FrameType, int]] = []
    waits: Any = getattr(task, "get_coro", lambda: None)()
    while waits is not None:
        frame = getattr(waits, "cr_frame", None) or getattr(waits, "gi_frame", None)
        if frame is not None:
            found.append((frame, frame.f_lineno))
        waits = getattr(waits, "cr_await", None) or getattr(waits, "gi_yieldfrom", None)
    return _innermost(found, backend, own=True)


def _innermost(
    frames: Iterable[tuple[FrameType, int]], backend: Backend | None, *, own: bool = False
) -> str:
    """Return the last line in the backend's package.

    Without one, and unless `own`, return the last line at all and whose it is.
    """
    packages = (
        {_package(cls.__module__) for cls in type(backend).__mro__} - _NOT_OURS
        if backend is not None
        else set()
    )
    last = mine = ""

    for frame, line in frames:
        package = _package(frame.f_globals.get("__name__", ""))
        at = f"{frame.f_code.co_name} ({frame.f_code.co_filename}:{line})"
        mine = at if package in packages else mine
        last = f"what the backend gave to mqcore's {at}" if package == "mqcore" else at

    return mine if mine or own else last


def _package(module: str) -> str:
    return module.partition(".")[0]


def call_name(work: object) -> str:
    """Return the name of a call, such as `AcmeBackend.open`; empty for other objects."""
    coroutine = getattr(work, "get_coro", lambda: work)()
    name = getattr(coroutine, "__qualname__", "")
    return str(name).rpartition("<locals>.")[2]


class LogCapture(logging.Handler):
    """Keeps the last warnings of mqcore and asyncio, and keeps them off standard error.

    A case provokes many warnings on purpose. Only the thread that captures is included, since other
    cases may run in others.
    """

    _LOGGERS = ("mqcore", "asyncio")

    def __init__(self) -> None:
        """Start empty."""
        super().__init__(logging.WARNING)
        self._said: deque[str] = deque(maxlen=_LINES)
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line of the record."""
        if record.thread != self._thread:
            return
        text = record.getMessage().strip().partition("\n")[0]
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and str(error) not in text:
            text = f"{text}: {type(error).__name__}: {error}"
        self._said.append(f"{record.name}: {text}"[:_LONGEST])

    def text(self) -> str:
        """Return the lines for the text of a failure."""
        return "".join(f"\n  logged: {line}" for line in self._said)

    def __enter__(self) -> Self:
        """Start to capture."""
        for name in self._LOGGERS:
            logging.getLogger(name).addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Stop capturing."""
        for name in self._LOGGERS:
            logging.getLogger(name).removeHandler(self)
