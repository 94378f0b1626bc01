"""No option is ever ignored: a section of the settings that nothing uses is reported."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

from mqcore import App, Broker, ConfigurationError, Queue, Router, Settings, Worker

if TYPE_CHECKING:
    from pathlib import Path

    from mqcore.testing import VirtualClock

ORDERS = Queue("orders", str)
ELSEWHERE = Queue("elsewhere", str)
EVENTS = Router("events", str).bind(ELSEWHERE, "#")


def shop() -> App:
    app = App("shop", routers=[EVENTS])
    app.register(ORDERS, handle, {})
    return app


async def handle(text: str) -> None: ...


async def warnings(
    caplog: pytest.LogCaptureFixture, clock: VirtualClock, url: str, folder: Path, text: str
) -> list[str]:
    """Start a worker of the shop with this `mqcore.toml`, and return what it warns of."""
    (folder / "mqcore.toml").write_text(text)
    app = shop()
    caplog.set_level(logging.WARNING, "mqcore")
    async with (
        app.connect(url, clock=clock, settings=Settings.load(directory=folder)) as broker,
        Worker(app, broker),
    ):
        pass
    return [record.getMessage() for record in caplog.records if "[" in record.getMessage()]


@pytest.mark.parametrize(
    "text",
    [
        "[queues.orders]\nttl = 60.0\n",
        "[queues.elsewhere.retry]\nmax_attempts = 2\n",
        '[routers.events]\nkind = "topic"\n',
        '[backends.memory]\n[backends.redis]\npassword = "secret"\n',
    ],
)
async def test_a_section_that_is_used_is_not_reported(
    caplog: pytest.LogCaptureFixture, clock: VirtualClock, url: str, tmp_path: Path, text: str
) -> None:
    assert await warnings(caplog, clock, url, tmp_path, text) == []


async def test_a_worker_warns_of_a_queue_that_there_is_not(
    caplog: pytest.LogCaptureFixture, clock: VirtualClock, url: str, tmp_path: Path
) -> None:
    (text,) = await warnings(caplog, clock, url, tmp_path, "[queues.ordes]\nttl = 60.0\n")
    assert text == (
        "mqcore.toml: [queues.ordes] has no effect: app 'shop' has no queue 'ordes', and neither "
        "has the broker. Did you mean [queues.orders]? Correct the name, or remove the section"
    )


async def test_a_worker_warns_of_a_router_that_there_is_not(
    caplog: pytest.LogCaptureFixture, clock: VirtualClock, url: str, tmp_path: Path
) -> None:
    settings = '[routers."no such"]\nkind = "topic"\n'
    (text,) = await warnings(caplog, clock, url, tmp_path, settings)
    assert text == (
        "mqcore.toml: [routers.\"no such\"] has no effect: app 'shop' has no router 'no such', "
        "and neither has the broker. Correct the name, or remove the section"
    )


async def test_settings_for_a_dead_letter_queue_belong_to_its_queue(
    caplog: pytest.LogCaptureFixture, clock: VirtualClock, url: str, tmp_path: Path
) -> None:
    settings = '[queues."orders.dlq"]\nretention = 60.0\n'
    (text,) = await warnings(caplog, clock, url, tmp_path, settings)
    assert text == (
        "mqcore.toml: [queues.\"orders.dlq\"] has no effect: 'orders.dlq' belongs to queue "
        "'orders'. Put its settings into [queues.orders]"
    )


async def test_settings_of_another_applications_queue_are_not_reported(
    caplog: pytest.LogCaptureFixture, clock: VirtualClock, url: str, tmp_path: Path
) -> None:
    other, prices = Queue("other", str), Queue("prices", str)
    async with Broker.connect(url, clock=clock, settings=Settings()) as broker:
        await broker.declare(other, Router("rates", str).bind(prices, "#"))
        settings = '[queues.other]\nmax_length = 5\n[routers.rates]\nkind = "topic"\n'
        assert await warnings(caplog, clock, url, tmp_path, settings) == []


@pytest.mark.parametrize(
    ("scheme", "why"),
    [
        ("redsi", r"mqcore\.toml: \[backends\.redsi\] .*no installed plugin serves 'redsi'.*redis"),
        ("Redis", r"mqcore\.toml: \[backends\.Redis\] .*Did you mean \[backends\.redis\]\?"),
        ("kafka", r"mqcore\.toml: \[backends\.kafka\] .*no installed plugin serves 'kafka'"),
    ],
)
def test_options_for_a_backend_that_is_not_installed_are_refused(
    tmp_path: Path, url: str, scheme: str, why: str
) -> None:
    (tmp_path / "mqcore.toml").write_text(f"[backends.{scheme}]\ntimeout = 5\n")
    settings = Settings.load(directory=tmp_path)
    with pytest.raises(ConfigurationError, match=why):
        shop().connect(url, settings=settings)


def test_the_file_of_a_section_is_named(tmp_path: Path, url: str) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.mqcore.backends.redsi]\ntimeout = 5\n")
    settings = Settings.load(directory=tmp_path)
    with pytest.raises(ConfigurationError, match=r"^\[tool\.mqcore\] in pyproject\.toml: "):
        Broker.connect(url, settings=settings)
    with pytest.raises(ConfigurationError, match=r"^the settings: \[backends\.redsi\]"):
        Broker.connect(url, settings=Settings(backends={"redsi": {}}))
