"""What a worker writes: its log survives the application's configuration, as JSON lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

if TYPE_CHECKING:
    from pathlib import Path

APP = """
import ctypes, logging, logging.config, os, subprocess, sys
from contextlib import asynccontextmanager
from mqcore import App, Queue, Reject

def configure(**more):
    logging.config.dictConfig({{"version": 1, **more}})

TO_STDOUT = {{
    "handlers": {{"console": {{"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}}}},
    "root": {{"level": "WARNING", "handlers": ["console"]}},
}}

{at_import}

coroutines, threads = Queue("coroutines", str), Queue("threads", str)
processes = Queue("processes", str)

@asynccontextmanager
async def lifespan(broker):
    {in_lifespan}
    for queue in (coroutines, threads, processes):
        await broker.publish(queue, queue.name)
    yield

app = App("loud", lifespan=lifespan)

def speak(name):
    print("printed by", name)
    os.write(1, f"written by {{name}}\\n".encode())
    subprocess.run(["echo", "echoed by", name], check=True)
    logging.getLogger("loud").error("logged by %s", name)
    raise Reject("said all")

@app.consumer(coroutines)
async def coroutine(name: str) -> None:
    speak(name)

@app.consumer(threads)
def thread(name: str) -> None:
    speak(name)

@app.consumer(processes, process=True)
def process(name: str) -> None:
    speak(name)
"""
QUEUES = ("coroutines", "threads", "processes")
CONFIGURATIONS = {
    "plain": ("print('printed at import')", "pass"),
    "at import": ("print('printed at import')\nconfigure()", "pass"),
    "at import, with handlers": ("print('printed at import')\nconfigure(**TO_STDOUT)", "pass"),
    "in the lifespan": ("print('printed at import')", "configure()"),
    "in the lifespan, with handlers": ("print('printed at import')", "configure(**TO_STDOUT)"),
}


class Said(NamedTuple):
    out: list[str]
    err: str


def run(folder: Path, configuration: str, *options: str) -> Said:
    """Run the worker until it has handled all three messages."""
    at_import, in_lifespan = CONFIGURATIONS[configuration]
    (folder / "loud.py").write_text(APP.format(at_import=at_import, in_lifespan=in_lifespan))
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MQCORE_")
    }
    words = ["worker", "loud:app", "--url", "memory://", "--max-messages", "3", *options]
    done = subprocess.run(
        [sys.executable, "-m", "mqcore", *words],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 75, done.stderr
    return Said(done.stdout.splitlines(), done.stderr)


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_with_json_standard_output_has_nothing_else(tmp_path: Path, configuration: str) -> None:
    out, err = run(tmp_path, configuration, "--json")
    lines: list[dict[str, Any]] = [json.loads(line) for line in out]
    dead = [line["queue"] for line in lines if line.get("event") == "message.dead"]
    assert sorted(dead) == sorted(QUEUES)
    assert [line["event"] for line in lines if line.get("event") == "consumer.stopped"] == [
        "consumer.stopped"
    ] * 3
    for name in QUEUES:
        for how in ("printed", "written", "echoed"):
            assert f"{how} by {name}\n" in err
    assert err.count("printed at import\n") >= 1


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_the_log_survives_the_configuration_of_the_app(tmp_path: Path, configuration: str) -> None:
    out, err = run(tmp_path, configuration)
    log = "\n".join([*out, err])  # where to is the application's to say
    for name in QUEUES:
        assert f"message.dead queue={name}" in log


def test_the_apps_own_log_is_json_too(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in run(tmp_path, "at import, with handlers", "--json").out]
    own = [line["message"] for line in lines if line["logger"] == "loud"]
    assert sorted(own) == ["logged by coroutines", "logged by threads"]


READS = """
import subprocess
from contextlib import asynccontextmanager
from mqcore import App, Queue

jobs = Queue("jobs", str)

@asynccontextmanager
async def lifespan(broker):
    await broker.publish(jobs, "a")
    yield

app = App("reads", lifespan=lifespan)

@app.consumer(jobs)
def handler(name: str) -> None:
    print("read", subprocess.run(["cat"], capture_output=True, timeout=20).stdout, flush=True)
"""


def test_a_program_of_a_supervised_workers_handler_does_not_read_the_supervisors_pipe(
    tmp_path: Path,
) -> None:
    (tmp_path / "reads.py").write_text(READS)
    words = ["worker", "reads:app", "--url", "memory://", "--supervised", "--max-messages", "1"]
    with subprocess.Popen(
        [sys.executable, "-m", "mqcore", *words],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"read b''\n"
            assert process.wait(20) == 75
        finally:
            process.kill()


LIBRARY = """
import asyncio, logging, logging.config
from mqcore import App, Broker, Queue, Reject, Settings, Worker

jobs = Queue("jobs", str)
app = App("test")

@app.consumer(jobs)
async def handler(text):
    raise Reject("no")

async def main():
    async with Broker.connect("memory://", settings=Settings()) as broker:
        logging.config.dictConfig({"version": 1, "root": {"level": "WARNING", "handlers": []}})
        logging.basicConfig(format="%(name)s %(message)s")
        async with Worker(app, broker):
            await broker.publish(jobs, "a")
            while not (await broker.counts("jobs.dlq"))[0].ready:
                await asyncio.sleep(0.01)

asyncio.run(main())
"""


def test_the_log_survives_a_configuration_after_the_connection_too(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(LIBRARY)
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "mqcore message.dead queue=jobs" in done.stderr
