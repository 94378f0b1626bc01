"""The command from a shell: help, a wrong use of each, plugins, and workers until a signal."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from support.commands import CANARY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.timeout(300)  # the first test runs some thirty commands

COMMAND = [sys.executable, "-W", "error", "-m", "mqcore"]
USES = {
    (): "worker",
    ("worker",): "--health-file",
    ("publish",): "--content-type",
    ("peek",): "--limit",
    ("queues",): "delete",
    ("dlq",): "redrive",
    ("routes",): "prune",
    ("backends",): "--json",
    ("doctor",): "--app",
}
"""Every command, and a word that its help must contain.

Those of groups are called in-process, in `test_cli_setup.py`.
"""
MISUSES = {
    ("walk",): "'walk'",
    ("worker", "shop:app", "--processes", "2"): "lives in one process",
    ("publish", "orders", "{}"): "lives in one process",
    ("peek", "orders"): "lives in one process",
    ("queues",): "lives in one process",
    ("queues", "delete", "orders", "--yes"): "lives in one process",
    ("dlq", "list", "orders"): "lives in one process",
    ("dlq", "show", "orders"): "ID",
    ("dlq", "redrive", "orders"): "--all",
    ("dlq", "purge", "orders", "--all"): "lives in one process",
    ("routes",): "lives in one process",
    ("routes", "prune", "shop"): "MODULE:APP",
    ("backends", "all"): "all",
    ("doctor", f"kafka://user:{CANARY}@localhost"): "kafka",
    ("doctor", f"memory://?password={CANARY}"): "password",
}
"""One wrong use of each command, and what its one line must name."""
ELSEWHERE = """
import typer
from mqcore.spi import hookimpl
from mqcore_memory import MemoryBackend

class Elsewhere(MemoryBackend):
    scheme = "elsewhere"
    local = False

@hookimpl
def mqcore_register_backends():
    return [Elsewhere]

@hookimpl
def mqcore_register_cli():
    app = typer.Typer(name="elsewhere", help="What only this broker has.")
    app.callback()(lambda: None)
    app.command("greet")(lambda: print("hello from a plugin"))
    nameless = typer.Typer()
    return [app, nameless]
"""
SHOP = """
import asyncio
from contextlib import asynccontextmanager
from mqcore import App, Queue, Reject

orders = Queue("orders", int)

@asynccontextmanager
async def lifespan(broker):
    for number in (1, 2):
        await broker.publish(orders, number)
    yield

app = App("shop", lifespan=lifespan)

@app.consumer(orders)
async def on_order(number: int) -> None:
    if number == 2:
        raise Reject("no two")

slow = App("slow", lifespan=lifespan)

@slow.consumer(orders, concurrency=1)
async def on_slow_order(number: int) -> None:
    print("begun", number, flush=True)
    await asyncio.sleep(0.3)
    print("ended", number, flush=True)

@asynccontextmanager
async def broken_lifespan(broker):
    raise OSError("no way to redis://user:%s@host")
    yield

