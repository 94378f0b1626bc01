"""Handlers in real, killable processes: every ending of a handler and of its process."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mqcore.errors import ConfigurationError
from mqcore.messages.message import Message
from mqcore.rules.retry import Ending
from mqcore.running.process_slot import ProcessSlot, SlotDied, SlotRequest

HANDLERS = '''
import asyncio, ctypes, os, pathlib, signal, subprocess, sys, time
from datetime import timedelta

from pydantic import BaseModel

from mqcore.messages.codec import Payload
from mqcore.errors import Reject, Retry, ValidationError


class Spec:
    def __init__(self, payload, takes_context):
        self.payload, self.takes_context = Payload(payload), takes_context


def handler(payload=bytes, takes_context=False):
    def mark(function):
        function.__mqcore__ = Spec(payload, takes_context)
        return function
    return mark


class Order(BaseModel):
    number: int


def announce(fifo):
    """Report to the test; the FIFO stays open until this process and its children have ended."""
    descriptor = os.open(fifo, os.O_WRONLY)
    os.write(descriptor, b"x")
    return descriptor


@handler()
def echo(body):
    return body

@handler(Order, True)
def facts(order, context):
    names = "queue id attempt priority content_type published_at".split()
    names += "correlation_id redelivered lease_lost".split()
    facts = {name: getattr(context, name) for name in names}
    return {"number": order.number, "headers": dict(context.headers), **facts}

@handler(Order)
async def double(order):
    await asyncio.sleep(0)
    return Order(number=2 * order.number)

loops = []

@handler()
async def same_loop(body):
    loops.append(asyncio.get_running_loop())
    return {"calls": len(loops), "loops": len(set(map(id, loops)))}

@handler()
def raises(body):
    raise eval(body, globals() | {"CancelledError": asyncio.CancelledError})

@handler()
async def raises_async(body):
    await asyncio.sleep(0)
    raise eval(body, globals() | {"CancelledError": asyncio.CancelledError})

@handler()
def unwritable(body):
    return object()

@handler()
def executes(body):
    return eval(body)

@handler()
def prints(body):
    print("by print")
    print("without an end", end="")
    os.write(1, b"by descriptor\\n")
    subprocess.run(["echo", "by a program"])
    return sys.stdin.read()

@handler()
def hangs(fifo):
    announce(fifo)
    while True:
        pass

@handler()
def hangs_in_a_program(fifo):
    program = (
        "import os, signal, sys; os.write(os.open(sys.argv[1], os.O_WRONLY), b'x'); signal.pause()"
    )
    subprocess.run([sys.executable, "-c", program, fifo])

@handler()
def dies_beside_a_fork(fifo):
    here, there = os.pipe()
    if os.fork() == 0:
        announce(fifo)
        os.write(there, b"x")
        signal.pause()
    os.read(here, 1)
    os._exit(3)

@handler(bytes, True)
def publishes(body, context):
    context.publish("elsewhere", b"")

echoes = lambda body: body
'''


Make = Callable[[str], ProcessSlot]


@pytest.fixture
async def slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    """Make slots for the handlers above; no process is left behind."""
    (tmp_path / "slot_handlers.py").write_text(HANDLERS)
    monkeypatch.syspath_prepend(tmp_path)
    made: list[ProcessSlot] = []

    def make(name: str) -> ProcessSlot:
        made.append(ProcessSlot(name if ":" in name else f"slot_handlers:{name}"))
        return made[-1]

    yield make
    await asyncio.gather(*(one.close() for one in made))


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def request(body: bytes | str = b"", *, content_type: str | None = None) -> SlotRequest:
    body = body.encode() if isinstance(body, str) else body
    message = Message(id="m-1", body=body, content_type=content_type)
    return SlotRequest(queue="orders", message=message, wants_result=True)


def gone(pid: int | None) -> bool:
    assert pid is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


async def announced(fifo: Path) -> asyncio.Task[bytes]:
    """Return when the FIFO was written to, with a task that ends when all its writers are gone."""
    stream = await asyncio.to_thread(fifo.open, "rb", 0)
    assert await asyncio.to_thread(stream.read, 1) == b"x"

    def rest() -> bytes:
        with stream:
            return stream.read()

    return asyncio.create_task(asyncio.to_thread(rest))


# what a handler gets and gives


async def test_a_handler_gets_its_payload_and_the_facts_of_its_message(slot: Make) -> None:
    message = Message(
        id="m-7",
        body=b'{"number": 42}',
        content_type="application/json",
        headers={"tenant": "blue"},
        priority=8,
        attempt=2,
        published_at=1000.5,
        correlation_id="c-1",
    )
    result = await slot("facts").run(
        SlotRequest(queue="orders", message=message, wants_result=True)
    )
    assert result.result.ending is Ending.SUCCEEDED
    assert result.body is not None
    assert json.loads(result.body) == {
        "number": 42,
        "queue": "orders",
        "id": "m-7",
        "attempt": 2,
        "priority": 8,
        "headers": {"tenant": "blue"},
        "content_type": "application/json",
        "published_at": 1000.5,
        "correlation_id": "c-1",
        "redelivered": True,
        "lease_lost": False,
    }


async def test_an_async_handler_works_too(slot: Make) -> None:
    result = await slot("double").run(request('{"number": 4}', content_type="application/json"))
    assert (result.result.ending, result.body) == (Ending.SUCCEEDED, b'{"number":8}')
    assert result.content_type == "application/json"


async def test_one_process_serves_many_messages_in_one_loop(slot: Make) -> None:
    handler = slot("same_loop")
    await handler.run(request())
    pid = handler.pid
    result = await handler.run(request())
    assert result.body == b'{"calls":2,"loops":1}'
    assert handler.pid == pid


async def test_what_nobody_wants_is_not_sent_back(slot: Make) -> None:
    result = await slot("unwritable").run(replace(request(), wants_result=False))
    assert (result.result.ending, result.body, result.content_type) == (
        Ending.SUCCEEDED,
        None,
        None,
    )


async def test_a_wanted_result_that_cannot_be_written_is_a_failure(slot: Make) -> None:
    result = await slot("unwritable").run(request())
    assert result.result.ending is Ending.FAILED
    assert result.result.failure is not None
    assert result.result.failure.type == "mqcore.errors.ValidationError"


@pytest.mark.parametrize(
    "body", [b"", b"\x00\xff", os.urandom(1024 * 1024)], ids=["empty", "bytes", "1MiB"]
)
async def test_bodies_pass_unchanged_in_both_directions(slot: Make, body: bytes) -> None:
    result = await slot("echo").run(request(body))
    assert (result.body, result.content_type) == (body, "application/octet-stream")


async def test_two_calls_at_once_go_one_after_the_other(slot: Make) -> None:
    handler = slot("echo")
    results = await asyncio.gather(*(handler.run(request(str(number))) for number in range(20)))
    assert [result.body for result in results] == [str(number).encode() for number in range(20)]


# how a handler ends


async def test_an_exception_comes_back_as_data(slot: Make) -> None:
    result = await slot("raises").run(request("FileNotFoundError('no such thing')"))
    failure = result.result.failure
    assert result.result.ending is Ending.FAILED
    assert failure is not None
    assert failure.types[:2] == ("builtins.FileNotFoundError", "builtins.OSError")
    assert failure.text == "no such thing"
    assert "in raises" in failure.traceback


@pytest.mark.parametrize(
    ("raised", "ending", "delay"),
    [
        ("Retry()", Ending.RETRY, None),
        ("Retry(2.5)", Ending.RETRY, 2.5),
        ("Retry(timedelta(minutes=1))", Ending.RETRY, 60.0),
        ("Retry('soon')", Ending.FAILED, None),
        ("Reject('negative total')", Ending.REJECTED, None),
        ("ValidationError('by hand')", Ending.FAILED, None),
    ],
)
async def test_a_handler_says_what_shall_become_of_its_message(
    slot: Make, raised: str, ending: Ending, delay: float | None
) -> None:
    result = (await slot("raises").run(request(raised))).result
    assert (result.ending, result.delay) == (ending, delay)
    assert result.failure is not None
    if ending is Ending.REJECTED:
        assert result.failure.text == "negative total"


@pytest.mark.parametrize("name", ["raises", "raises_async"])
async def test_no_exception_ends_the_process(
    slot: Make, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    handler = slot(name)
    await handler.start()
    pid = handler.pid
    for kind in (
        "SystemExit",
        "KeyboardInterrupt",
        "GeneratorExit",
        "CancelledError",
        "MemoryError",
    ):
        result = (await handler.run(request(f"{kind}('on purpose')"))).result
        assert result.ending is Ending.FAILED
        assert result.failure is not None
        assert result.failure.type.endswith(kind)
    await handler.run(request("(__import__('gc').collect(), ValueError('all is collected'))[1]"))
    assert handler.pid == pid
    assert capfd.readouterr().err == ""  # no complaint of a loop about what it did not expect


@pytest.mark.parametrize(
    ("body", "content_type", "ending"),
    [
        ("{", "application/json", Ending.UNDECODABLE),
        ("{}", "application/unheard-of", Ending.UNDECODABLE),
        ('{"number": "many"}', "application/json", Ending.INVALID),
    ],
)
async def test_a_body_that_does_not_fit_never_reaches_the_handler(
    slot: Make, body: str, content_type: str, ending: Ending
) -> None:
    result = (await slot("double").run(request(body, content_type=content_type))).result
    assert result.ending is ending
    assert result.failure is not None
    reads = "does not match" if ending is Ending.INVALID else "cannot be read as"
    assert f"the payload {reads} Order" in result.failure.text


async def test_publishing_from_there_is_refused_with_a_reason(slot: Make) -> None:
    result = (await slot("publishes").run(request())).result
    assert result.failure is not None
    assert result.failure.type == "mqcore.errors.ConfigurationError"
    assert "publish from process=True handlers is not possible" in result.failure.text


async def test_what_a_handler_prints_goes_to_standard_error(
    slot: Make, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    result = await slot("prints").run(request())
    assert (result.result.ending, result.body) == (
        Ending.SUCCEEDED,
        b"",
    )  # and standard input is empty
    printed = capfd.readouterr()
    assert printed.out == ""
    for text in ("by print", "without an end", "by descriptor", "by a program"):
        assert text in printed.err


# how its process ends


@pytest.mark.parametrize(
    ("code", "exit_code", "text"),
    [
        ("os._exit(3)", 3, "exit code 3"),
        ("os._exit(0)", 0, "exit code 0"),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, "killed by SIGKILL"),
        ("ctypes.string_at(0)", -signal.SIGSEGV, "killed by SIGSEGV"),
    ],
)
async def test_a_process_that_dies_is_reported_and_replaced(
    slot: Make, capfd: pytest.CaptureFixture[str], code: str, exit_code: int, text: str
) -> None:
    handler = slot("executes")
    with pytest.raises(
        SlotDied, match=f"'slot_handlers:executes' died while it handled a message: {text}"
    ) as caught:
        await handler.run(request(code))
    assert (caught.value.code, caught.value.ready) == (exit_code, True)
    assert handler.pid is None
    assert (await handler.run(request("b'alive'"))).body == b"alive"
    if exit_code == -signal.SIGSEGV:
        assert "Segmentation fault" in capfd.readouterr().err


async def test_a_cancelled_call_kills_the_process(slot: Make, fifo: Path) -> None:
    handler = slot("hangs")
    task = asyncio.create_task(handler.run(request(str(fifo))))
    end = await announced(fifo)
    pid = handler.pid
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert gone(pid)
    assert await end == b""


async def test_a_time_limit_kills_the_process_and_the_next_message_gets_a_new_one(
    slot: Make, fifo: Path
) -> None:
    handler = slot("hangs")

    async def limited(limit: asyncio.Timeout) -> None:
        async with limit:
            await handler.run(request(str(fifo)))

    for _ in range(2):
        limit = asyncio.timeout(None)
        task = asyncio.create_task(limited(limit))
        end = await announced(fifo)
        pid = handler.pid
        limit.reschedule(0)
        with pytest.raises(TimeoutError):
            await task
        assert gone(pid)
        assert await end == b""


async def test_a_second_cancellation_does_not_leave_the_process(slot: Make, fifo: Path) -> None:
    handler = slot("hangs")
    task = asyncio.create_task(handler.run(request(str(fifo))))
    end = await announced(fifo)
    pid = handler.pid
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert await end == b""
    await handler.close()
    assert gone(pid)


async def test_what_a_handler_started_is_killed_with_it(slot: Make, fifo: Path) -> None:
    task = asyncio.create_task(slot("hangs_in_a_program").run(request(str(fifo))))
    end = await announced(fifo)
    task.cancel()
    assert await end == b""


async def test_a_fork_that_lives_on_does_not_hide_the_death(slot: Make, fifo: Path) -> None:
    task = asyncio.create_task(slot("dies_beside_a_fork").run(request(str(fifo))))
    end = await announced(fifo)
    with pytest.raises(SlotDied, match="exit code 3"):
        await task
    assert await end == b""  # and the fork is gone too


async def test_a_process_that_dies_idle_is_nobodys_failure(slot: Make) -> None:
    handler = slot("echo")
    await handler.start()
    pid = handler.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert (await handler.run(request(b"again"))).body == b"again"
    assert handler.pid != pid


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signals_to_a_group_are_left_to_the_parent(slot: Make, number: int) -> None:
    handler = slot("executes")
    await handler.start()
    assert handler.pid is not None
    os.kill(handler.pid, number)
    default = "import signal; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)"
    result = await handler.run(
        request(f"subprocess.run([sys.executable, '-c', {default!r}], capture_output=True).stdout")
    )
    assert result.body == b"True\n"


# how a process starts


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (
            "import nowhere_to_be_found",
            "ModuleNotFoundError: No module named 'nowhere_to_be_found'",
        ),
        ("raise SystemExit('not today')", "SystemExit: not today"),
        ("x = 1", "AttributeError: module 'unusable' has no attribute 'handler'"),
        ("def handler(body): ...", "'unusable:handler' is not registered as a handler"),
    ],
)
async def test_a_handler_that_cannot_be_imported_is_a_configuration_error(
    slot: Make, tmp_path: Path, source: str, text: str
) -> None:
    (tmp_path / "unusable.py").write_text(source)
    handler = slot("unusable:handler")
    with pytest.raises(ConfigurationError) as caught:
        await handler.run(request())
    assert "'unusable:handler' cannot be imported in a process of its own" in str(caught.value)
    assert text in str(caught.value)
    assert any("Traceback" in note for note in caught.value.__notes__)
    assert handler.pid is None


async def test_a_process_that_dies_at_its_start_had_no_message(slot: Make, tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text("import os; os._exit(5)")
    with pytest.raises(SlotDied, match="died before it was ready for one: exit code 5") as caught:
        await slot("deadly:handler").run(request())
    assert (caught.value.code, caught.value.ready) == (5, False)


async def test_a_cancelled_start_leaves_nothing(slot: Make, tmp_path: Path, fifo: Path) -> None:
    (tmp_path / "slow.py").write_text(
        f"import os, signal\nos.write(os.open({str(fifo)!r}, os.O_WRONLY), b'x')\nsignal.pause()"
    )
    handler = slot("slow:handler")
    task = asyncio.create_task(handler.start())
    end = await announced(fifo)
    pid = handler.pid
    task.cancel()
    await asyncio.wait({task})
    assert gone(pid)
    assert await end == b""


@pytest.mark.parametrize(
    "target", ["module:outer.<locals>.handler", "module:<lambda>", "module", ":handler"]
)
def test_a_handler_that_no_process_could_find_is_refused_at_once(target: str) -> None:
    with pytest.raises(ConfigurationError, match="must be a function at the top level of a module"):
        ProcessSlot(target)


SCRIPT = """
from __future__ import annotations
import asyncio, sys
from pydantic import BaseModel
from mqcore.messages.codec import Payload
from mqcore.messages.message import Message
from mqcore.running.process_slot import ProcessSlot, SlotRequest

