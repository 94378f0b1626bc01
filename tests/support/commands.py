"""A shop to try commands on: its queues, its application, and what a command said."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mqcore import Broker, Queue, Settings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Run = Callable[..., "Said"]
    Refused = Callable[..., str]

CANARY = "canary-password"
"""No command may ever print it."""
JSON = dict[str, int]
orders = Queue("orders", JSON)
audit = Queue("audit", JSON)
raw = Queue("raw")
SHOP = """
from mqcore import App, Queue, Router
orders, audit = Queue("orders", dict[str, int]), Queue("audit", dict[str, int])
events = Router("shop", dict[str, int], kind="topic").bind(orders, "order.placed")
app = App("shop", routers=[events])
not_an_app = orders
@app.consumer(orders)
async def on_order(order: dict[str, int]) -> None: ...
@app.consumer("later")
async def on_later(order: bytes) -> None: ...
"""


class Said(NamedTuple):
    """What a command ended with."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """What it said, read as JSON."""
        assert self.code in (0, 1), self.err
        return json.loads(self.out)

    @property
    def rows(self) -> list[list[str]]:
        """The words of each line of a table, without its head."""
        return [line.split() for line in self.out.splitlines()[1:]]


def on(url: str, work: Callable[[Broker], Awaitable[Any]]) -> Any:
    """Do some work on the broker, as the application in this process would."""

    async def connected() -> Any:
        async with Broker.connect(url, settings=Settings()) as broker:
            return await work(broker)

    return asyncio.run(connected())


def write(name: str, text: str) -> None:
    """Write a file into the working directory."""
    Path(name).write_text(text)
