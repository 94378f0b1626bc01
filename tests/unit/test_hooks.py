"""A middleware whose hooks could not work is refused when it is given, with the reason."""

import functools
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any, TypeVar, cast

import pytest

from mqcore import App, Broker, ConfigurationError, Context, Message, Queue, Settings, Worker
from mqcore.events import Event
from mqcore.middleware import Logging, Metrics, Middleware, Tracing
from mqcore.testing import VirtualClock, memory_url

F = TypeVar("F", bound=Callable[..., Any])
SETTINGS = Settings()
jobs = Queue("jobs", str)


class AsyncOutgoing(Middleware):
    async def outgoing(self, message: Message) -> Message:  # type: ignore[override]  # what is tested
        return message


class AsyncIncoming(Middleware):
    async def incoming(self, message: Message) -> Message:  # type: ignore[override]  # what is tested
        return message


class AsyncEvent(Middleware):
    async def on_event(self, event: Event) -> None: ...  # type: ignore[override]  # what is tested


class PlainHandle(Middleware):
    def handle(self, ctx: Context, call_next: Any) -> object:  # type: ignore[override]  # what is tested
        return None


class Generator(Middleware):
    async def handle(self, ctx: Context, call_next: Any) -> Any:
        yield


class TooFew(Middleware):
    async def handle(self, ctx: Context) -> object:  # type: ignore[override]  # what is tested
        return None


class TooMany(Middleware):
    def outgoing(self, message: Message, queue: str) -> Message:  # type: ignore[override]  # what is tested
        return message


class NotAMethod(Middleware):
    outgoing = "gzip"  # type: ignore[assignment]  # what is tested


class Misspelt(Middleware):
    def on_events(self, event: Event) -> None: ...


class WithoutUnderscore(Middleware):
    def onevent(self, event: Event) -> None: ...


class Capital(Middleware):
    async def Handle(self, ctx: Context, call_next: Any) -> object:  # noqa: N802 - what is tested
        return await call_next(ctx)


class Handler(Middleware):
    async def handler(self, ctx: Context, call_next: Any) -> object:
        return await call_next(ctx)


class OnTheInstance(Middleware):
    def __init__(self) -> None:
        self.outgoing = lambda message: message  # type: ignore[method-assign]  # what is tested


WRONG: dict[type[Middleware], str] = {
    AsyncOutgoing: r"AsyncOutgoing: outgoing is async.*never be awaited.*plain `def outgoing\(self",
    AsyncIncoming: "AsyncIncoming: incoming is async",
    AsyncEvent: "AsyncEvent: on_event is async",
    PlainHandle: r"PlainHandle: handle is a plain function.*`async def handle\(self, ctx, call_n",
    Generator: "Generator: handle is a generator",
    TooFew: r"TooFew: handle cannot be called as handle\(self, ctx, call_next\)",
    TooMany: r"TooMany: outgoing cannot be called as outgoing\(self, message\).*queue",
    NotAMethod: "NotAMethod: outgoing is a value of type str, not a method",
    Misspelt: "Misspelt: its method on_events is never called; did you mean 'on_event'",
    WithoutUnderscore: "onevent is never called; did you mean 'on_event'",
    Capital: "Handle is never called; did you mean 'handle'",
    Handler: "handler is never called; did you mean 'handle'",
    OnTheInstance: "OnTheInstance: outgoing is set on the instance",
}


@pytest.mark.parametrize(
    ("kind", "why"), [pytest.param(kind, why, id=kind.__name__) for kind, why in WRONG.items()]
)
def test_hooks_that_could_not_work_are_refused(kind: type[Middleware], why: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"app 'shop': middleware .*{why}"):
        App("shop", middleware=[kind()])
    with pytest.raises(ConfigurationError, match=rf"connecting to the broker: middleware .*{why}"):
        Broker("memory://", settings=SETTINGS, middleware=[kind()])


def timed(function: F) -> F:
    @functools.wraps(function)
    def timing(*arguments: Any) -> Any:
        return function(*arguments)

    return cast("F", timing)


class Decorated(Middleware):
    @timed
    async def handle(self, ctx: Context, call_next: Any) -> object:
        return await call_next(ctx)


class WithHelpers(Middleware):
    """Names that are like a hook's and mean something else, beside the hook itself."""

    async def handle(self, ctx: Context, call_next: Any) -> object:
        return await self.handled(ctx, call_next)

    async def handled(self, ctx: Context, call_next: Any) -> object:
        return await call_next(ctx)

    def outgoing_headers(self) -> dict[str, str]:
        return {}


class Optional(Middleware):
    async def handle(self, ctx: Context, call_next: Any, *, verbose: bool = False) -> object:
        return await call_next(ctx)


