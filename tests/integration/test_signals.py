"""The signals of a worker and of the program around it: handlers, workers, child processes."""

import signal

import pytest
from support.programs import Start

# the program around a worker

AROUND = """
import asyncio, os, signal, threading, time
from mqcore import App, Broker, Queue, Settings, Worker

jobs, others = Queue("jobs", str), Queue("others", str)
app, second = App("test"), App("second")

def say(*words):
    # in one step: several threads write
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

@app.consumer(jobs)
async def handler(text):
    say("handled", text)

@second.consumer(others)
async def other(text):
    say("handled", text)

def connect():
    return Broker.connect("memory://", settings=Settings())
"""

OWN_HANDLER = """
def own(number, frame):
    say("own handler", signal.Signals(number).name)

async def main():
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, own)
    async with connect() as broker:
        await broker.publish(jobs, "a")
        await Worker(app, broker).run()
    numbers = (signal.SIGTERM, signal.SIGINT)
    say("restored", all(signal.getsignal(number) is own for number in numbers))

asyncio.run(main())
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_handler_that_was_set_before_is_called_and_set_again(
    program_of: Start, number: signal.Signals
) -> None:
    program = program_of(AROUND + OWN_HANDLER)
    assert program.line() == "handled a"
    assert program.end(number)[:2] == (0, [f"own handler {number.name}", "restored True"])


LOOP_HANDLER = """
async def main():
    seen = asyncio.Queue()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, seen.put_nowait, "own handler of the loop")
    async with connect() as broker:
        await broker.publish(jobs, "a")
        await Worker(app, broker).run()
    say(await seen.get())
    signal.raise_signal(signal.SIGTERM)
    say(await seen.get())

