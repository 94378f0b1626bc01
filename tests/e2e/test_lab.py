"""The lab of docs/lab.md in terminals: each step's commands, on RabbitMQ and on Redis.

Only what must differ does: the broker, the queue's name, and how long a second of work takes. The
page's first half runs as code blocks, in tests/docs.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest

from mqcore import Settings
from mqcore.sync import Broker

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mqcore.contract.brokers import Brokers

pytestmark = pytest.mark.timeout(120)  # programs in real time, on a machine with much else to do

ROOT = Path(__file__).parents[2]
LAB = ROOT / "examples" / "lab"
WORDS = ["every", "good", "boy", "does", "fine", "always"]
PATIENCE = 30.0
_RECEIVED = re.compile(r" \[x\] Received '([^']+)'")
_DONE = re.compile(r" \[x\] Done '([^']+)'")


def steps() -> dict[str, list[str]]:
    """Return the commands of the page's second half, by the headings that they stand under."""
    _, _, half = (ROOT / "docs" / "lab.md").read_text().partition("\n## Second half")
    found: dict[str, list[str]] = {}
    for part in half.split("\n### ")[1:]:
        heading, _, text = part.partition("\n")
        blocks = re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        found[heading] = [
            line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")
        ]
    return found


STEPS = steps()


class Said(NamedTuple):
    """What a command ended with."""

    code: int
    out: str
    err: str


class Program:
    """A program in a terminal of its own, its output read as it comes."""

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            words,
            cwd=LAB,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._news = threading.Condition()
        self._readers = [
            threading.Thread(target=self._read, args=pair)
            for pair in ((self.process.stdout, self.lines), (self.process.stderr, self.errors))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, stream: object, into: list[str]) -> None:
        for line in stream:  # type: ignore[attr-defined]  # a pipe of the process
            with self._news:
                into.append(line.rstrip("\n"))
                self._news.notify_all()

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def received(self) -> list[str]:
        return _RECEIVED.findall(self.text)

    @property
    def done(self) -> list[str]:
        return _DONE.findall(self.text)

    def until(self, wanted: Callable[[], object]) -> None:
        """Wait until it has said what makes this true."""
        with self._news:
            assert self._news.wait_for(wanted, PATIENCE), f"it said:\n{self.text}\n{self.errors}"

    def end(self, number: int = signal.SIGINT) -> int:
        """Send a signal, as Ctrl-C does, and wait until it has ended; returns its exit code."""
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE)
        self.close()
        return code

    def close(self) -> None:
        """Let nothing of it be left, whatever happened."""
        self.process.kill()
        self.process.wait()
        for reader in self._readers:
            reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()


class Lab:
    """The lab on one broker: a queue of its own, and the page's commands."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.queue = f"lab-{uuid.uuid4().hex[:8]}"
        self.programs: list[Program] = []

    def words(self, command: str, *more: str) -> tuple[list[str], dict[str, str]]:
        """Return what to execute for a command of the page, and its environment."""
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("MQCORE_")
        }
        environment |= {"MQCORE_URL": self.url, "PYTHONUNBUFFERED": "1"} if self.url else {}
        words = shlex.split(command, comments=True)
        while re.match(r"[A-Z_]+=", words[0]):
            name, _, value = words.pop(0).partition("=")
            environment[name] = value
        program, *rest = (self.queue if word == "hello" else word for word in words)
        if program == "mqcore":
            return [sys.executable, "-m", "mqcore", *rest, *more], environment
        assert program == "python", command
        script, *rest = rest
        return [
            sys.executable,
            "-W",
            "error",
            script,
            "--queue",
            self.queue,
            *more,
            *rest,
        ], environment

    def run(self, command: str) -> Said:
        """Run a command to its end."""
        words, environment = self.words(command)
        ended = subprocess.run(
            words,
            cwd=LAB,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        assert "Traceback" not in ended.stderr
        return Said(ended.returncode, ended.stdout, ended.stderr)

    def worker(self, command: str, second: float = 0.02, *more: str) -> Program:
        """Start a worker, and wait until it says so."""
        assert "qprocessor.py" in command
        words, environment = self.words(command, "--second", str(second), *more)
        one = Program(words, environment)
        self.programs.append(one)
        one.until(lambda: "waits for messages" in one.text)
        return one

    def send(self, command: str) -> None:
        """Run the sender, which must succeed."""
        assert "sender.py" in command
        said = self.run(command)
        assert (said.code, said.err) == (0, "")

    def waiting(self) -> int:
        """How many messages the queue still has, whatever their state."""
        with Broker.connect(self.url, settings=Settings()) as broker:
            [counts] = broker.counts(self.queue)
            return counts.total

    def close(self) -> None:
        for program in self.programs:
            program.close()


@pytest.fixture
def lab(broker_url: str) -> Iterator[Lab]:
    one = Lab(broker_url)
    yield one
    one.close()


def step(heading: str, commands: int) -> list[str]:
    """Return a step's commands; the test of a step knows how many it has."""
    found = STEPS[heading]
    assert len(found) == commands, (
        f"the step {heading!r} has other commands now: its test must follow"
    )
    return found