class Line(BaseModel):
    number: int

class Order(BaseModel):
    lines: list[Line]

class Spec:
    payload, takes_context = Payload(Order), False

def handler(order: Order):
    import __main__
    is_main = getattr(__main__, "Line", None) is Line
    return [Line.__module__, order.lines[0].number, sys.argv[1:], is_main]
handler.__mqcore__ = Spec()

async def main():
    slot = ProcessSlot(f"{handler.__module__}:{handler.__qualname__}")
    message = Message(id="1", body=b'{"lines": [{"number": 1}]}', content_type="application/json")
    result = await slot.run(SlotRequest(queue="q", message=message, wants_result=True))
    print(result.body.decode())
    await slot.close()

print("imported as", __name__, file=sys.stderr)
if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("command", "name"),
    [(["script.py"], "__mp_main__"), (["-m", "script"], "script")],
    ids=["path", "module"],
)
def test_a_handler_in_the_program_itself_runs_without_its_main_part(
    tmp_path: Path, command: list[str], name: str
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, *command, "--flag"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert json.loads(done.stdout) == [name, 1, ["--flag"], name == "__mp_main__"]
    assert done.stderr.splitlines() == ["imported as __main__", f"imported as {name}"]


def test_a_handler_of_a_program_without_a_file_is_refused_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-"], input=SCRIPT, capture_output=True, text=True, timeout=30, check=False
    )
    assert (
        "'__main__:handler' cannot run in a process of its own: the program is not a file"
        in done.stderr
    )