broken = App("broken", lifespan=broken_lifespan)
broken.consumer(orders)(on_order)
""".replace("%s", CANARY)


class Ended(NamedTuple):
    """What a process ended with."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an app."""
    place = tmp_path_factory.mktemp("shop")
    (place / "shop.py").write_text(SHOP)
    return place


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder, for PYTHONPATH, with an installed distribution that brings a plugin."""
    place = tmp_path_factory.mktemp("plugin")
    (place / "elsewhere_plugin.py").write_text(ELSEWHERE)
    facts = place / "elsewhere_plugin-1.2.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: elsewhere-plugin\nVersion: 1.2\n")
    (facts / "entry_points.txt").write_text(
        "[mqcore]\nelsewhere = elsewhere_plugin\nlost = no_such_module\n"
    )
    return str(place)


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """An environment in which nothing is set that a command would heed."""
    ours = ("MQCORE_", "FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "COLUMNS", "PYTHONPATH")
    return {name: value for name, value in os.environ.items() if not name.startswith(ours)}


@pytest.fixture(scope="module")
def ended(place: Path, environment: dict[str, str]) -> Callable[..., Ended]:
    """Run a command to its end.

    All those whose words are known before are run at once, on two threads.
    """

    def run(*words: str, **changes: str) -> Ended:
        done = subprocess.run(
            [*COMMAND, *words],
            cwd=place,
            env={**environment, **changes},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return Ended(done.returncode, done.stdout, done.stderr)

    known = [(*words, "--help") for words in USES] + list(MISUSES)
    with ThreadPoolExecutor(2) as threads:
        results = dict(zip(known, threads.map(lambda words: run(*words), known), strict=True))

    def look_up(*words: str, **changes: str) -> Ended:
        return run(*words, **changes) if changes or words not in results else results[words]

    return look_up


@pytest.mark.parametrize("words", USES, ids=lambda words: " ".join(words) or "mqcore")
def test_help(ended: Callable[..., Ended], words: tuple[str, ...]) -> None:
    code, out, err = ended(*words, "--help")
    assert (code, err) == (0, "")
    assert out.split()[:2] == ["Usage:", "mqcore"]
    assert USES[words] in out
    assert "\x1b" not in out


@pytest.mark.parametrize("words", MISUSES, ids=lambda words: " ".join(words).replace(CANARY, "***"))
def test_a_wrong_use_is_one_line(ended: Callable[..., Ended], words: tuple[str, ...]) -> None:
    code, out, err = ended(*words)
    assert (code, out) == (2, "")
    assert err.startswith("mqcore: ")
    assert err.count("\n") == 1
    assert MISUSES[words] in err
    assert CANARY not in err


def test_plugins_bring_backends_and_commands(ended: Callable[..., Ended], plugin: str) -> None:
    assert ended("elsewhere", "greet", PYTHONPATH=plugin) == (
        0,
        "hello from a plugin\n",
        (
            "mqcore: a plugin's command is left out: it is not a Typer application with an unused "
            "name\n"
        ),
    )
    code, out, _ = ended("backends", "--json", PYTHONPATH=plugin)
    lines = {line["scheme"]: line for line in json.loads(out)}
    assert code == 0
    assert (lines["elsewhere"]["distribution"], lines["elsewhere"]["version"]) == (
        "elsewhere-plugin",
        "1.2",
    )
    assert (lines["lost"]["usable"], lines["elsewhere"]["usable"]) == (False, True)


class Worker:
    """A worker that runs, its output read line by line."""

    def __init__(self, words: tuple[str, ...], place: Path, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "worker", *words],
            cwd=place,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def event(self, name: str) -> dict[str, Any]:
        """Read lines of JSON up to an event of this name."""
        while line := self.line():
            event: dict[str, Any] = json.loads(line)
            if event.get("event") == name:
                return event
        raise AssertionError(f"it ended without {name}: {self.process.communicate()[1]}")

    def end(self, number: signal.Signals | None = signal.SIGTERM) -> Ended:
        """Send a signal, and return what came after it."""
        if number is not None:
            self.process.send_signal(number)
        out, err = self.process.communicate(timeout=60)
        assert "Traceback" not in out + err
        assert CANARY not in out + err
        return Ended(self.process.returncode, out, err)


@pytest.fixture
def worker(place: Path, environment: dict[str, str]) -> Iterator[Callable[..., Worker]]:
    started: list[Worker] = []

    def start(*words: str, **changes: str) -> Worker:
        started.append(Worker(words, place, {**environment, **changes}))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


def until(wanted: Callable[[], Any]) -> Any:
    """Poll every few milliseconds for at most a minute, while other processes work."""
    deadline = time.monotonic() + 60
    while not (found := wanted()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found


def health(path: Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_consumes_says_so_and_drains_at_a_signal(
    worker: Callable[..., Worker], tmp_path: Path, number: signal.Signals
) -> None:
    path = tmp_path / "health.json"
    one = worker("shop:app", "--url", "memory://", "--json", "--health-file", str(path))
    dead = one.event("message.dead")
    assert (dead["queue"], dead["fields"]["reason"]) == ("orders", "rejected")
    found = until(lambda: health(path))
    assert (found["ok"], found["connected"], found["consuming"]) == (True, True, {"orders": True})
    code, out, err = one.end(number)
    assert (code, err) == (0, "")
    assert [json.loads(line)["event"] for line in out.splitlines()] == ["consumer.stopped"]


def test_a_worker_lets_a_running_handler_end_and_starts_no_other(
    worker: Callable[..., Worker],
) -> None:
    one = worker("shop:slow", "--url", "memory://", "--queues", "orders")
    assert one.line() == "begun 1\n"
    code, out, err = one.end()
    assert (code, out) == (0, "ended 1\n")
    assert [line.split()[1:4] for line in err.splitlines()] == [
        ["INFO", "mqcore", "connection.opened"],
        ["INFO", "mqcore", "consumer.started"],
        ["INFO", "mqcore", "consumer.draining"],
        ["INFO", "mqcore", "consumer.stopped"],
    ]


def test_a_worker_without_grace_leaves_at_once(worker: Callable[..., Worker]) -> None:
    one = worker("shop:slow", "--url", "memory://", "--grace", "0")
    assert one.line() == "begun 1\n"
    assert one.end()[:2] == (0, "")


def test_a_worker_that_has_done_its_share_asks_for_a_fresh_process(
    worker: Callable[..., Worker],
) -> None:
    assert worker("shop:app", "--max-messages", "2", "--json").end(None).code == 75


def test_a_worker_whose_app_fails_at_start_says_where(
    worker: Callable[..., Worker], place: Path
) -> None:
    code, out, err = worker("shop:broken", "--url", "memory://").end(None)
    assert (code, out) == (1, "")
    line = (
        SHOP.splitlines().index(f'    raise OSError("no way to redis://user:{CANARY}@host")')
    ) + 1
    assert err.splitlines()[-1].startswith(
        f"mqcore: OSError: no way to redis://user:***@host ({place / 'shop.py'}, line {line})"
    )


@pytest.fixture
def several(worker: Callable[..., Worker], plugin: str, tmp_path: Path) -> Worker:
    """Two supervised workers that have said that they are well."""
    path = tmp_path / "health.json"
    one = worker(
        "shop:app",
        *("--processes", "2", "--grace", "5", "--json", "--health-file", str(path)),
        *("--url", f"elsewhere://user:{CANARY}@host"),
        PYTHONPATH=plugin,
    )
    until(lambda: (found := health(path)) and found["ok"])
    return one


def test_several_workers_are_supervised_and_drained(several: Worker, tmp_path: Path) -> None:
    found = health(tmp_path / "health.json")
    assert (found["processes"], found["consuming"]) == (2, {"orders": True})
    pids = [each["pid"] for each in found["workers"]]
    assert len({*pids, several.process.pid}) == 3
    for pid in pids:
        assert CANARY.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    code, out, err = several.end()
    assert (code, err) == (0, "")
    assert [json.loads(line).get("event") for line in out.splitlines()].count(
        "consumer.stopped"
    ) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["health.json"]


def test_workers_whose_supervisor_was_killed_end_by_themselves(several: Worker) -> None:
    _, out, _ = several.end(
        signal.SIGKILL
    )  # the pipe has ended: so have all that could write to it
    assert [json.loads(line).get("event") for line in out.splitlines()].count(
        "consumer.stopped"
    ) == 2