def wait(wanted: Callable[[], object]) -> None:
    """Wait for what several programs bring about together."""
    deadline = time.monotonic() + PATIENCE
    while not wanted():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_each_step_of_the_page_has_its_test() -> None:
    tested = set(re.findall(r'step\("([^"]+)", \d+\)', Path(__file__).read_text()))
    assert set(STEPS) == tested


@pytest.mark.parametrize(
    "command", sorted({one for found in STEPS.values() for one in found if ".py" in one})
)
def test_the_scripts_know_the_options_of_the_page(command: str) -> None:
    words = shlex.split(command, comments=True)
    script = next(number for number, word in enumerate(words) if word.endswith(".py"))
    said = subprocess.run(
        [sys.executable, *words[script:], "--help"],
        cwd=LAB,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize("script", ["sender.py", "qprocessor.py"])
@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "memory:// lives inside one process"),
        (["--url", "memory://lab"], "memory:// lives inside one process"),
        (["--url", "redis://localhost", "--host", "localhost"], "give one of them"),
        (["--url", "carrier-pigeon://user:canary@loft"], "carrier-pigeon"),
        (["--queue", "no such name", "--url", "redis://127.0.0.1:1"], "'no such name'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    script: str, words: list[str], why: str, tmp_path: Path
) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MQCORE_")
    }
    said = subprocess.run(
        [sys.executable, str(LAB / script), *words],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (said.returncode, said.stdout) == (1, "")
    assert why in said.stderr
    assert said.stderr.count("\n") == 1
    assert "canary" not in said.stderr


def test_a_password_may_hold_any_character_and_is_asked_for_when_not_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(LAB)
    import lab  # type: ignore[import-not-found, unused-ignore]  # noqa: PLC0415 - found only now

    monkeypatch.setattr(lab.getpass, "getpass", lambda question: "a:s/k@e%d ✓")
    words = ["--host", "10.0.0.5", "--vhost", "ada/2", "--username", "ada@home"]
    given = urlsplit(
        lab.broker_url(lab.parser("").parse_args([*words, "--password", "1Pass/word"]))
    )
    asked = urlsplit(lab.broker_url(lab.parser("").parse_args(words)))
    assert (given.scheme, given.hostname, given.port) == ("amqp", "10.0.0.5", 5672)
    assert [unquote(part or "") for part in (given.username, given.password, given.path)] == [
        "ada@home",
        "1Pass/word",
        "/ada/2",
    ]
    assert unquote(asked.password or "") == "a:s/k@e%d ✓"


def test_the_broker(lab: Lab) -> None:
    *_, doctor = step("The broker", 7)
    said = lab.run(doctor)
    assert said.code in (0, 1), said  # 1: other tests' dead letters are a problem to it
    lines = dict(line.split(maxsplit=1) for line in said.out.splitlines()[:5])
    assert lines["connects"] == "yes"
    assert lines["durability"].split(":")[0] in ("memory", "process", "machine")


def test_sending(lab: Lab) -> None:
    send, queues, peek = step("Sending", 3)
    said = lab.run(send)
    assert (said.code, said.out) == (0, " [x] Sent 'Hello World!'\n [x] Sent 'How are you?'\n")
    rows = {line.split()[0]: line.split()[1:] for line in lab.run(queues).out.splitlines()}
    assert rows[lab.queue][0] == "2"
    peeked = lab.run(peek)
    assert peeked.code == 0, peeked.err
    assert "Hello World!" in peeked.out
    assert lab.waiting() == 2


def test_lines_that_are_typed_are_sent(lab: Lab) -> None:
    words, environment = lab.words("python sender.py")
    typed = "Hello World!\n\nHow are you?\n"
    said = subprocess.run(
        words,
        cwd=LAB,
        env=environment,
        input=typed,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert (said.returncode, said.stdout.count("[x] Sent")) == (0, 2), said
    assert lab.waiting() == 2


def test_receiving(lab: Lab) -> None:
    [command] = step("Receiving", 1)
    lab.send(step("Sending", 3)[0])
    worker = lab.worker(command)
    worker.until(lambda: worker.done == ["Hello World!", "How are you?"])
    lab.send("python sender.py more")
    worker.until(lambda: worker.received[-1] == "more")
    assert worker.end() == 0
    assert worker.done[-1] == "more"  # what was begun is finished
    assert lab.waiting() == 0


def test_sharing_the_work(lab: Lab) -> None:
    *workers, send = step("Sharing the work", 3)
    one, two = (lab.worker(command, 0.1) for command in workers)
    lab.send(send)
    wait(lambda: sorted(one.done + two.done) == sorted(WORDS))
    assert one.done
    assert two.done


def test_losing_messages(lab: Lab) -> None:
    start, send = step("Losing messages", 2)
    worker = lab.worker(start)
    lab.send(send)
    worker.until(lambda: "Lost 'always'" in worker.text)
    assert worker.end() == 0
    assert worker.done == ["every", "good", "does", "fine"]
    assert lab.waiting() == 0


def test_acknowledging(lab: Lab) -> None:
    start, send, failing, doomed, listing, good, redrive = step("Acknowledging", 7)
    worker = lab.worker(start)
    lab.send(send)
    worker.until(lambda: sorted(worker.done) == sorted(WORDS))
    assert "again (attempt 2)" in worker.text
    assert worker.end() == 0
    assert lab.waiting() == 0

    worker = lab.worker(failing)
    lab.send(doomed)
    worker.until(lambda: worker.text.count("Lost 'doomed'") == 3)
    assert worker.end() == 0
    letters = lab.run(listing)
    assert letters.code == 0, letters.err
    assert "retries_exhausted" in letters.out

    worker = lab.worker(good)
    assert lab.run(redrive).code == 0
    worker.until(lambda: worker.done == ["doomed"])


def test_killing_a_worker(lab: Lab) -> None:
    *workers, send, kill = step("Killing a worker", 4)
    one, two = (lab.worker(command, 0.05) for command in workers)
    lab.send(send)
    wait(lambda: one.received or two.received)
    busy, other = (one, two) if one.received else (two, one)
    [told] = re.findall(r"Process (\d+) waits", busy.text)
    assert kill.split()[:2] == ["kill", "-9"]
    os.kill(int(told), signal.SIGKILL)
    other.until(lambda: other.done)
    assert "again (attempt 1)" in other.text
    assert not busy.done
    assert lab.waiting() == 0


def test_killing_a_worker_that_does_not_acknowledge_loses_its_message(lab: Lab) -> None:
    start = step("Killing a worker", 4)[0].replace(" --acknowledge", "")
    worker = lab.worker(start, 1)
    lab.send("python sender.py gone stays")
    worker.until(lambda: worker.received)
    worker.end(signal.SIGKILL)
    other = lab.worker(start)
    other.until(lambda: other.done)
    assert other.done == ["stays"]


def test_sharing_it_fairly(lab: Lab) -> None:
    hoarding, send, late = step("Sharing it fairly", 3)
    one = lab.worker(hoarding, 0.4)
    lab.send(send)
    one.until(lambda: one.received)
    two = lab.worker(late)
    before = len(one.done)
    one.until(lambda: len(one.done) > before)
    assert not two.received  # it is idle: the first one holds them all
    assert one.end() == 0
    wait(lambda: sorted(one.done + two.done) == sorted(WORDS))
    assert two.done


def test_restarting_the_broker(lab: Lab, brokers: Brokers) -> None:
    send, _, start, demand = step("Restarting the broker", 4)
    server = next(server for server in brokers.servers if server.url == lab.url)
    if not server.controllable:
        pytest.skip("a broker that was given by its URL is not ours to restart")
    lab.send(send)
    time.sleep(
        3
    )  # RabbitMQ 3.10 may never find a replicated queue again that was just made when it is killed
    server.restart()
    worker = lab.worker(start)
    worker.until(lambda: worker.done == ["still here?"])
    server.restart()
    lab.send(demand)
    worker.until(lambda: worker.done[-1] == "must not be lost")
    assert worker.end() == 0
    refused = lab.run(demand.replace("process", "replicated"))
    assert (refused.code, refused.err.count("\n")) == (1, 1)
    assert "'replicated' was asked for" in refused.err


def test_deleting_the_queue(lab: Lab) -> None:
    [delete] = step("Deleting the queue", 1)
    lab.send("python sender.py one")
    said = lab.run(delete)
    assert (said.code, said.out) == (1, "")
    lab.run(f"mqcore queues delete {lab.queue} --yes")
    lab.send("python sender.py two")
    worker = lab.worker("python qprocessor.py")
    worker.until(lambda: worker.done == ["two"])
    assert worker.end() == 0
    assert lab.run(delete).code == 0
    assert lab.queue not in lab.run("mqcore queues --interval 0").out.split()


def test_a_broker_in_parts(lab: Lab) -> None:
    if not lab.url.startswith("amqp"):
        pytest.skip("the options --host, --vhost, … are for RabbitMQ")
    parts = urlsplit(lab.url)
    words = [
        f"--host {parts.hostname} --port {parts.port} --vhost {unquote(parts.path)[1:] or '/'}"
    ]
    words.append(f"--username {parts.username} --password {parts.password}")
    lab.url = ""  # no variable either
    said = lab.run(f"python sender.py {' '.join(words)} hello-there")
    lab.url = parts.geturl()
    assert (said.code, said.out) == (0, " [x] Sent 'hello-there'\n"), said
