"""What is said of a connect that fails, whatever a driver raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from mqcore import (
    App,
    Broker,
    BrokerError,
    ConfigurationError,
    ConnectionLost,
    Queue,
    Settings,
    Worker,
)
from mqcore.middleware import Middleware
from mqcore.testing import memory_url
from mqcore_memory import MemoryBackend

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqcore import Capabilities


def refusing(error: Exception) -> Callable[[], MemoryBackend]:
    """Make backends that cannot be opened."""

    class Refusing(MemoryBackend):
        async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
            raise error

    return lambda: Refusing(memory_url(), MemoryBackend.Options())


async def test_an_error_that_is_its_own_cause_is_told_like_any_other() -> None:
    error, other = ValueError("there is no database 777"), OSError("after that")
    error.__cause__, other.__cause__ = other, error
    for one in (error, other):
        with pytest.raises(BrokerError, match=str(one)):
            await Broker.connect(make_backend=refusing(one), settings=Settings()).open()


async def test_a_typed_error_of_a_driver_is_not_made_its_own_cause() -> None:
    refused = ConnectionLost("no such virtual host")
    with pytest.raises(ConnectionLost) as found:
        await Broker.connect(make_backend=refusing(refused), settings=Settings()).open()
    assert found.value is refused
    assert found.value.__cause__ is None


async def test_a_refused_connection_is_told_in_words_wherever_the_driver_hides_it() -> None:
    error, between = ValueError("AMQPConnectionError"), OSError("Multiple exceptions")
    error.__cause__, between.__context__ = between, ConnectionRefusedError(111, "refused")
    with pytest.raises(BrokerError, match="nothing listens"):
        await Broker.connect(make_backend=refusing(error), settings=Settings()).open()


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"routers": [Queue("orders", str)]}, "routers"),
        ({"middleware": [Middleware]}, "middleware"),
    ],
    ids=["a queue for a router", "a class for its instance"],
)
def test_what_is_not_of_the_kind_is_refused(options: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{wrong}= takes a list of"):
        App("shop", **options)
    with pytest.raises(ConfigurationError, match=f"{wrong}= takes a list of"):
        App("shop").connect(memory_url(), **options)


def test_a_worker_with_swapped_arguments_is_refused() -> None:
    app = App("shop")
    with pytest.raises(
        ConfigurationError, match=r"Worker\(app, broker\) takes the app first, not a Broker"
    ):
        Worker(app.connect(memory_url()), app)  # type: ignore[arg-type]  # the mistake