class StaticHook(Middleware):
    @staticmethod
    def on_event(event: Event) -> None: ...


@pytest.mark.parametrize(
    "middleware",
    [
        *(Decorated(), WithHelpers(), Optional(), StaticHook(), Middleware(), Logging(), Tracing()),
        Metrics(lambda name, labels, value: None),
    ],
    ids=lambda middleware: type(middleware).__name__,
)
async def test_hooks_that_work_are_accepted(middleware: Middleware) -> None:
    handled: list[str] = []
    app = App("shop", middleware=[middleware])

    @app.consumer(jobs)
    async def handler(text: str) -> str:
        handled.append(text)
        return text

    async with app.connect(memory_url(), settings=SETTINGS) as broker, Worker(app, broker):
        assert await broker.request(jobs, "a", timeout=10) == "a"
    assert handled == ["a"]


class Returns(Middleware):
    def __init__(self, change: Callable[[Message], Any]) -> None:
        self.change = change

    def outgoing(self, message: Message) -> Message:
        changed: Message = self.change(message)
        return changed


class Restores(Returns):
    def outgoing(self, message: Message) -> Message:
        return message

    def incoming(self, message: Message) -> Message:
        changed: Message = self.change(message)
        return changed


async def _later(message: Message) -> Message:
    return message


def changed(message: Message, **fields: Any) -> Message:
    return replace(message, **fields)


CHANGES: dict[str, tuple[Callable[[Message], Any], str]] = {
    "None": (lambda _: None, r"must return a Message, not None, and it returned without a value"),
    "text": (lambda _: "abc", "must return a Message, not a value of type str"),
    "a coroutine": (_later, "must return a Message, not a value of type coroutine"),
    "text as body": (lambda each: changed(each, body="abc"), "a body that is not bytes but .* str"),
    "a list of headers": (lambda each: changed(each, headers=[("a", "b")]), "headers that are not"),
    "a number as header": (lambda each: changed(each, headers={"a": 5}), "headers that are not"),
}


@pytest.mark.parametrize(
    ("change", "why"), [pytest.param(*case, id=name) for name, case in CHANGES.items()]
)
async def test_a_hook_that_returns_no_message_is_named(
    change: Callable[[Message], Any], why: str
) -> None:
    async with Broker.connect(
        memory_url(), settings=SETTINGS, middleware=[Returns(change)]
    ) as broker:
        await broker.declare(jobs)
        with pytest.raises(ConfigurationError, match=f"Returns.outgoing .*{why}"):
            await broker.publish(jobs, "a")
        assert [each.total for each in await broker.counts(jobs)] == [0]

    app, clock = App("shop", middleware=[Restores(change)]), VirtualClock()
    app.register(jobs, _handler, {})
    async with app.connect(memory_url(), settings=SETTINGS, clock=clock) as broker:
        await broker.publish(jobs, "a")
        async with Worker(app, broker):
            await clock.settle()
        (letter,) = await broker.dead_letters(jobs).list()
        assert letter.reason == "undecodable"
        assert "Restores.incoming" in letter.error


# The lifespan, which is given to an App beside them


@contextmanager
def blocking(broker: Broker) -> Iterator[None]:
    yield


@asynccontextmanager
async def without_broker() -> AsyncIterator[None]:
    yield


@asynccontextmanager
async def right(broker: Broker) -> AsyncIterator[str]:
    yield "state"


async def generator(broker: Broker) -> AsyncIterator[None]:
    yield


async def coroutine(broker: Broker) -> None: ...


@pytest.mark.parametrize(
    ("lifespan", "why"),
    [
        (5, "takes an async context manager function, not a value of type int"),
        (generator, "the function generator is not a context manager.*asynccontextmanager"),
        (coroutine, "the function coroutine is not a context manager"),
        (without_broker, "called with the broker, and the function without_broker cannot be"),
    ],
    ids=["a number", "a generator", "a coroutine", "no parameter"],
)
def test_a_lifespan_that_could_not_work_is_refused(lifespan: Any, why: str) -> None:
    with pytest.raises(ConfigurationError, match=f"app 'shop': lifespan.*{why}"):
        App("shop", lifespan=lifespan)


def test_a_lifespan_that_was_called_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="without calling it"):
        App("shop", lifespan=right(None))  # type: ignore[arg-type]  # what is tested


async def test_a_blocking_context_manager_is_named_when_it_is_entered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.CRITICAL)
    app = App("shop", lifespan=blocking)  # type: ignore[arg-type]  # what is tested
    app.register(jobs, _handler, {})
    async with app.connect(memory_url(), settings=SETTINGS) as broker:
        with pytest.raises(ConfigurationError, match="which is not an async context manager"):
            await Worker(app, broker).start()


async def _handler(_: str) -> None: ...