asyncio.run(main())
"""


def test_a_handler_of_the_event_loop_is_called_and_set_again(program_of: Start) -> None:
    program = program_of(AROUND + LOOP_HANDLER)
    assert program.line() == "handled a"
    assert program.end(signal.SIGTERM)[:2] == (0, ["own handler of the loop"] * 2)


DEFAULTS = """
async def main():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    async with connect() as broker:
        await broker.publish(jobs, "a")
        await Worker(app, broker).run()
    say("restored", (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before)
    signal.raise_signal(signal.SIGTERM)
    say("still here")

asyncio.run(main())
"""


def test_after_the_worker_a_signal_means_what_it_meant_before(program_of: Start) -> None:
    program = program_of(AROUND + DEFAULTS)
    assert program.line() == "handled a"
    assert program.end(signal.SIGINT)[:2] == (-signal.SIGTERM, ["restored True"])


SEVERAL = """
async def one(app, queue):
    async with connect() as broker:
        await broker.publish(queue, queue.name)
        await Worker(app, broker).run()
        say("drained", queue.name)

async def main():
    beside = threading.Thread(target=lambda: asyncio.run(one(third, thirds)))
    beside.start()
    await asyncio.gather(one(app, jobs), one(second, others))
    beside.join()
    signal.raise_signal(signal.SIGTERM)  # whichever ended last: it means what it meant before
    say("still here")

thirds, third = Queue("thirds", str), App("third")

@third.consumer(thirds)
async def handler(text):
    say("handled", text)

asyncio.run(main())
"""


def test_one_signal_ends_all_workers_of_the_process(program_of: Start) -> None:
    program = program_of(AROUND + SEVERAL)
    assert {program.line() for _ in range(3)} == {
        "handled jobs",
        "handled others",
        "handled thirds",
    }
    code, lines, errors = program.end(signal.SIGTERM)
    assert code == -signal.SIGTERM, errors
    assert sorted(lines) == ["drained jobs", "drained others", "drained thirds"]


SERVER = """
from contextlib import asynccontextmanager, contextmanager

class Server:
    # as uvicorn does it: its own handlers are set before its lifespan begins, and what it has
    # caught is raised again after it

    def __init__(self, lifespan):
        self.lifespan, self.caught = lifespan, []
        self.should_exit = False

    def handle_exit(self, number, frame):
        self.caught.append(number)
        self.should_exit = True

    @contextmanager
    def capture_signals(self):
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        yield
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in reversed(self.caught):
            signal.raise_signal(number)

    async def serve(self):
        with self.capture_signals():
            async with self.lifespan():
                while not self.should_exit:
                    await asyncio.sleep(0.01)
                say("the server ends")

@asynccontextmanager
async def lifespan():
    async with connect() as broker:
        await broker.publish(jobs, "a")
        running = asyncio.create_task(Worker(app, broker).run())
        yield
        await running
        say("drained")

asyncio.run(Server(lifespan).serve())
"""


def test_a_server_ends_whose_lifespan_runs_a_worker(program_of: Start) -> None:
    program = program_of(AROUND + SERVER)
    assert program.line() == "handled a"
    code, lines, errors = program.end(signal.SIGTERM)
    assert (code, lines) == (-signal.SIGTERM, ["the server ends", "drained"]), errors


LATER_HANDLER = """
async def main():
    async with connect() as broker:
        await broker.publish(jobs, "a")
        running = asyncio.create_task(Worker(app, broker).run())
        await asyncio.sleep(0)
        ours = signal.signal(signal.SIGTERM, lambda *_: (say("own handler"), ours(*_)))
        await running
    say("kept", signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)

asyncio.run(main())
"""


def test_a_handler_that_was_set_meanwhile_is_left_alone(program_of: Start) -> None:
    program = program_of(AROUND + LATER_HANDLER)
    assert program.line() == "handled a"
    assert program.end(signal.SIGTERM)[:2] == (0, ["own handler", "kept True"])


# processes that a handler starts

FORKS = """
import asyncio, multiprocessing, signal, subprocess, sys, time
from mqcore import App, Broker, Queue, RetryPolicy, Settings, Worker

works = Queue("works", str, retry=RetryPolicy(max_attempts=1))
app = App("test")

def nap(seconds):
    time.sleep(seconds)

def square(number):
    return number * number

def work(how):
    if how == "program":
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as program:
            program.terminate()
            return str(program.wait(20))
    context = multiprocessing.get_context(how)
    process = context.Process(target=nap, args=(60,))
    process.start()
    process.terminate()
    process.join(20)
    with context.Pool(2) as pool:
        squares = pool.map(square, [1, 2, 3])
    pool.join()
    return f"{process.exitcode} {squares} {len(multiprocessing.active_children())}"

async def asked(how):
    return work(how)

def blocking(how):
    return work(how)

def apart(how):
    return work(how)
"""

FORKS_MAIN = """
app.consumer(works%s)(%s)

async def main():
    async with Broker.connect("memory://", settings=Settings()) as broker:
        running = asyncio.create_task(Worker(app, broker, grace=10).run())
        for how in ("fork", "spawn", "program"):
            print(how, await broker.request(works, how, result=str, timeout=50), flush=True)
        print("runs", not running.done(), flush=True)
        await running

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("as_module", [False, True], ids=["script", "python -m"])
@pytest.mark.parametrize(
    ("handler", "options"),
    [("asked", ""), ("blocking", ""), ("apart", ", process=True")],
    ids=["async", "thread", "process"],
)
def test_processes_of_handlers_work_as_they_do_anywhere(
    program_of: Start, handler: str, options: str, *, as_module: bool
) -> None:
    program = program_of(FORKS + FORKS_MAIN % (options, handler), as_module=as_module)
    said = [program.line() for _ in range(4)]
    code, lines, errors = program.end(signal.SIGTERM)
    ended = f"{-signal.SIGTERM} [1, 4, 9] 0"
    assert said == [f"fork {ended}", f"spawn {ended}", f"program {-signal.SIGTERM}", "runs True"], (
        errors
    )
    assert (code, lines) == (0, []), errors


FORKS_HOSTS = """
import os

def ready_nap(ready):
    ready.set()
    nap(60)

async def forks(_):
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    child = context.Process(target=ready_nap, args=(ready,))
    child.start()
    ready.wait(20)
    os.kill(child.pid, signal.SIGINT)
    child.join(20)
    return str(child.exitcode)

app.consumer(works)(forks)

async def main():
    seen = []
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, seen.append, "own handler of the loop")
    async with Broker.connect("memory://", settings=Settings()) as broker:
        running = asyncio.create_task(Worker(app, broker, grace=10).run())
        print(await broker.request(works, "x", result=str, timeout=50), flush=True)
        child = multiprocessing.get_context("fork").Process(target=nap, args=(60,))
        child.start()
        child.terminate()
        child.join(20)
        await asyncio.sleep(0.05)
        print(child.exitcode, seen, flush=True)
        await running

if __name__ == "__main__":
    asyncio.run(main())
"""


def test_a_signal_to_a_forked_child_reaches_no_loop_of_the_parent(program_of: Start) -> None:
    program = program_of(FORKS + FORKS_HOSTS)
    assert program.line() == "1", "the child's Ctrl-C is a KeyboardInterrupt"
    assert program.line() == f"{-signal.SIGTERM} []"
    code, lines, _ = program.end(signal.SIGTERM)
    assert (code, lines) == (0, [])


RACE = """
async def main():
    # the signal comes between the last instruction of Python and the wait for sockets: only its
    # wakeup ends that wait
    async with connect() as broker:
        await broker.publish(jobs, "a")
        running = asyncio.create_task(Worker(app, broker).run())
        await asyncio.sleep(0.1)
        selector = asyncio.get_running_loop()._selector
        select = selector.select

        def late(timeout=None):
            selector.select = select
            blocked = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            # this thread does not take the signal, so its wait is not interrupted: another thread
            # notes it
            threading.Thread(target=kill_here).start()
            return select(30)

        def kill_here():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
            time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGTERM)

        began = time.monotonic()
        selector.select = late
        await asyncio.sleep(0)
        await running
        say("in time", time.monotonic() - began < 10)

asyncio.run(main())
"""


def test_a_signal_that_does_not_interrupt_the_wait_for_sockets_is_heard(program_of: Start) -> None:
    program = program_of(AROUND + RACE)
    assert program.line() == "handled a"
    assert program.end()[:2] == (0, ["in time True"])
