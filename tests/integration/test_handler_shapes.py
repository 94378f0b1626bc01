"""A handler is called correctly through any wrapper, or refused when it is registered."""

import functools
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any, Optional, Protocol, TypeVar

import pytest
from pydantic import BaseModel, Field, TypeAdapter

from mqcore import (
    App,
    BlockingContext,
    Broker,
    ConfigurationError,
    Context,
    Queue,
    Received,
    Worker,
)
from mqcore.consuming.context import DeliveryInfo
from mqcore.testing import VirtualClock

SECRET = "hunter2"
T = TypeVar("T")


class Order(BaseModel):
    order_id: int = 1


class Invoice(BaseModel):
    number: int = 1


class Database:
    """Stands for what an application hands to its handlers."""

    def __repr__(self) -> str:
        return SECRET


orders = Queue("orders", Order)
database = Database()
got: list[Any] = []


@pytest.fixture(autouse=True)
def forget() -> None:
    got.clear()


async def with_database(db: Database, order: Order) -> None:
    got.extend([db, order])


async def database_last(order: Order, db: Database) -> None:
    got.extend([db, order])


def blocking_with_database(db: Database, order: Order, ctx: BlockingContext) -> None:
    assert isinstance(ctx, BlockingContext)
    got.extend([db, order])


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        got.append("logged")
        return await function(*args, **kwargs)

    return wrapper


