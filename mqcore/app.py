"""`App`: the description of an application: its consumers, routers and middleware.

It holds no connection.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Generic, TypeVar, Unpack, overload

from mqcore.broker import Broker, companions_of
from mqcore.errors import ConfigurationError
from mqcore.middleware.hooks import check_middleware
from mqcore.queue import queue_name
from mqcore.router import Router
from mqcore.rules.checks import check_kinds, check_text, described
from mqcore.running.handlers import BatchOptions, ConsumerOptions, HandlerOptions, HandlerSpec
from mqcore.running.lifespans import check_lifespan
from mqcore.session import ConnectOptions, check_connect_options
from mqcore.spi import Inbox

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence
    from contextlib import AbstractAsyncContextManager

    from mqcore.consuming.consumer import Received
    from mqcore.consuming.context import BlockingContext, Context
    from mqcore.middleware import Middleware
    from mqcore.middleware.companions import Companion
    from mqcore.queue import Queue

__all__ = ["App", "AppPart", "BatchRegistration", "Registration"]

T = TypeVar("T")
R = TypeVar("R")


class Registration(Generic[T]):
    """The decorator that `App.consumer` returns.

    It takes a handler of the queue's payload type, and returns it unchanged.
    """

    def __init__(self, app: App, queue: Queue[T] | str, options: HandlerOptions) -> None:
        """Made by `App.consumer`."""
        self._app, self._queue, self._options = app, queue, options

    @overload
    def __call__(self, handler: Callable[[T], R]) -> Callable[[T], R]: ...
    @overload
    def __call__(
        self, handler: Callable[[T, Context], Coroutine[Any, Any, R]]
    ) -> Callable[[T, Context], Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(
        self, handler: Callable[[T, BlockingContext], R]
    ) -> Callable[[T, BlockingContext], R]: ...
    def __call__(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Register the handler. Raises `ConfigurationError` when it could not work."""
        return self._app.register(self._queue, handler, self._options)


class BatchRegistration(Generic[T]):
    """The decorator that `App.consumer` returns with `batch=`.

    The handler takes a list of received items.
    """

    def __init__(self, app: App, queue: Queue[T] | str, options: HandlerOptions) -> None:
        """Made by `App.consumer` with `batch=`."""
        self._app, self._queue, self._options = app, queue, options

    def __call__(
        self, handler: Callable[[list[Received[T]]], R]
    ) -> Callable[[list[Received[T]]], R]:
        """Register the handler. Raises `ConfigurationError` when it could not work."""
        return self._app.register(self._queue, handler, self._options)


class AppPart(ABC):
    """What brings consumers of its own into an app: `mqcore.tasks.Tasks`."""

    name: str

    @property
    @abstractmethod
    def handlers(self) -> Sequence[HandlerSpec]:
        """Its consumers. They are asked for when the app connects or a worker is made."""

    @abstractmethod
    def attach(self) -> Companion:
        """Return what accompanies one broker of the app."""


