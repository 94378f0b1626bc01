"""The tasks of an application, for the commands about them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, TypeVar

import typer

from mqcore.app import App
from mqcore.cli.common import LONELY, load_app, quiet
from mqcore.clock import SystemClock
from mqcore.config.settings import Settings
from mqcore.config.url import BrokerUrl
from mqcore.errors import BrokerError, ConfigurationError
from mqcore.spi import SupportsExists
from mqcore.tasks.api import Tasks
from mqcore.tasks.errors import ResultTimeout
from mqcore.tasks.store.plugins import default_store_plugins
from mqcore.tasks.store.seam import TaskStore

__all__ = ["Target", "connected_to", "opened_store", "stored_tasks", "with_store"]

R = TypeVar("R")
_PATIENCE = 30.0

Target = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:APP", help="The app, for instance shop:app.", show_default=False
    ),
]


def stored_tasks(app: App) -> Sequence[Tasks]:
    """Return the tasks of an app that have a store. Raises `ConfigurationError` without any."""
    found = [part for part in app.tasks if isinstance(part, Tasks)]
    if not found:
        raise ConfigurationError(
            f"app {app.name!r} has no tasks. Give it some: App({app.name!r}, tasks=[tasks])"
        )
    stored = [tasks for tasks in found if tasks.store is not None]
    if not stored:
        raise ConfigurationError(
            f"the tasks of app {app.name!r} have no store, so nothing is known of them. Give them "
            'one: Tasks(..., store="sqlite:///tasks.db")'
        )
    return stored


def _one(target: str) -> Tasks:
    stored = stored_tasks(load_app(target))
    if len(stored) > 1:
        names = ", ".join(tasks.name for tasks in stored)
        raise ConfigurationError(
            f"{target} has several Tasks with a store ({names}), and this command takes one: give "
            "each an App of its own for it"
        )
    return stored[0]


@asynccontextmanager
async def opened_store(tasks: Tasks) -> AsyncIterator[TaskStore]:
    """Open the store of tasks, without their broker.

    Raises `ConfigurationError` for a store in memory, which another process cannot see, and for one
    that opening would create.
    """
    url = tasks.store or ""
    scheme = BrokerUrl(url).scheme
    if scheme == "memory":
        raise ConfigurationError(
            f"the store {url} lives in one process, and this command runs in another. Use one that "
            'processes share, for instance store="sqlite:///tasks.db"'
        )
    store = default_store_plugins().store_for(scheme)(url, SystemClock())
    if isinstance(store, SupportsExists) and not store.exists():
        raise ConfigurationError(
            f"there is nothing at {BrokerUrl(url)} yet. The first application that connects makes "
            "it. If one has connected, check the URL and the working directory"
        )
    try:
        await store.open()
        yield store
    finally:
        await store.close()


def with_store(
    target: str,
    work: Callable[[Tasks, TaskStore], Awaitable[R]],
    *,
    patience: float | None = _PATIENCE,
) -> R:
    """Open the store of an app's tasks, do the work and return its result. No broker is needed.

    `patience` is the limit in seconds for the work, None for no limit.
    """
    tasks = _one(target)

    async def opened() -> R:
        async with asyncio.timeout(_PATIENCE) as limit, opened_store(tasks) as store:
            if patience is None:
                limit.reschedule(None)
            return await work(tasks, store)

    with quiet():
        try:
            return asyncio.run(opened())
        except TimeoutError as error:
            raise BrokerError(
                f"no answer from {BrokerUrl(tasks.store or '')} within {_PATIENCE:g} s"
            ) from error


def connected_to(
    target: str,
    settings: Settings,
    work: Callable[[Tasks], Awaitable[R]],
    *,
    wait: float = 0.0,
) -> R:
    """Connect an app to its broker and store, do the work and return its result.

    The work may wait for `wait` seconds besides.
    """
    app = load_app(target)
    tasks = _one(target)

    async def connected() -> R:
        async with asyncio.timeout(_PATIENCE + wait), app.connect(settings=settings) as broker:
            if broker.is_local:
                raise ConfigurationError(LONELY)
            return await work(tasks)

    with quiet():
        try:
            return asyncio.run(connected())
        except ResultTimeout:
            raise
        except TimeoutError as error:
            raise BrokerError(f"no answer from {settings.url} within {_PATIENCE:g} s") from error
