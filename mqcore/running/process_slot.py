"""One killable process for a `process=True` handler.

A message comes in by `ProcessSlot.run`, goes as one frame to a child that has imported the handler
before, and what the child answers is returned. A child that dies instead raises `SlotDied`: that
message, and no other, was in it. When `run` is cancelled (a time limit), the child is killed with
everything that it started, and the next message gets a new one. The child's side is
`mqcore.running.process_child`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress

from mqcore.errors import ConfigurationError, MqcoreError
from mqcore.messages.encoding import MOST
from mqcore.running.process_child import FRAME, Header, SlotRequest, SlotResult, frame

__all__ = ["ProcessSlot", "SlotDied", "SlotRequest", "SlotResult", "describe_exit"]

_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from "
    "mqcore.running.process_child import main; main()"
)
_GONE = 2.0
"""Seconds that a killed process may take to disappear."""
_FIRST_LOOK, _LAST_LOOK = 0.001, 0.05


class SlotDied(MqcoreError):
    """The child died: by itself, by a signal, or from outside.

    `code` is its exit code, negative for a signal, None when it is unknown. `ready`: whether
    it had imported the handler; if not, no message was in it.
    """

    def __init__(self, target: str, code: int | None, *, ready: bool) -> None:
        when = "while it handled a message" if ready else "before it was ready for one"
        super().__init__(f"the process of handler {target!r} died {when}: {describe_exit(code)}")
        self.code = code
        self.ready = ready


def describe_exit(code: int | None) -> str:
    """Say how a process ended, from its exit code as `subprocess` gives it."""
    if code is None:
        return "exit status unknown"
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


class ProcessSlot:
    """Runs one handler in a process of its own, one message at a time. Used from one event loop.

    `target` is "module:qualname" of the handler function, `codecs` names the allowed codecs (None:
    the built-in ones), and `most` is how many bytes a compressed body may have when it is
    decompressed. Raises `ConfigurationError` when a fresh process could not find it there. The
    process is started by the first `run` or `start`, and again after each death.
    """

    def __init__(self, target: str, codecs: Sequence[str] | None = None, most: int = MOST) -> None:
        self.target, self._script = _findable(target)
        self._codecs, self._most = codecs, most
        self._child: _Child | None = None
        self._lock = asyncio.Lock()
        self._endings: set[asyncio.Task[int | None]] = set()
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The process's id; None while there is none."""
        return None if self._child is None else self._child.process.pid

    async def start(self) -> None:
        """Have a process ready, so that its start is not on a message's time.

        Raises `ConfigurationError` with the child's own words when the handler cannot be imported
        there, `SlotDied` when the process died on the way, `OSError` when the system starts no
        more, `RuntimeError` when the slot is closed.
        """
        async with self._lock:
            await self._ready()

    async def run(self, request: SlotRequest) -> SlotResult:
        """Run the handler with one message and return its result.

        A second caller waits for the first.

        Raises `SlotDied` when the process died before it answered, and what `start` raises. When
        cancelled, the process is killed, and gone before the cancellation goes on.
        """
        async with self._lock:
            child = await self._ready()
            return SlotResult.unframed(*await self._exchange(child, request.frame()))

    async def close(self) -> None:
        """Kill the process and wait until it is gone, at most 2 s.

        A `run` under way raises `SlotDied`.
        """
        self._closed = True
        if self._child is not None:
            self._child.kill()
        async with self._lock:
            await self._end()
        if self._endings:
            await asyncio.wait(self._endings)

    async def _ready(self) -> _Child:
        if self._closed:
            raise RuntimeError(f"the process slot of handler {self.target!r} is closed")
        if self._child is not None:
            if self._child.process.poll() is None:
                return self._child
            await self._end()  # it died with no message in it

        child = self._child = _Child(self.target)
        start: Header = {
            "target": self.target,
            "script": self._script,
            "argv": sys.argv,
            "codecs": self._codecs,
        }

        start["most"] = self._most
        answer, _ = await self._exchange(child, frame(start))
        if answer["refused"] is not None:
            await self._end()
            error = ConfigurationError(
                f"handler {self.target!r} cannot be imported in a process of its own: "
                f"{answer['refused']}"
            )
            error.add_note(answer["traceback"])
            raise error

        child.ready = True
        return child

    async def _exchange(self, child: _Child, request: bytes) -> tuple[Header, bytes]:
        """Send one frame and return the answer; leave no process behind when there is none."""
        try:
            return await child.exchange(request)
        except (EOFError, OSError):
            code = await self._end()
            raise SlotDied(self.target, code, ready=child.ready) from None
        except BaseException:
            await self._end()
            raise

    async def _end(self) -> int | None:
        """Kill the process and return its exit code when it is gone.

        Goes on in the background when cancelled.
        """
        child, self._child = self._child, None
        if child is None:
            return None
        ending = asyncio.create_task(child.end())
        self._endings.add(ending)
        ending.add_done_callback(self._endings.discard)
        return await asyncio.shield(ending)


