"""The pytest fixtures: a real broker for any test, in one line.

    def test_orders(redis_url: str) -> None: ...           # or rabbitmq_url, valkey_url
    def test_shop(broker_url: str) -> None: ...            # on each `--mqcore-broker NAME`

A server is started when the first test asks for it, and stopped at the end of the run. Queues that
a test has created are deleted after it. Where a broker is not available the test is skipped, with
the reason and a count at the end; under `CI=true` it fails. The fixtures are part of mqcore's
pytest plugin, which is loaded in every run, so slow imports happen when a test asks.
"""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections import Counter
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from mqcore.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mqcore.contract.brokers.brokers import Brokers, Provider
    from mqcore.contract.brokers.process_server import ProcessServer
    from mqcore.contract.brokers.server import Server

__all__ = [
    "broker_server",
    "broker_url",
    "brokers",
    "process_server",
    "rabbitmq_url",
    "redis_url",
    "valkey_url",
]

_PROVIDERS = ("auto", "docker", "local", "url")
_USE = pytest.StashKey["Use"]()


class Use:
    """Which brokers this run has used, for its summary."""

    def __init__(self) -> None:
        """Start empty."""
        self.brokers: Brokers | None = None
        self.tests: Counter[str] = Counter()
        """How often each name was requested."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that say where brokers come from."""
    group = parser.getgroup("mqcore")
    group.addoption(
        "--mqcore-brokers",
        choices=_PROVIDERS,
        default=None,
        help="where real brokers come from: docker, local (installed servers), url "
        "(see --mqcore-broker-url), or auto, the first that works (default; environment: "
        "MQCORE_BROKERS)",
    )
    group.addoption(
        "--mqcore-broker-url",
        action="append",
        default=[],
        metavar="[NAME=]URL",
        help="a broker that runs already, such as redis://127.0.0.1/0 or "
        "valkey=redis://…; again for more "
        "(environment: MQCORE_BROKER_URL, with blanks between)",
    )
    group.addoption(
        "--mqcore-broker",
        action="append",
        default=[],
        metavar="NAME",
        help="run tests that use broker_url on this broker, such as redis or rabbitmq-4; again "
        "for more (default: redis, rabbitmq)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Start with no broker used."""
    config.stash[_USE] = Use()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a test for each broker that `broker_url` is to be."""
    if "broker_url" in metafunc.fixturenames:
        names = metafunc.config.getoption("--mqcore-broker") or ["redis", "rabbitmq"]
        metafunc.parametrize("broker_url", names, indirect=True)


@pytest.fixture(scope="session")
def brokers(request: pytest.FixtureRequest) -> Iterator[Brokers]:
    """The servers of this run, by `--mqcore-brokers`; all are stopped at its end."""
    from mqcore.contract.brokers.brokers import Brokers  # noqa: PLC0415 - it is loaded in every pytest run: it stays small

    option = request.config.getoption
    provider: Any = option("--mqcore-brokers") or os.environ.get("MQCORE_BROKERS") or "auto"
    urls = option("--mqcore-broker-url") or os.environ.get("MQCORE_BROKER_URL", "").split()
    try:
        found = Brokers(provider, urls)
    except (LookupError, ConfigurationError) as error:
        pytest.exit(f"--mqcore-brokers, --mqcore-broker-url: {error}", pytest.ExitCode.USAGE_ERROR)
    request.config.stash[_USE].brokers = found
    with found, _asked_to_end():
        yield found


@contextmanager
def _asked_to_end() -> Iterator[None]:
    """While servers run, let SIGTERM end the tests as Ctrl-C does.

    A CI job that runs out of time then leaves no server behind.
    """
    plain = (
        signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        and threading.current_thread() is threading.main_thread()
    )
    if plain:
        signal.signal(signal.SIGTERM, signal.default_int_handler)

    try:
        yield
    finally:
        if plain:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(scope="session")
def broker_server(brokers: Brokers, request: pytest.FixtureRequest) -> Callable[..., Server]:
    """A function that takes a name, such as `redis-8`, and returns the `Server`.

    For tests that kill, restart or silence it.
    """
    from mqcore.contract.brokers.server import BrokerUnavailable  # noqa: PLC0415 - as above

    tests = request.config.stash[_USE].tests

    def server(name: str, *, provider: Provider | None = None) -> Server:
        tests[brokers.label(name, provider)] += 1
        try:
            return brokers.server(name, provider=provider)
        except LookupError as error:
            pytest.fail(str(error), pytrace=False)
        except BrokerUnavailable as error:
            _not_there(error)

    return server


@pytest.fixture(scope="session")
def process_server() -> Iterator[Callable[..., ProcessServer]]:
    """A function that takes the arguments of `ProcessServer` and starts one.

    It is closed when the run ends. Where the command is not installed or the server does not start,
    the test is skipped; under `CI=true` it fails.
    """
    from mqcore.contract.brokers.process_server import ProcessServer  # noqa: PLC0415 - as above
    from mqcore.contract.brokers.server import BrokerUnavailable  # noqa: PLC0415 - as above

    with ExitStack() as started, _asked_to_end():

        def start(*arguments: Any, **options: Any) -> ProcessServer:
            try:
                return started.enter_context(ProcessServer(*arguments, **options))
            except BrokerUnavailable as error:
                _not_there(error)

        yield start


def _not_there(error: Exception) -> NoReturn:
    """Skip the test because a broker is missing; under CI, fail it."""
    if os.environ.get("CI") == "true":
        pytest.fail(str(error), pytrace=False)
    pytest.skip(str(error))


@pytest.fixture
def redis_url(broker_server: Callable[[str], Server]) -> Iterator[str]:
    """The URL of a Redis server, without the queues of other tests."""
    yield from _swept(broker_server("redis"))


@pytest.fixture
def valkey_url(broker_server: Callable[[str], Server]) -> Iterator[str]:
    """The URL of a Valkey server, without the queues of other tests."""
    yield from _swept(broker_server("valkey"))


@pytest.fixture
def rabbitmq_url(broker_server: Callable[[str], Server]) -> Iterator[str]:
    """The URL of a RabbitMQ server, without the queues of other tests."""
    yield from _swept(broker_server("rabbitmq"))


@pytest.fixture
def broker_url(
    request: pytest.FixtureRequest, broker_server: Callable[[str], Server]
) -> Iterator[str]:
    """The URL of each broker that `--mqcore-broker` names, in turn."""
    yield from _swept(broker_server(request.param))


def _swept(server: Server) -> Iterator[str]:
    """Yield the server's URL, and then delete the queues that were created meanwhile."""
    from mqcore.contract.brokers.sweep import delete_queues, queues  # noqa: PLC0415 - as above

    before = queues(server.url)
    yield server.url
    try:
        delete_queues(server.url, queues(server.url) - before)
    except Exception as error:  # noqa: BLE001 - the test itself is over; any error of a driver is a warning
        warning = (
            f"{server.name}: the queues of this test could not be deleted, and the next test "
            f"will find them: {error}"
        )
        warnings.warn(pytest.PytestWarning(warning), stacklevel=1)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """List every server that ran, and every one that was not available."""
    use = config.stash[_USE]
    if use.brokers is None or not use.tests:
        return
    terminalreporter.write_sep("=", "mqcore brokers")

    for server in use.brokers.servers:
        terminalreporter.write_line(
            f"{server.name}: {server.title or server.product.name}, {server.provider}, up in "
            f"{server.started_in:.1f} s"
        )

    for name, why in use.brokers.missing.items():
        terminalreporter.write_line(
            f"{name}: not available, {use.tests[name]} tests could not run. {why}"
        )
