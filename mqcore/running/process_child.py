"""The child process of a `process=True` handler, and its protocol with the parent.

A message comes as one frame: the lengths of a header and a body, the header as JSON, the body as it
is. The child decodes the body by the handler's own payload type, calls the handler, and answers
with one frame that has the result. Nothing else is read or written there, and nothing in a frame is
executed. The parent names the handler to run once, at the start.

Beside the handler a thread reads the frames, so that the end of the parent is noticed while the
handler runs, and ends the child. What a handler prints goes to standard error: the descriptor that
carries the frames is not one that it knows.
"""

from __future__ import annotations

import asyncio
import contextvars
import faulthandler
import importlib
import importlib.machinery
import importlib.util
import inspect
import json
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NoReturn, cast

from mqcore.config.plugins import default_plugins
from mqcore.consuming.context import DeliveryInfo
from mqcore.errors import ConfigurationError
from mqcore.messages.codec import Codecs, encode_any
from mqcore.messages.delivery import Delivery
from mqcore.messages.message import Message
from mqcore.rules.inbound import Inbound
from mqcore.rules.results import result_of
from mqcore.rules.retry import Ending, Failure, HandlerResult
from mqcore.running.signals import ignore_stop_signals

if TYPE_CHECKING:
    from types import ModuleType

    from mqcore.running.handlers import HandlerSpec

__all__ = ["FRAME", "SlotRequest", "SlotResult", "frame", "invoke", "load", "main"]

FRAME = struct.Struct("!II")
"""What a frame begins with: bytes of its header, bytes of its body."""
_SCRIPT = "__mp_main__"
"""The program's `__name__` in the child: `if __name__ == "__main__"` must be false there.

It is the name that multiprocessing gives to the program in a child that it spawns, so what a
handler pickles is found there.
"""
_PART = 256 * 1024
"""Bytes to read at once: more than a socket holds."""
_FACTS = (
    "id",
    "content_type",
    "encoding",
    "headers",
    "priority",
    "attempt",
    "published_at",
    "correlation_id",
    "redriven",
)

Header = dict[str, Any]


def frame(header: Header, body: bytes = b"") -> bytes:
    """Return header and body as they go through the channel."""
    text = json.dumps(header).encode()
    return FRAME.pack(len(text), len(body)) + text + body


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotRequest:
    """One message for a handler in a child.

    `queue` is the base queue. Of `message` only what a handler may see crosses over.
    `wants_result`: whether what the handler returns is encoded and sent back, for a reply.
    """

    queue: str
    message: Message
    redelivered: bool = False
    wants_result: bool = False

    def frame(self) -> bytes:
        """Return the frame that `unframed` reads."""
        header = {name: getattr(self.message, name) for name in _FACTS}
        header["headers"] = dict(self.message.headers)
        rest = {
            "queue": self.queue,
            "redelivered": self.redelivered,
            "wants_result": self.wants_result,
        }
        return frame(header | rest, self.message.body)

    @classmethod
    def unframed(cls, header: Header, body: bytes) -> SlotRequest:
        """Return the request in a frame."""
        message = Message(body=body, **{name: header.pop(name) for name in _FACTS})
        return cls(message=message, **header)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotResult:
    """What happened in the child.

    `body` is what the handler returned, None when that was not wanted or was None.
    """

    result: HandlerResult
    body: bytes | None = None
    content_type: str | None = None

    def frame(self) -> bytes:
        """Return the frame that `unframed` reads."""
        failure = self.result.failure
        header: Header = {"ending": self.result.ending.value, "delay": self.result.delay}
        if failure is not None:
            header["failure"] = [failure.types, failure.text, failure.traceback, failure.members]
        if self.body is not None:
            header["content_type"] = self.content_type
        return frame(header, self.body or b"")

    @classmethod
    def unframed(cls, header: Header, body: bytes) -> SlotResult:
        """Return the result in a frame."""
        failure = None
        if (described := header.get("failure")) is not None:
            types, text, traceback, members = described
            failure = Failure(tuple(types), text, traceback, tuple(map(tuple, members)))
        result = HandlerResult(Ending(header["ending"]), failure, header["delay"])
        kind = header.get("content_type")
        return cls(result=result, body=None if kind is None else body, content_type=kind)


class SlotContext(DeliveryInfo):
    """The context of a handler in a process of its own: facts only."""

    def publish(self, *_: object, **__: object) -> NoReturn:
        """Raise `ConfigurationError`: the broker's connection is in the parent."""
        raise ConfigurationError(
            "publish from process=True handlers is not possible: return the value or use a "
            "thread handler"
        )

    def request(self, *_: object, **__: object) -> NoReturn:
        """Raise `ConfigurationError`: as `publish`."""
        raise ConfigurationError(
            "request from process=True handlers is not possible: use an async handler and a "
            "broker of its own"
        )


Run = Callable[[Awaitable[Any]], Any]


