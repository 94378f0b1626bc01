"""Handlers that run in processes of their own: a child finds them here by name."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel

from mqcore import App, Context, HandlerTimeout, Queue, Reject, Retry, RetryPolicy, fixed

if "MQCORE_TEST_DIE" in os.environ:
    os._exit(9)

TWICE = RetryPolicy(max_attempts=2, backoff=fixed(0))


class Deed(BaseModel):
    """What a handler is to do, and where it writes a word about it."""

    what: str
    path: str = ""


deeds = Queue("deeds", Deed)
plain = Queue("plain", str)

app = App("processed")


def note(path: str, word: str) -> None:
    with Path(path).open("a") as file:
        file.write(f"{word}\n")


def fail(error: BaseException) -> None:
    raise error


def die(number: int) -> None:
    os.kill(os.getpid(), number)


def facts(ctx: Context) -> str:
    return (
        f"{ctx.queue} {ctx.id} {ctx.attempt} {ctx.priority} {ctx.headers['tenant']} "
        f"{ctx.redelivered}"
    )


DEEDS: dict[str, Callable[[Context], object]] = {
    "raise": lambda _: fail(ValueError("not this one")),
    "raise once": lambda ctx: fail(ValueError("not yet")) if ctx.attempt == 1 else "did raise once",
    "reject": lambda _: fail(Reject("never")),
    "retry": lambda ctx: fail(Retry(delay=0)) if ctx.attempt == 1 else "did retry",
    "exit": lambda _: os._exit(3),
    "exit once": lambda ctx: os._exit(3) if ctx.attempt == 1 else "did exit once",
    "segfault": lambda _: die(signal.SIGSEGV),
    "kill": lambda _: die(signal.SIGKILL),
    "sys.exit": lambda _: sys.exit(7),
    "interrupt": lambda _: fail(KeyboardInterrupt()),
    "print": lambda _: sys.stdout.write("a word for the operator\n"),
    "publish": lambda ctx: ctx.publish(plain, "x"),
    "object": lambda _: object(),
    "facts": facts,
}


@app.consumer(deeds, process=True, concurrency=1, retry=TWICE)
def do(deed: Deed, ctx: Context) -> object:
    if deed.path:
        note(deed.path, f"{deed.what} {ctx.attempt} {os.getpid()}")
    return DEEDS.get(deed.what, lambda _: f"did {deed.what}")(ctx)


RAISED: dict[str, tuple[BaseException, str, int]] = {
    "failure": (ValueError("x"), "retries_exhausted", 2),
    "given up": (PermissionError("x"), "rejected", 1),
    "reject": (Reject("no"), "rejected", 1),
    "retry": (Retry(delay=0), "retries_exhausted", 2),
    "endless delay": (Retry(delay=10**400), "retries_exhausted", 2),
    "delay in words": (Retry(delay="soon"), "retries_exhausted", 2),  # type: ignore[arg-type]  # what is tested
    "timeout": (HandlerTimeout("late"), "timeout", 2),
    "group of a reject": (ExceptionGroup("", [Reject("no"), ValueError("x")]), "rejected", 1),
    "group of a retry": (
        ExceptionGroup("", [ExceptionGroup("", [Retry(delay=0)])]),
        "retries_exhausted",
        2,
    ),
    "group of a timeout": (ExceptionGroup("", [HandlerTimeout("late")]), "timeout", 2),
    "group of both": (ExceptionGroup("", [Reject("no"), Retry(delay=0)]), "retries_exhausted", 2),
    "group given up": (ExceptionGroup("", [ValueError("x"), PermissionError("x")]), "rejected", 1),
    "group of failures": (
        ExceptionGroup("", [ValueError("x"), OSError("x")]),
        "retries_exhausted",
        2,
    ),
    "exit": (SystemExit(3), "retries_exhausted", 2),
}
"""What a handler raises, the reason of its dead letter, and how many attempts it had."""
GIVES_UP = RetryPolicy(max_attempts=2, backoff=fixed(0), give_up_on=(PermissionError,))
raised = Queue("raised", str, retry=GIVES_UP)


def raises(what: str) -> None:
    raise RAISED[what][0]


@app.consumer(raised, process=True)
def raises_apart(what: str) -> None:
    raises(what)


neighbours: list[str] = []


@app.consumer(plain)
async def neighbour(text: str) -> None:
    neighbours.append(text)


lost = App("lost")
elsewhere = Queue("elsewhere", str)


def gone(_: str) -> None: ...


gone.__module__ = "support.no_such_module"
lost.consumer(elsewhere, process=True)(gone)