# how the parent ends


PARENT = """
import asyncio, sys
from mqcore.messages.message import Message
from mqcore.running.process_slot import ProcessSlot, SlotRequest

async def main():
    slot = ProcessSlot("slot_handlers:" + sys.argv[2])
    await slot.run(SlotRequest(queue="q", message=Message(id="1", body=sys.argv[1].encode())))

asyncio.run(main())
"""


@pytest.mark.parametrize("handler", ["hangs", "hangs_in_a_program"])
async def test_a_process_ends_with_its_parent_even_while_its_handler_runs(
    slot: Make, tmp_path: Path, fifo: Path, handler: str
) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(fifo), handler, cwd=tmp_path
    )
    end = await announced(fifo)
    parent.kill()
    assert await parent.wait() == -signal.SIGKILL
    async with asyncio.timeout(20):
        assert await end == b""


async def test_close_ends_a_running_call_and_what_comes_after(slot: Make, fifo: Path) -> None:
    handler = slot("hangs")
    task = asyncio.create_task(handler.run(request(str(fifo))))
    end = await announced(fifo)
    pid = handler.pid
    await handler.close()
    await handler.close()
    assert gone(pid)
    with pytest.raises(SlotDied, match="killed by SIGKILL"):
        await task
    assert await end == b""
    with pytest.raises(RuntimeError, match="is closed"):
        await handler.run(request())


async def test_close_without_a_process_does_nothing(slot: Make) -> None:
    handler: Any = slot("echo")
    await handler.close()
    assert handler.pid is None