def invoke(
    handler: Callable[..., Any], request: SlotRequest, codecs: Codecs, run: Run
) -> SlotResult:
    """Decode, call, and say what happened; never raises, whatever the handler does.

    `run` runs what an async handler returns. Core adapts the child to its handlers here and nowhere
    else.
    """
    spec: HandlerSpec = handler.__mqcore__  # type: ignore[attr-defined]  # load has made sure that it is there
    message = request.message
    try:
        payload = Inbound(codecs).decoded(spec.payload, message)
    except BaseException as error:  # noqa: BLE001 - a payload type is user code too
        return SlotResult(result=result_of(error))
    if isinstance(payload, HandlerResult):
        return SlotResult(result=payload)

    context = SlotContext(request.queue, Delivery(message, b"", redelivered=request.redelivered))
    arguments = (payload, context) if spec.takes_context else (payload,)
    try:
        value = contextvars.copy_context().run(handler, *arguments)
        if inspect.isawaitable(value):
            value = run(value)
        if value is None or not request.wants_result:
            return SlotResult(result=HandlerResult(Ending.SUCCEEDED))
        body, content_type = encode_any(value, codecs)
        return SlotResult(
            result=HandlerResult(Ending.SUCCEEDED), body=body, content_type=content_type
        )
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt are failures, not the child's end
        return SlotResult(result=result_of(error))


def load(target: str, script: str | None) -> Callable[..., Any]:
    """Import the handler named by `target`, "module:qualname", or from the file `script`.

    Raises what the import raises, and `ConfigurationError` when what is found there is not a
    handler.
    """
    name, _, qualname = target.partition(":")
    handler: Any = importlib.import_module(name) if script is None else _import_script(script)
    for part in qualname.split("."):
        handler = getattr(handler, part)
    if not callable(handler) or not hasattr(handler, "__mqcore__"):
        raise ConfigurationError(
            f"{target!r} is not registered as a handler where its module alone has been imported: "
            "decorate it with @app.consumer(..., process=True) in that module, and leave its "
            "name to it"
        )
    return cast("Callable[..., Any]", handler)


def _import_script(path: str) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader(_SCRIPT, path)
    spec = importlib.util.spec_from_file_location(_SCRIPT, path, loader=loader)
    if spec is None:
        raise ConfigurationError(f"{path!r} is not a Python source file")
    module = importlib.util.module_from_spec(spec)
    module.__spec__ = (
        None  # as in a script: multiprocessing then runs the file again in a child that it spawns
    )
    sys.modules[_SCRIPT] = sys.modules["__main__"] = module
    loader.exec_module(module)
    return module


def main() -> None:
    """Run the child: load the handler, report ready, then answer frames until the parent ends."""
    channel = _take_channel()
    frames: SimpleQueue[tuple[bytes, bytes]] = SimpleQueue()
    threading.Thread(
        target=_listen, args=(channel, frames), name="mqcore-parent", daemon=True
    ).start()
    start: Header = json.loads(frames.get()[0])
    sys.argv = start["argv"]

    try:
        handler = load(start["target"], start["script"])
        codecs = default_plugins().codecs(start["codecs"]).bounded(start["most"])
    except BaseException as error:  # noqa: BLE001 - whatever an import raises, SystemExit too, is for the parent to report
        failure = Failure.of(error)
        channel.sendall(
            frame({"refused": f"{failure.type}: {failure.text}", "traceback": failure.traceback})
        )
        return

    channel.sendall(frame({"refused": None}))
    runner = (
        asyncio.Runner()
    )  # one loop for the child's life: a client that a handler keeps may belong to it

    while True:
        header, body = frames.get()
        request = SlotRequest.unframed(json.loads(header), body)
        result = invoke(handler, request, codecs, lambda awaitable: _run(awaitable, runner))
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):  # a handler may have closed or replaced it
                stream.flush()
        channel.sendall(result.frame())


def _take_channel() -> socket.socket:
    """Take the channel from descriptor 0, and ignore the signals that stop workers."""
    ignore_stop_signals()
    faulthandler.enable()
    channel = socket.socket(fileno=os.dup(0))
    os.register_at_fork(
        after_in_child=channel.close
    )  # or the parent would not notice this child's death
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    return channel


def _listen(channel: socket.socket, frames: SimpleQueue[tuple[bytes, bytes]]) -> None:
    with suppress(EOFError, OSError):
        while True:
            header, body = FRAME.unpack(_receive(channel, FRAME.size))
            frames.put((_receive(channel, header), _receive(channel, body)))
    # The parent is gone, and nothing would settle the message: end, with what the
    # handler has started.
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


def _receive(channel: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = channel.recv(min(size, _PART))
        if not part:
            raise EOFError
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _run(awaitable: Awaitable[Any], runner: asyncio.Runner) -> Any:
    async def wait() -> Any:
        return await awaitable

    return runner.run(wait(), context=contextvars.copy_context())
