"""The public fixtures in an application's project: one line, a clean broker for each test."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mqcore.contract.brokers import Server

ROOT = Path(__file__).parents[2]
pytest_plugins = ["pytester"]
pytestmark = pytest.mark.timeout(120)

SHOP = """
from mqcore import Broker, Queue

orders = Queue("orders", str)

async def one(url):
    async with Broker.connect(url) as broker:
        exists = any(c.name == "orders" for c in await broker.counts())
        [counts] = await broker.counts(orders) if exists else [None]
        assert counts is None, "another test's queue is still there"
        await broker.publish(orders, "tea")
        [counts] = await broker.counts(orders)
        assert counts.ready == 1
"""


@pytest.fixture
def project(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., pytest.RunResult]:
    """Run pytest on one test file, in a process of its own and without our settings."""
    for name in [name for name in os.environ if name.startswith("MQCORE_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def run(tests: str, *options: str, **environment: str) -> pytest.RunResult:
        pytester.makepyfile(shop=SHOP)
        pytester.makepyfile(test_shop=tests)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        return pytester.runpytest_subprocess("-p", "no:randomly", *options)

    return run


def test_a_broker_that_is_not_there_is_a_skip_with_a_count_and_a_reason(
    project: Callable[..., pytest.RunResult],
) -> None:
    found = project(
        """
        def test_one(redis_url): ...
        def test_two(redis_url): ...
        def test_three(): ...
        """,
        "--mqcore-brokers=url",
    )
    found.assert_outcomes(passed=1, skipped=2)
    found.stdout.fnmatch_lines(
        [
            (
                "redis: not available, 2 tests could not run. redis is not available: url: no URL "
                "was given for redis"
            )
        ]
    )


def test_under_ci_it_is_an_error(project: Callable[..., pytest.RunResult]) -> None:
    found = project("def test_one(redis_url): ...", MQCORE_BROKERS="url", CI="true")
    found.assert_outcomes(errors=1)
    found.stdout.fnmatch_lines(["*redis is not available: url: no URL was given for redis*"])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mqcore-broker-url=redis"], "*the broker URL 'redis' is not usable*"),
        (["--mqcore-broker-url=kafka://h"], "*cannot tell which broker serves a kafka:// URL*"),
        (
            ["--mqcore-broker-url=redis://:hunter2@h:99999"],
            "*the broker URL 'redis://:[*][*][*]@h:99999' is not usable*",
        ),
    ],
)
def test_an_option_that_means_nothing_ends_the_run(
    project: Callable[..., pytest.RunResult], options: list[str], words: str
) -> None:
    found = project("def test_one(redis_url): ...", *options)
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    (found.stdout if "Exit:" in found.stdout.str() else found.stderr).fnmatch_lines([words])
    assert "hunter2" not in found.stdout.str() + found.stderr.str()


def test_a_variable_that_means_nothing_ends_the_run(
    project: Callable[..., pytest.RunResult],
) -> None:
    found = project("def test_one(redis_url): ...", MQCORE_BROKERS="cloud")
    assert found.ret == pytest.ExitCode.USAGE_ERROR
    assert "unknown provider 'cloud' (known: docker, local, url, auto)" in found.stdout.str()


def test_who_asks_for_no_broker_hears_nothing_of_them(
    project: Callable[..., pytest.RunResult],
) -> None:
    found = project("def test_one(): ...", "--mqcore-brokers=url")
    found.assert_outcomes(passed=1)
    assert "mqcore brokers" not in found.stdout.str()


@pytest.mark.parametrize("name", ["redis", "rabbitmq"])
def test_each_test_finds_the_broker_without_the_queues_of_another(
    project: Callable[..., pytest.RunResult], broker_server: Callable[[str], Server], name: str
) -> None:
    """Also where the broker was given by its URL, as a CI service is; older queues stay."""
    server = broker_server(name)
    tests = f"""
        import asyncio, shop
        def test_one({name}_url): asyncio.run(shop.one({name}_url))
        def test_two({name}_url): asyncio.run(shop.one({name}_url))
        def test_three(broker_url): asyncio.run(shop.one(broker_url))
        """
    found = project(tests, f"--mqcore-broker={name}", MQCORE_BROKER_URL=server.url)
    found.assert_outcomes(passed=3)
    said = re.search(rf"^{name}: (.*), url, up in", found.stdout.str(), re.MULTILINE)
    assert said is not None
    assert said[1] == server.title


def test_a_broker_is_started_for_the_run_and_gone_after_a_failure(
    project: Callable[..., pytest.RunResult], broker_server: Callable[..., Server]
) -> None:
    broker_server("redis", provider="local")  # skips where none is installed
    found = project(
        """
        def test_one(redis_url):
            print("at", redis_url)
            raise ValueError("as tests do")
        """,
        "--mqcore-brokers=local",
    )
    found.assert_outcomes(failed=1)
    found.stdout.fnmatch_lines(["redis: Redis *, local, up in *"])
    port = re.search(r"at redis://127\.0\.0\.1:(\d+)/0", found.stdout.str())
    assert port is not None
    with pytest.raises(OSError):  # noqa: PT011 - nobody listens any more
        broker_server("redis", provider="local").product.ask("127.0.0.1", int(port[1]), 1.0)


def test_a_run_that_is_asked_to_end_leaves_no_server(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, broker_server: Callable[..., Server]
) -> None:
    """As a CI does that runs out of time."""
    ask = broker_server("redis", provider="local").product.ask  # skips where none is installed
    monkeypatch.setenv("MQCORE_BROKERS", "local")
    pytester.makepyfile(
        test_shop="""
        import time

        def test_one(broker_server):
            print(broker_server("redis").port, flush=True)
            time.sleep(60)
        """
    )
    run = pytester.popen([sys.executable, "-m", "pytest", "-s"], stdin=pytester.CLOSE_STDIN)
    with run:
        lines = (line.decode() for line in run.stdout or ())
        port = next(
            int(found[1])
            for line in lines
            if (found := re.search(r"(?:^| )(\d{5})$", line.strip()))
        )
        assert ask("127.0.0.1", port, 5.0).product == "Redis"
        run.send_signal(signal.SIGTERM)
        assert "KeyboardInterrupt" in "".join(lines)
        assert run.wait(30) == pytest.ExitCode.INTERRUPTED
    with pytest.raises(OSError):  # noqa: PT011 - nobody listens any more
        ask("127.0.0.1", port, 1.0)


def test_what_the_documentation_shows_works(
    project: Callable[..., pytest.RunResult], broker_server: Callable[..., Server]
) -> None:
    for name in ("redis", "rabbitmq"):
        broker_server(name)  # skips where there is none
    page = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")
    section = page.partition("## On a real broker")[2]
    shown = re.findall(r"^```python\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    options = ["-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function"]
    for tests in shown:
        found = project(tests, *options)
        found.assert_outcomes(passed=1)
    assert len(shown) == 2
