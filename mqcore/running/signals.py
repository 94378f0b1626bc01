"""SIGTERM and SIGINT, for everything in this process that drains at one.

Python keeps one handler for each signal. All workers of a process share the one in this module: it
calls each of them, then the handler that was set before, so a server or an application around the
workers hears of the signal too. When the last worker has ended, the previous handlers are set
again.

A signal also wakes the event loop of the main thread, by a socket that Python writes to (the wakeup
descriptor): the handler runs between two instructions of Python, and a loop that waits for its
sockets executes none. A process that a message handler forks must not write there, or a signal to
the child would be taken for one to the worker. So signals wait while a process forks, and the child
begins with the previous handlers and without a wakeup descriptor.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

__all__ = ["STOP_SIGNALS", "call_at_stop_signals", "ignore_stop_signals"]

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# what `signal.getsignal` returns: a function, SIG_DFL, SIG_IGN, or None for one that is not
# Python's
_Handler = Any


class _Waker:
    """The wakeup descriptor, and the event loop that it wakes."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._sockets: tuple[socket.socket, ...] = ()

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wake this loop from now on, unless it has a wakeup descriptor already."""
        if loop is self._loop:
            return

        self.close()
        ours, theirs = socket.socketpair()
        for each in (ours, theirs):
            each.setblocking(False)  # noqa: FBT003 - the name of the call says what is meant
        before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        if before != -1:  # the loop's own: it has signal handlers, or is one of uvloop
            signal.set_wakeup_fd(before)
            ours.close()
            theirs.close()
            return

        loop.add_reader(ours, _drain, ours)
        self._loop, self._sockets = loop, (ours, theirs)

    def close(self) -> None:
        """Wake nothing any more."""
        if self._loop is None:
            return

        ours, theirs = self._sockets
        current = signal.set_wakeup_fd(-1)
        if current not in (-1, theirs.fileno()):
            signal.set_wakeup_fd(current)  # set by other code meanwhile
        if not self._loop.is_closed():
            self._loop.remove_reader(ours)
        self.forget()

    def forget(self) -> None:
        """Close the sockets alone: in a forked child, the loop is the parent's."""
        for each in self._sockets:
            each.close()
        self._loop, self._sockets = None, ()


def _drain(wakened: socket.socket) -> None:
    with suppress(BlockingIOError):
        wakened.recv(4096)


_waker = _Waker()
_listeners: list[Callable[[], object]] = []
_previous: dict[int, _Handler] = {}
_chaining: set[int] = set()
_forking = threading.local()


@contextmanager
def call_at_stop_signals(
    call: Callable[[], object], loop: asyncio.AbstractEventLoop | None = None
) -> Iterator[None]:
    """Within the block, call `call` at each SIGTERM and SIGINT.

    It is called in `loop`, the caller's own, or without one in the signal handler.

    In the signal handler it runs between two instructions of whatever the main thread does, so it
    may do no more than `SimpleQueue.put`. Only the main thread can set handlers. A block in another
    thread gets signals while one in the main thread is open.
    """
    if loop is not None:
        call = partial(loop.call_soon_threadsafe, call)
    _listeners.append(call)
    _install(loop)
    try:
        yield
    finally:
        _listeners.remove(call)
        if not _listeners:
            _restore()


def _install(loop: asyncio.AbstractEventLoop | None) -> None:
    if threading.current_thread() is not threading.main_thread():
        return

    if loop is not None:
        _waker.watch(loop)
    for number in STOP_SIGNALS:
        handler = signal.getsignal(number)
        if handler is not _on_signal:
            _previous[number] = handler
            signal.signal(number, _on_signal)


def _restore() -> None:
    """Set the previous handlers again, where no other handler has been set since."""
    if threading.current_thread() is not threading.main_thread():
        return  # a handler without listeners acts as the previous one

    _waker.close()
    for number, handler in list(_previous.items()):
        if signal.getsignal(number) is _on_signal:
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
            del _previous[number]


def _on_signal(number: int, frame: Any) -> None:
    called = tuple(_listeners)
    for listener in called:
        with suppress(RuntimeError):  # its loop is closed: nothing is left to drain
            listener()

    previous = _previous.get(number, signal.SIG_DFL)
    if not called:
        _act_as(previous, number, frame)
    elif (
        callable(previous)
        and previous is not signal.default_int_handler
        and not _is_of_a_loop(previous)
    ):
        _chain(previous, number, frame)


def _act_as(previous: _Handler, number: int, frame: Any) -> None:
    """Nothing drains any more: the signal means what it would mean without us."""
    if callable(previous):
        _chain(previous, number, frame)
    elif previous is not signal.SIG_IGN:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def _chain(previous: Callable[[int, Any], object], number: int, frame: Any) -> None:
    if number in _chaining:
        return  # the previous handler has chained to us

    _chaining.add(number)
    try:
        previous(number, frame)
    finally:
        _chaining.discard(number)


def _is_of_a_loop(handler: _Handler) -> bool:
    """Whether an event loop set this handler.

    Such a handler wakes the loop, which then calls its own handler or cancels the main task.
    """
    function = getattr(handler, "func", handler)  # asyncio.Runner's is a partial
    return str(getattr(function, "__module__", "")).partition(".")[0] in {"asyncio", "uvloop"}


def ignore_stop_signals() -> None:
    """Leave it to the parent to end this process.

    It is an empty handler and not SIG_IGN: what this process starts, forks or programs, does not
    inherit it.
    """
    for number in STOP_SIGNALS:
        _previous[number] = signal.signal(number, _ignore)


def _ignore(_number: int, _frame: Any) -> None:
    """Do nothing."""


def _hold_signals() -> None:
    """Before a fork: block signals until the child has reset its handlers, so that none is lost."""
    if _previous:
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def _release_signals() -> None:
    mask = _forking.__dict__.pop("mask", None)
    if mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _reset_in_child() -> None:
    """In a forked child: signals do not reach the parent's event loop, and none is ignored."""
    if _previous:
        _listeners.clear()
        signal.set_wakeup_fd(-1)
        _waker.forget()
        for number, handler in _previous.items():
            if signal.getsignal(number) in (_on_signal, _ignore):
                default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                signal.signal(
                    number, default if handler is None or _is_of_a_loop(handler) else handler
                )
        _previous.clear()
    _release_signals()


os.register_at_fork(
    before=_hold_signals, after_in_parent=_release_signals, after_in_child=_reset_in_child
)
