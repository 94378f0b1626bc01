"""A worker that runs until it is stopped warns when no broker is configured."""

import asyncio
from pathlib import Path

import pytest

from mqcore import App, Broker, Queue, Settings, Worker
from mqcore.testing import memory_url

jobs, more = Queue("jobs", str), Queue("more", str)


async def handler(_: str) -> None: ...


def described() -> App:
    app = App("shop")
    app.register(jobs, handler, {})
    app.register(more, handler, {})
    return app


async def warnings(caplog: pytest.LogCaptureFixture, app: App, broker: Broker) -> list[str]:
    """Run two workers on a broker to their end, and return the warnings."""
    async with broker:
        for queue in ("jobs", "more"):
            worker = Worker(app, broker, queues=[queue])
            running = asyncio.create_task(worker.run())
            await asyncio.sleep(0)
            worker.stop()
            await running
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


async def test_a_worker_warns_once_when_no_broker_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MQCORE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    app = described()
    (text,) = await warnings(caplog, app, app.connect())
    assert "worker of app 'shop': no broker is configured" in text
    for cure in ("MQCORE_URL", "mqcore.toml", "mqcore worker --url", "app.connect(url)"):
        assert cure in text


@pytest.mark.parametrize("way", ["argument", "settings", "environment", "file"])
async def test_a_worker_is_silent_when_memory_is_named(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    monkeypatch.delenv("MQCORE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    app, url = described(), memory_url()
    if way == "environment":
        monkeypatch.setenv("MQCORE_URL", url)
    if way == "file":
        (tmp_path / "mqcore.toml").write_text(f'url = "{url}"\n')
    broker = {
        "argument": lambda: app.connect(url),
        "settings": lambda: app.connect(settings=Settings.load(url=url)),
    }.get(way, app.connect)()
    assert await warnings(caplog, app, broker) == []


async def test_a_worker_beside_its_publisher_is_silent(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("MQCORE_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    app = described()
    async with app.connect() as broker, Worker(app, broker):
        pass
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []
