"""The supervisor with real processes: small scripts that report through a FIFO."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest

from mqcore.clock import SystemClock
from mqcore.errors import ConfigurationError
from mqcore.running import supervisor as module
from mqcore.running.supervisor import RECYCLE, Supervisor, resident_memory
from mqcore.testing import VirtualClock

SAY = """
import os, signal, sys
fifo = os.open(sys.argv[1], os.O_WRONLY)
def say(*words):
    os.write(fifo, (" ".join(map(str, words)) + "\\n").encode())
"""
DRAINS = (
    SAY
    + """
def drain(*_):
    say("drained", os.getpid())
    sys.exit(0)
signal.signal(signal.SIGTERM, drain)
say("started", os.getpid(), os.getpgid(0))
while True:
    signal.pause()
"""
)
STUBBORN = (
    SAY
    + """
signal.signal(signal.SIGTERM, lambda *_: say("ignored", os.getpid()))
say("started", os.getpid())
while True:
    signal.pause()
"""
)
OBEYS_THE_SECOND = (
    SAY
    + """
asked = []
def ask(*_):
    asked.append(1)
    say("asked", len(asked))
    if len(asked) == 2:
        sys.exit(0)
signal.signal(signal.SIGTERM, ask)
say("started", os.getpid())
while True:
    signal.pause()
"""
)
DEAF = (
    SAY
    + """
say("started", os.getpid())
signal.pause()
"""
)
LOOKS_AT_ITS_INPUT = (
    SAY
    + """
say("started", os.getpid())
say("orphaned" if sys.stdin.read() == "" else "odd")
"""
)


def exits(code: int) -> str:
    return (
        SAY + "say('started', os.getpid())\nprint('this is what is wrong', "
        f"file=sys.stderr)\nsys.exit({code})\n"
    )


class Reports:
    """What the processes say, in order."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self.path = path
        self._stream = os.fdopen(
            os.open(path, os.O_RDWR), "rb", 0
        )  # for writing too: never at its end
        self._reader = asyncio.StreamReader()
        self._transport: asyncio.BaseTransport | None = None

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        protocol = asyncio.StreamReaderProtocol(self._reader)
        self._transport, _ = await loop.connect_read_pipe(lambda: protocol, self._stream)

    async def next(self, word: str) -> list[str]:
        async with asyncio.timeout(20):
            line = (await self._reader.readline()).decode().split()
        assert line[0] == word, line
        return line[1:]

    async def all(self, word: str, count: int) -> list[list[str]]:
        return sorted([await self.next(word) for _ in range(count)])

    async def nothing_more(self) -> None:
        """All that was written before now has been read."""
        with self.path.open("w") as stream:
            stream.write("end\n")
        await self.next("end")

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


@pytest.fixture
async def reports(tmp_path: Path) -> AsyncIterator[Reports]:
    reports = Reports(tmp_path / "reports")
    await reports.open()
    yield reports
    reports.close()
    await asyncio.sleep(0)


def command(script: str, reports: Reports) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", script, str(reports.path)]


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def ended(task: asyncio.Task[int]) -> int:
    async with asyncio.timeout(20):
        return await task


class Impatient(SystemClock):
    """Notes each backoff it is asked for and lets none last.

    Whoever looks at it finds it `step` later than before.
    """

    def __init__(self, step: float = 1.0) -> None:
        self.step = step
        self.waits: list[float] = []
        self._at = 0.0

    def monotonic(self) -> float:
        self._at += self.step
        return self._at

    def timeout(self, delay: float | None) -> AbstractAsyncContextManager[object]:
        if delay is None or delay > 30:  # the grace
            return super().timeout(delay)
        self.waits.append(delay)
        return asyncio.timeout(0)


# orderly


async def test_so_many_processes_run_and_drain(reports: Reports) -> None:
    supervisor = Supervisor(command(DRAINS, reports), 3)
    task = asyncio.create_task(supervisor.run())
    started = await reports.all("started", 3)
    assert sorted(supervisor.pids) == sorted(int(pid) for pid, _ in started)
    supervisor.stop()
    assert await reports.all("drained", 3) == [[pid] for pid, _ in started]
    assert await ended(task) == 0
    assert supervisor.pids == []


async def test_each_process_leads_its_own_group(reports: Reports) -> None:
    supervisor = Supervisor(command(DRAINS, reports), 2)
    task = asyncio.create_task(supervisor.run())
    assert all(pid == group for pid, group in await reports.all("started", 2))
    supervisor.stop()
    assert await ended(task) == 0


