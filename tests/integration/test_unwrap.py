"""`Broker.unwrap` returns the client library's objects and nothing else."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest
from support.faulty import Faults, FaultyBackend
from support.waiting import eventually

from mqcore import Broker, ConfigurationError, ConnectionLost, MqcoreError, Settings, sync
from mqcore.config.plugins import Plugins
from mqcore.spi import Backend, hookimpl
from mqcore.testing import VirtualClock
from mqcore_memory.backend import MemoryBackend
from mqcore_memory.store import MemoryStore

SECRET = "hunter2"


class Client:
    """Stands for what a client library has."""


class Other:
    """A class that no driver has."""


class Derived(Client):
    """What a driver may make of it; its module is the driver's."""


class Unwrapping(FaultyBackend):
    """A driver with a client, and with attributes that are nobody's business."""

    scheme = "unwrapping"
    found: Sequence[object] | Exception = ()

    def unwrap(self) -> Sequence[object]:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


@pytest.fixture
async def unwrapping(clock: VirtualClock, url: str) -> AsyncIterator[Broker]:
    class Plugin:
        @hookimpl
        def mqcore_register_backends(self) -> list[type[Backend]]:
            return [Unwrapping]

    Unwrapping.faults = Faults()
    plugins = Plugins()
    plugins.register(Plugin())
    where = url.replace("memory://", f"unwrapping://user:{SECRET}@")
    async with Broker.connect(where, clock=clock, settings=Settings(), plugins=plugins) as broker:
        yield broker
    Unwrapping.found = ()


NOT_CLIENTS: list[type] = [
    str,
    bytes,
    dict,
    object,
    Backend,
    MemoryBackend,
    MemoryStore,
    VirtualClock,
    Other,
]


@pytest.mark.parametrize("kind", NOT_CLIENTS)
async def test_nothing_is_unwrapped_where_there_is_no_client(
    broker: Broker, faulty: Broker, kind: type
) -> None:
    for each in (broker, faulty):
        with pytest.raises(ConfigurationError, match=r"has no client of the class .*It has: none"):
            each.unwrap(kind)


@pytest.mark.parametrize("kind", NOT_CLIENTS)
async def test_only_what_the_driver_names_is_unwrapped(
    unwrapping: Broker, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Derived()
    monkeypatch.setattr(Derived, "__module__", Unwrapping.__module__)
    monkeypatch.setattr(Client, "__module__", "library.client")
    Unwrapping.found = [client]
    assert unwrapping.unwrap(Client) is client
    with pytest.raises(ConfigurationError, match=r"It has: library\.client\.Client$") as caught:
        unwrapping.unwrap(kind)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("kind", [None, "str", 5, str | None], ids=repr)
async def test_what_is_no_class_is_refused(unwrapping: Broker, kind: Any) -> None:
    with pytest.raises(ConfigurationError, match="unwrap takes the class of a client"):
        unwrapping.unwrap(kind)


async def test_a_failing_driver_is_a_typed_error(unwrapping: Broker) -> None:
    Unwrapping.found = OSError("gone")
    with pytest.raises(MqcoreError, match="unwrapping the client: OSError: gone"):
        unwrapping.unwrap(Client)


async def test_without_a_connection_nothing_is_unwrapped(unwrapping: Broker) -> None:
    Unwrapping.found = [Client()]
    Unwrapping.faults.next("open", *[cast("Any", _refused)] * 3)
    Unwrapping.faults.lose()
    await eventually(lambda: not unwrapping.health().connected)
    with pytest.raises(ConnectionLost, match="not connected"):
        unwrapping.unwrap(Client)
    await unwrapping.close()
    with pytest.raises(MqcoreError):
        unwrapping.unwrap(Client)


async def _refused(*_: Any) -> Any:
    raise OSError("down")


def test_the_blocking_api_unwraps_the_same(url: str) -> None:
    with (
        sync.Broker.connect(url) as broker,
        pytest.raises(ConfigurationError, match="has no client of the class"),
    ):
        broker.unwrap(str)