class _Child:
    """One process and the channel to it.

    It leads a process group, so that what a handler started is killed with it.
    """

    def __init__(self, target: str) -> None:
        ours, theirs = socket.socketpair()
        paths = json.dumps([str(path) for path in sys.path])
        command = [sys.executable, "-P", "-c", _BOOT, paths, target]

        try:
            with theirs:
                # no shell, and nothing in it comes from a message
                self.process = subprocess.Popen(command, stdin=theirs.fileno(), process_group=0)  # noqa: S603 - see above
        except BaseException:
            ours.close()
            raise

        ours.setblocking(False)  # noqa: FBT003 - the name of the call says what is meant
        self._channel = ours
        self.ready = False

    async def exchange(self, request: bytes) -> tuple[Header, bytes]:
        """Send a frame, and return the answer's header and body.

        Raises `EOFError` or `OSError` when the process has ended.
        """
        await asyncio.get_running_loop().sock_sendall(self._channel, request)
        header, body = FRAME.unpack(await self._receive(FRAME.size))
        answer: Header = json.loads(await self._receive(header))
        return answer, bytes(await self._receive(body))

    async def _receive(self, size: int) -> bytearray:
        loop, data, done = asyncio.get_running_loop(), bytearray(size), 0
        view = memoryview(data)
        while done < size:
            count = await loop.sock_recv_into(self._channel, view[done:])
            if not count:
                raise EOFError
            done += count
        return data

    def kill(self) -> None:
        """Kill the group.

        Only this object waits for the process, so its id cannot belong to another one yet.
        """
        if self.process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):  # the group has no living process
                os.killpg(self.process.pid, signal.SIGKILL)

    async def end(self) -> int | None:
        """Kill it, wait for its end, and return the exit code; None when that takes too long."""
        self.kill()
        self._channel.close()
        deadline, pause = asyncio.get_running_loop().time() + _GONE, _FIRST_LOOK
        while (
            code := self.process.poll()
        ) is None and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(pause)
            pause = min(pause * 2, _LAST_LOOK)
        return code


def _findable(target: str) -> tuple[str, str | None]:
    """Return the target, and the script that has it when it is in the program itself."""
    module, _, qualname = target.partition(":")
    if not module or not qualname or "<" in qualname:
        raise ConfigurationError(
            f"handler {target!r} cannot run in a process of its own: it must be a function at "
            "the top level of a "
            "module, where a new process can import it"
        )

    if module != "__main__":
        return target, None
    program = sys.modules["__main__"]
    if program.__spec__ is not None and program.__spec__.name != "__main__":
        return f"{program.__spec__.name}:{qualname}", None  # python -m
    path = getattr(program, "__file__", None)
    if path is None or not os.path.isfile(path):  # noqa: PTH113 - a plain look at a plain string
        raise ConfigurationError(
            f"handler {target!r} cannot run in a process of its own: the program is not a file "
            "that a new process can "
            "import it from. Put the handler into a module"
        )

    return target, os.path.abspath(path)  # noqa: PTH100 - as above