def measured(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        got.append("measured")
        return function(*args, **kwargs)

    return wrapper


def bare(function: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@logged
async def decorated(order: Order, ctx: Context) -> None:
    got.extend([type(ctx), order])


@measured
@measured
def decorated_twice(order: Order) -> None:
    got.append(order)


class Service:
    def __init__(self) -> None:
        self.db = database

    async def handle(self, order: Order) -> None:
        got.extend([self.db, order])

    def block(self, order: Order, ctx: BlockingContext) -> None:
        got.extend([self.db, type(ctx), order])

    @classmethod
    async def of_class(cls, order: Order) -> None:
        got.extend([cls, order])

    @staticmethod
    async def static(order: Order) -> None:
        got.append(order)

    async def __call__(self, order: Order, ctx: Context) -> None:
        got.extend([self.db, type(ctx), order])


class Blocking:
    def __call__(self, order: Order) -> None:
        got.append(order)


async def optional_context(order: Order, ctx: Context | None = None) -> None:
    got.extend([type(ctx), order])


async def old_optional_context(order: Order, ctx: Optional[Context] = None) -> None:  # noqa: UP045 - what users have
    got.extend([type(ctx), order])


async def other_default(order: Order, limit: int = 3) -> None:
    got.extend([limit, order])


async def of_facts(order: Order, facts: DeliveryInfo) -> None:
    got.extend([type(facts), order])


async def any_context(order: Order, ctx: Any) -> None:
    got.extend([type(ctx), order])


service = Service()
ORDER = Order(order_id=7)
CALLED: dict[str, tuple[Any, list[Any]]] = {
    "a partial": (functools.partial(with_database, database), [database, ORDER]),
    "a partial by keyword": (functools.partial(database_last, db=database), [database, ORDER]),
    "a blocking partial with a context": (
        functools.partial(blocking_with_database, database),
        [database, ORDER],
    ),
    "a partial of a partial": (
        functools.partial(functools.partial(with_database), database),
        [database, ORDER],
    ),
    "a partial of an object": (functools.partial(service), [database, Context, ORDER]),
    "a partial of a wrapper": (
        functools.partial(logged(with_database), database),
        ["logged", database, ORDER],
    ),
    "a partial of a method": (functools.partial(Service.handle, service), [database, ORDER]),
    "a wrapper": (decorated, ["logged", Context, ORDER]),
    "two wrappers": (decorated_twice, ["measured", "measured", ORDER]),
    "a bound method": (service.handle, [database, ORDER]),
    "a bound blocking method": (service.block, [database, BlockingContext, ORDER]),
    "a wrapped method": (logged(service.handle), ["logged", database, ORDER]),
    "a bound class method": (Service.of_class, [Service, ORDER]),
    "a static method": (Service.static, [ORDER]),
    "a static method in its class": (vars(Service)["static"], [ORDER]),
    "an object": (service, [database, Context, ORDER]),
    "a blocking object": (Blocking(), [ORDER]),
    "an optional context": (optional_context, [Context, ORDER]),
    "an optional context, written as before": (old_optional_context, [Context, ORDER]),
    "another default": (other_default, [3, ORDER]),
    "facts": (of_facts, [Context, ORDER]),
    "any context": (any_context, [Context, ORDER]),
}


@pytest.mark.parametrize("queue", [orders, "orders"], ids=["queue", "name"])
@pytest.mark.parametrize("shape", CALLED)
async def test_a_handler_gets_the_payload_as_its_type_whatever_it_is_wrapped_in(
    broker: Broker, clock: VirtualClock, shape: str, queue: Any
) -> None:
    handler, expected = CALLED[shape]
    app = App("shop")
    app.register(queue, handler, {})
    async with Worker(app, broker):
        await broker.publish(orders, ORDER)
        await clock.settle()
    assert got == expected


def test_a_name_never_shows_what_a_partial_or_an_object_holds() -> None:
    app = App("shop")
    for queue, handler in {
        "a": functools.partial(with_database, database),
        "b": service,
        "c": Blocking(),
    }.items():
        app.register(queue, handler, {})
    assert [spec.name for spec in app.handlers] == ["with_database", "Service", "Blocking"]
    with pytest.raises(ConfigurationError) as caught:
        app.register("d", functools.partial(database_last, Order(), db=database, more=database), {})
    assert SECRET not in str(caught.value)


def test_the_type_of_a_bare_name_keeps_what_is_annotated() -> None:
    async def handler(_text: Annotated[str, Field(max_length=3)]) -> None: ...

    app = App("shop")
    app.register("texts", handler, {})
    assert app.handlers[0].payload.adapter.core_schema["max_length"] == 3  # type: ignore[typeddict-item]  # of a str


class Contextual(Protocol):
    @property
    def attempt(self) -> int: ...


async def swapped(ctx: Context, order: Order) -> None: ...
async def only_context(ctx: Context) -> None: ...
async def swapped_optional(ctx: Context | None, order: Order) -> None: ...
async def database_second(order: Order, db: Database) -> None: ...
async def another_model(invoice: Invoice) -> None: ...
async def list_for_model(orders: list[Order]) -> None: ...
async def received(order: Received[Order]) -> None: ...
async def received_list(orders: list[Received[Order]]) -> None: ...
async def blocking_context(order: Order, ctx: BlockingContext) -> None: ...
def async_context(order: Order, ctx: Context) -> None: ...
async def one_for_batch(order: Order) -> None: ...
async def payloads_for_batch(items: list[Order]) -> None: ...
async def invoices_for_batch(items: list[Received[Invoice]]) -> None: ...
async def with_keyword(order: Order, *, db: Database) -> None: ...
async def free(order: T, ctx: Contextual) -> T:
    return order


@contextmanager
def managed(order: Order) -> Iterator[Order]:
    yield order


async def streaming(order: Order) -> AsyncIterator[Order]:
    yield order


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "swapped": (swapped, {}, r"'ctx' is annotated as a context and would get the payload"),
    "swapped, optional": (swapped_optional, {}, "The payload comes first"),
    "only a context": (only_context, {}, "would get the payload"),
    "a second argument that is no context": (
        database_second,
        {},
        r"'db' would get the context.*functools.partial",
    ),
    "a method in its class": (
        Service.handle,
        {},
        r"its 'self' would be the payload.*instance.method",
    ),
    "a wrapped method in its class": (
        logged(Service.handle),
        {},
        "its 'self' would be the payload",
    ),
    "a partial of a method": (functools.partial(Service.block), {}, "takes the payload"),
    "a class method in its class": (
        vars(Service)["of_class"],
        {},
        "Register it after the class is defined",
    ),
    "a class": (Service, {}, "the class Service is not a handler"),
    "a plain wrapper of an async function": (
        measured(with_database.__get__(database)),
        {},
        "wraps an async function",
    ),
    "a plain wrapper inside a partial": (
        functools.partial(measured(with_database), database),
        {},
        "wraps an async",
    ),
    "a plain wrapper inside a plain wrapper": (
        measured(measured(service.handle)),
        {},
        "wraps an async function",
    ),
    "a cached async function": (functools.lru_cache(service.handle), {}, "wraps an async function"),
    "a context manager": (managed, {}, "wraps a generator"),
    "a plain wrapper of an async generator": (measured(streaming), {}, "wraps an async generator"),
    "a wrapper without functools.wraps": (
        bare(service.handle),
        {},
        r"\(\*args, \*\*kwargs\). A wrapper needs functools",
    ),
    "a keyword that nobody gives": (
        with_keyword,
        {},
        r"this one takes \(order, db\).*functools.partial",
    ),
    "a partial by keyword of the first": (
        functools.partial(with_database, db=database),
        {},
        "takes the payload",
    ),
    "a context that blocks": (blocking_context, {}, "An async handler gets a Context"),
    "a context that does not block": (async_context, {}, "a blocking one a BlockingContext"),
    "a received message": (received, {}, "a handler with batch="),
    "received messages": (received_list, {}, "a handler with batch="),
    "one payload for a batch": (one_for_batch, {"batch": 3}, r"gets a list.*list\[Received"),
    "payloads for a batch": (payloads_for_batch, {"batch": 3}, r"as list\[Received\[Order\]\]"),
}
NOT_THIS_PAYLOAD: dict[str, tuple[Any, dict[str, Any]]] = {
    "another model": (another_model, {}),
    "a list": (list_for_model, {}),
    "items of another model": (invoices_for_batch, {"batch": 3}),
}


@pytest.mark.parametrize("queue", [orders, "orders"], ids=["queue", "name"])
@pytest.mark.parametrize("shape", REFUSED)
def test_what_could_not_be_called_rightly_is_refused_with_the_reason(
    shape: str, queue: Any
) -> None:
    handler, options, why = REFUSED[shape]
    app = App("shop")
    with pytest.raises(ConfigurationError, match=why) as caught:
        app.register(queue, handler, options)  # type: ignore[arg-type]  # real options
    assert "queue 'orders'" in str(caught.value)
    assert SECRET not in str(caught.value)
    assert app.handlers == []


def test_a_method_that_is_decorated_in_its_class_is_refused() -> None:
    app = App("shop")
    with pytest.raises(ConfigurationError, match="Register the method of an instance"):

        class Shop:
            @app.consumer("orders")
            async def handle(self, order: Order) -> None: ...


def test_a_decorator_without_its_queue_is_refused() -> None:
    with pytest.raises(
        ConfigurationError,
        match=r"needs the queue that block_order handles: @app.consumer\(queue\)",
    ):

        @App("shop").consumer  # type: ignore[call-overload]  # the mistake
        def block_order(order: Order) -> None: ...


@pytest.mark.parametrize("shape", NOT_THIS_PAYLOAD)
def test_an_annotation_that_excludes_the_queues_payload_is_refused(shape: str) -> None:
    handler, options = NOT_THIS_PAYLOAD[shape]
    with pytest.raises(ConfigurationError, match="the queue carries Order"):
        App("shop").register(orders, handler, options)  # type: ignore[arg-type]  # real options
    with pytest.raises(ConfigurationError, match="the queue carries Order"):
        App("shop").register(orders.configured(ttl=5), handler, options)  # type: ignore[arg-type]  # as above
    App("shop").register(Queue("by-adapter", TypeAdapter(Order | Invoice)), handler, options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("queue", "annotation"),
    [
        (orders, BaseModel),
        (orders, Any),
        (orders, object),
        (orders, T),
        (orders, Order | Invoice),
        (orders, Contextual),
        (Queue("n", int), float),
        (Queue("n", list[int]), Sequence[int]),
        (Queue("n", dict), "dict[str, Any]"),
        (Queue("n", TypeAdapter(list[int])), Collection),
    ],
    ids=repr,
)
def test_an_annotation_that_admits_the_queues_payload_is_fine(queue: Any, annotation: Any) -> None:
    def handler(payload: Any) -> None: ...

    handler.__annotations__["payload"] = annotation
    App("shop").register(queue, handler, {})


def test_generic_handlers_and_protocols_are_fine() -> None:
    App("shop").register(orders, free, {})