async def test_a_worker_that_is_stopped_before_it_listens_is_no_failure(reports: Reports) -> None:
    supervisor = Supervisor(command(DEAF, reports), 1)
    task = asyncio.create_task(supervisor.run())
    await reports.next("started")
    supervisor.stop()
    assert await ended(task) == 0


async def test_a_failure_while_draining_shows_in_the_exit_code(
    reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    supervisor = Supervisor(command(DRAINS.replace("sys.exit(0)", "sys.exit(9)"), reports), 1)
    task = asyncio.create_task(supervisor.run())
    await reports.next("started")
    supervisor.stop()
    assert await ended(task) == 1
    assert "worker 0 ended while draining: exit code 9" in caplog.messages


# deaths


async def test_a_dead_worker_is_replaced_and_the_others_stay(
    reports: Reports, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module.random, "random", lambda: 0.0)
    supervisor = Supervisor(command(DRAINS, reports), 2)
    task = asyncio.create_task(supervisor.run())
    (first, _), (second, _) = await reports.all("started", 2)
    os.kill(int(first), signal.SIGKILL)
    third, _ = await reports.next("started")
    assert sorted(supervisor.pids) == sorted([int(second), int(third)])
    assert any(
        "killed by SIGKILL; the next is started in 0.0 s" in text for text in caplog.messages
    )
    supervisor.stop()
    assert await ended(task) == 0


async def test_the_wait_grows_while_it_keeps_dying_and_has_a_cap(
    reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.random, "random", lambda: 1.0)
    clock = Impatient()
    supervisor = Supervisor(command(exits(1), reports), 1, clock=clock)
    task = asyncio.create_task(supervisor.run())
    await reports.all("started", 9)
    supervisor.stop()
    await ended(task)
    assert clock.waits[:8] == [0.5, 1, 2, 4, 8, 16, 30, 30]


async def test_the_wait_is_short_again_after_a_healthy_minute(
    reports: Reports, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.random, "random", lambda: 1.0)
    clock = Impatient(step=59)
    supervisor = Supervisor(command(exits(1), reports), 1, clock=clock)
    task = asyncio.create_task(supervisor.run())
    await reports.all("started", 4)
    short = len(clock.waits)
    clock.step = 60
    await reports.all("started", 4)
    supervisor.stop()
    await ended(task)
    assert clock.waits[:3] == [0.5, 1, 2]
    assert clock.waits[short + 1 : short + 3] == [0.5, 0.5]


async def test_nobody_waits_out_a_backoff_when_it_is_time_to_stop(
    reports: Reports, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module.random, "random", lambda: 1.0)
    waiting = asyncio.Event()

    class Clock(SystemClock):
        def timeout(self, delay: float | None) -> AbstractAsyncContextManager[object]:
            waiting.set()
            return super().timeout(3600)

    supervisor = Supervisor(command(exits(1), reports), 1, clock=Clock())
    task = asyncio.create_task(supervisor.run())
    await waiting.wait()
    supervisor.stop()
    assert await ended(task) == 0


async def test_a_worker_that_recycles_itself_is_replaced_at_once_and_quietly(
    reports: Reports, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Impatient()
    supervisor = Supervisor(command(exits(RECYCLE), reports), 1, clock=clock)
    task = asyncio.create_task(supervisor.run())
    pids = await reports.all("started", 4)
    assert len({pid for (pid,) in pids}) == 4
    assert clock.waits == []
    supervisor.stop()
    assert await ended(task) == 0
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


# what is configured wrongly


async def test_a_worker_that_cannot_start_ends_them_all(
    reports: Reports, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mark = tmp_path / "first"
    script = (
        f"""
import os
try:
    os.close(os.open({str(mark)!r}, os.O_CREAT | os.O_EXCL))
    first = True
except FileExistsError:
    first = False
"""
        + SAY
        + "exec(sys.argv[2 if first else 3])\n"
    )
    good = (
        "signal.signal(signal.SIGTERM, lambda *_: "
        "sys.exit(say('drained')))\nsay('started')\nwhile True: signal.pause()"
    )
    bad = "print('no such queue', file=sys.stderr)\nopen(sys.argv[4]).read()\nsys.exit(2)"
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    supervisor = Supervisor([*command(script, reports), good, bad, str(gate)], 2)
    task = asyncio.create_task(supervisor.run())
    await reports.next("started")
    await asyncio.to_thread(gate.write_text, "now")
    await reports.next("drained")
    assert await ended(task) == 2
    assert "no such queue" in capfd.readouterr().err
    await reports.nothing_more()


async def test_a_worker_that_was_healthy_before_is_tried_again(reports: Reports) -> None:
    clock = Impatient(step=60)
    supervisor = Supervisor(command(exits(2), reports), 1, clock=clock)
    task = asyncio.create_task(supervisor.run())
    await reports.next("started")
    await reports.next("started")
    clock.step = 1
    assert await ended(task) == 2


async def test_a_command_that_there_is_not_is_a_configuration_error(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert await Supervisor(["/no/such/command"], 2).run() == 2
    assert any(
        "cannot be started" in text and "/no/such/command" in text for text in caplog.messages
    )


@pytest.mark.parametrize(
    ("words", "processes", "grace", "why"),
    [([], 1, 1, "the command is empty"), (["x"], 0, 1, "processes=0"), (["x"], 1, -1, "grace=-1")],
    ids=["no command", "no processes", "no grace"],
)
def test_figures_that_run_nothing_are_refused(
    words: list[str], processes: int, grace: float, why: str
) -> None:
    with pytest.raises(ConfigurationError, match=why):
        Supervisor(words, processes, grace=grace)


# the end


async def test_who_does_not_drain_is_killed_a_second_after_the_grace(reports: Reports) -> None:
    clock = VirtualClock()
    supervisor = Supervisor(command(STUBBORN, reports), 1, grace=30, clock=clock)
    task = asyncio.create_task(supervisor.run())
    (pid,) = await reports.next("started")
    supervisor.stop()
    await reports.next("ignored")
    await clock.advance(30.9)
    assert not gone(int(pid))
    await clock.advance(0.2)
    assert await ended(task) == 1
    assert gone(int(pid))


async def test_a_second_signal_is_passed_on_and_who_obeys_is_not_killed(reports: Reports) -> None:
    clock = VirtualClock()
    supervisor = Supervisor(command(OBEYS_THE_SECOND, reports), 1, clock=clock)
    task = asyncio.create_task(supervisor.run())
    await reports.next("started")
    supervisor.stop()
    assert await reports.next("asked") == ["1"]
    supervisor.stop()
    assert await reports.next("asked") == ["2"]
    assert await ended(task) == 0


async def test_who_does_not_obey_the_second_signal_is_killed_after_a_second(
    reports: Reports,
) -> None:
    clock = VirtualClock()
    supervisor = Supervisor(command(STUBBORN, reports), 1, clock=clock)
    task = asyncio.create_task(supervisor.run())
    (pid,) = await reports.next("started")
    supervisor.stop()
    await reports.next("ignored")
    supervisor.stop()
    await reports.next("ignored")
    await clock.advance(1)
    assert await ended(task) == 1
    assert gone(int(pid))


async def test_a_cancelled_supervisor_leaves_no_process(reports: Reports) -> None:
    supervisor = Supervisor(command(STUBBORN, reports), 1)
    task = asyncio.create_task(supervisor.run())
    (pid,) = await reports.next("started")
    descriptor = os.pidfd_open(int(pid))
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    ready = asyncio.Event()
    asyncio.get_running_loop().add_reader(descriptor, ready.set)
    async with asyncio.timeout(20):
        await ready.wait()
    asyncio.get_running_loop().remove_reader(descriptor)
    os.close(descriptor)


# as a program


PROGRAM = """
import asyncio, sys
from mqcore.running.supervisor import Supervisor
sys.exit(asyncio.run(Supervisor(sys.argv[1:], 2).run()))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_the_workers_and_ends_the_program(
    reports: Reports, number: int
) -> None:
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, *command(DRAINS, reports)
    )
    await reports.all("started", 2)
    program.send_signal(number)
    await reports.all("drained", 2)
    async with asyncio.timeout(20):
        assert await program.wait() == 0


async def test_a_worker_can_see_that_its_supervisor_was_killed(reports: Reports) -> None:
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        PROGRAM,
        *command(LOOKS_AT_ITS_INPUT, reports),
        stdin=subprocess.DEVNULL,
    )
    await reports.all("started", 2)
    program.kill()
    await reports.all("orphaned", 2)
    await program.wait()


# memory


def test_the_memory_in_use_is_told_in_bytes() -> None:
    before = resident_memory()
    assert before is not None
    block = bytearray(64 * 1024 * 1024)
    after = resident_memory()
    assert after is not None
    assert 60 * 1024 * 1024 < after - before < 80 * 1024 * 1024
    assert block.count(0) == 64 * 1024 * 1024


def test_where_the_system_does_not_tell_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STATM", tmp_path / "none")
    assert resident_memory() is None