class App:
    """The consumers, routers and middleware of an application.

    `name` is for logs. `routers` are declared when the broker connects. `middleware` runs around
    every handler, the first one outermost. `lifespan` is an async context manager function: a
    worker enters it with its broker before it consumes, and what it yields is `ctx.state`. `inbox`
    is where consumers with `once=` record what they have handled: an `Inbox`, for instance
    `SqlInbox`, or the URL of a Redis; by default the broker itself, where it can. `tasks` are
    `mqcore.tasks.Tasks`, whose queues a worker consumes beside the app's own.
    """

    def __init__(
        self,
        name: str,
        *,
        routers: Sequence[Router[Any]] = (),
        middleware: Sequence[Middleware] = (),
        lifespan: Callable[[Broker], AbstractAsyncContextManager[Any]] | None = None,
        inbox: Inbox | str | None = None,
        tasks: Sequence[AppPart] = (),
    ) -> None:
        """Describe the application. There is no I/O.

        Raises `ConfigurationError` for an argument that could not work.
        """
        self.name = check_text("name", name, "App(...)")
        where = f"app {name!r}"
        check_kinds("routers", routers, Router, where)
        check_middleware(middleware, where)
        check_lifespan(lifespan, where)
        if inbox is not None and not isinstance(inbox, (Inbox, str)):
            raise ConfigurationError(
                f"{where}: inbox= takes an Inbox, for instance SqlInbox(sessions), or a URL, not "
                f"{described(inbox)}"
            )
        check_kinds("tasks", tasks, AppPart, where)
        self.routers = list(routers)
        self.middleware = list(middleware)
        self.lifespan = lifespan
        self.inbox = inbox
        self.tasks = list(tasks)
        self.handlers: list[HandlerSpec] = []
        """The app's own consumers, without those of its tasks."""

    def __repr__(self) -> str:
        """Name and what it consumes, without the queues of its tasks."""
        return (
            f"App({self.name!r}, consumes "
            f"{', '.join(spec.queue.name for spec in self.handlers) or 'nothing'})"
        )

    def consumers(self) -> list[HandlerSpec]:
        """Return all consumers, those of its tasks included, whose modules are imported for it.

        Raises `ConfigurationError` for a queue with two handlers.
        """
        found: dict[str, HandlerSpec] = {}
        for spec in (*self.handlers, *(each for part in self.tasks for each in part.handlers)):
            if found.setdefault(spec.queue.name, spec) is not spec:
                raise ConfigurationError(
                    f"app {self.name!r} has two handlers for queue {spec.queue.name!r}, "
                    f"{found[spec.queue.name].name} and {spec.name}; a queue has one handler. "
                    "Give tasks a queue of their own"
                )
        return list(found.values())

    @overload
    def consumer(self, queue: Queue[T], **options: Unpack[ConsumerOptions]) -> Registration[T]: ...
    @overload
    def consumer(self, queue: str, **options: Unpack[ConsumerOptions]) -> Registration[Any]: ...
    @overload
    def consumer(
        self, queue: Queue[T], *, batch: int, **options: Unpack[BatchOptions]
    ) -> BatchRegistration[T]: ...
    @overload
    def consumer(
        self, queue: str, *, batch: int, **options: Unpack[BatchOptions]
    ) -> BatchRegistration[Any]: ...
    def consumer(
        self, queue: Any, **options: Unpack[HandlerOptions]
    ) -> Registration[Any] | BatchRegistration[Any]:
        """Return the decorator for the handler of a queue.

        For the options see `ConsumerOptions`, and `BatchOptions` for a handler of batches. The name
        of a queue declares it with default settings, and the handler's first annotation is its
        payload type. With `batch` the handler gets a list of at most that many received items, and
        may settle each; the items that it does not settle are settled together, by how it ends.
        Raises `ConfigurationError` for a wrong option.
        """
        if callable(queue):
            name = getattr(queue, "__name__", type(queue).__name__)
            raise ConfigurationError(
                f"app {self.name!r}: @app.consumer needs the queue that {name} handles: "
                "@app.consumer(queue)"
            )
        queue_name(queue, f"app {self.name!r}: @app.consumer")

        kind = BatchRegistration if "batch" in options else Registration
        return kind(self, queue, options)

    def register(
        self, queue: Queue[Any] | str, handler: Callable[..., Any], options: HandlerOptions
    ) -> Callable[..., Any]:
        """Register a handler without the decorator, and return it unchanged.

        Raises `ConfigurationError` when the handler or an option cannot work, and when the queue
        has a handler already.
        """
        where = f"app {self.name!r}"
        queue_name(queue, f"{where}: register")
        if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
            raise ConfigurationError(
                f"{where}: register takes the handler's options as a dict, and {{}} for none, not "
                f"{described(options)}"
            )

        spec = HandlerSpec.of(queue, handler, options)
        if any(other.queue.name == spec.queue.name for other in self.handlers):
            raise ConfigurationError(
                f"{where} already has a handler for queue {spec.queue.name!r}; a queue "
                "has one handler"
            )
        for each in (spec, *spec.others):
            if each.mode == "process":
                each.call.__mqcore__ = each  # type: ignore[attr-defined]  # its own process reads the payload type there
        self.handlers.append(spec)
        return handler

    def connect(self, url: str | None = None, **options: Unpack[ConnectOptions]) -> Broker:
        """Return a broker for `async with` that declares the app's queues and routers.

        It also runs the app's middleware. Queues, routers and middleware in the options are added
        to the app's. For the URL and the errors see `Broker.connect`, for the options
        `ConnectOptions`.
        """
        check_connect_options(options)
        companions = [part.attach() for part in self.tasks]
        around = (companion.middleware for companion in companions)
        merged: ConnectOptions = {
            **options,
            "queues": [*(spec.queue for spec in self.consumers()), *options.get("queues", ())],
            "routers": [*self.routers, *options.get("routers", ())],
            "middleware": [*around, *self.middleware, *options.get("middleware", ())],
        }
        broker = Broker(url, **merged)
        for companion in companions:
            companions_of(broker).add(companion, broker)
        return broker
