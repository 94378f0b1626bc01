"""For the tests of the command `mqcore`: a folder, a broker with a shop in it, and helpers."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest
from support.commands import CANARY, JSON, Said, audit, on, orders, raw

from mqcore import Broker, Router
from mqcore.cli import main
from mqcore.testing import memory_url

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.commands import Refused, Run


@pytest.fixture
def own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Run in an empty folder without outside settings; forget the modules a test wrote there."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("MQCORE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(sys, "path", sys.path[:])
    before = set(sys.modules)
    yield
    for name, module in list(sys.modules.items()):
        if name not in before and str(tmp_path) in str(getattr(module, "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def url() -> str:
    return memory_url()


@pytest.fixture
def run(own_folder: None, capsys: pytest.CaptureFixture[str]) -> Run:
    """Call a command; its output has no traceback, no password and nothing that moves a cursor."""

    def call(*words: str) -> Said:
        code = main(words)
        said = Said(code, *capsys.readouterr())
        assert "Traceback" not in said.err
        for text in (said.out, said.err):
            assert CANARY not in text
            assert "\x1b" not in text
        return said

    return call


@pytest.fixture
def refused(run: Run) -> Refused:
    """Call a command that is misused, and return the one line that it says."""

    def call(*words: str, code: int = 2) -> str:
        said = run(*words)
        assert (said.code, said.out) == (code, ""), said
        assert said.err.startswith("mqcore: ")
        assert said.err.count("\n") == 1
        return said.err

    return call


@pytest.fixture
def filled(url: str) -> str:
    """A broker with a shop: orders ready and delayed, one of them in quite some words."""

    async def fill(broker: Broker) -> None:
        shop = (
            Router("shop", JSON, kind="topic").bind(orders, "order.placed").bind(audit, "order.*")
        )
        await broker.declare(shop, raw)
        await broker.publish(orders, {"n": 1}, id="first", headers={"tenant": "a"})
        await broker.publish(orders, {"n": 2}, id="urgent", priority=9)
        await broker.publish(orders, {"n": 3}, id="tomorrow", delay=86_400)
        await broker.publish(raw, b"\x1b[31m[bold]\xff\x00\n" + b"x" * 200, id="binary")

    on(url, fill)
    return url


@pytest.fixture
def buried(filled: str) -> str:
    """The same with dead letters: three orders rejected, the last for another reason."""

    async def bury(broker: Broker) -> None:
        for number, why in enumerate(("no such customer", "no such customer", "\x1b[31mtoo late")):
            await broker.publish(
                orders,
                {"dead": number},
                id=f"dead-{number}",
                priority=10,
                headers={"n": str(number)},
            )
            async with broker.consume(orders) as consumer:
                async for delivery in consumer:
                    await delivery.reject(why)
                    break

    on(filled, bury)
    return filled
