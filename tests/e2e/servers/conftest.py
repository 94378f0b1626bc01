"""The servers of these tests: each product and queue type once, versions on request.

`--mqcore-broker` names others.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from mqcore.contract.brokers.sweep import delete_queues, queues

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from mqcore.contract.brokers import Server

QUORUM = "+quorum"
FIGURES = pytest.StashKey[list[str]]()
EACH_PRODUCT = ("redis", "rabbitmq", f"rabbitmq{QUORUM}")
EVERY_SERVER = (
    "redis-7",
    "redis-8",
    "valkey-8",
    *(f"rabbitmq-{major}{kind}" for major in (3, 4) for kind in ("", QUORUM)),
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "where" in metafunc.fixturenames:
        names = (
            EVERY_SERVER if metafunc.definition.get_closest_marker("every_server") else EACH_PRODUCT
        )
        metafunc.parametrize("where", metafunc.config.getoption("--mqcore-broker") or names)


@pytest.fixture
def server(where: str, broker_server: Callable[[str], Server]) -> Server:
    """The server itself, to be killed."""
    return broker_server(where.removesuffix(QUORUM))


@pytest.fixture
def url(where: str, server: Server) -> Iterator[str]:
    """Its URL, with the queue type that is meant; the queues of the test are deleted after it."""
    before = queues(server.url)
    yield f"{server.url}?durability=machine" if where.endswith(QUORUM) else server.url
    delete_queues(server.url, queues(server.url) - before)


@pytest.fixture
def measured(where: str, request: pytest.FixtureRequest) -> Callable[[str, float], None]:
    """A function that adds a figure to the run's summary.

    Figures are not judged, so a busy machine fails nothing.
    """
    figures = request.config.stash.setdefault(FIGURES, [])

    def note(what: str, seconds: float) -> None:
        figures.append(f"{where}: {what}: {seconds:g}")

    return note


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Tell the figures."""
    if figures := config.stash.get(FIGURES, []):
        terminalreporter.write_sep("=", "mqcore figures")
        for line in figures:
            terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def own_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings from outside."""
    for name in [name for name in os.environ if name.startswith("MQCORE_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
