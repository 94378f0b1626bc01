"""The pytest fixture for tasks: a worker in the test's process, on a virtual clock.

async def test_an_invoice(task_worker) -> None:
    async with task_worker(app) as worker:
        job = await send_invoice.using(delay=3600).send(42)
        assert await worker.result(job) == "invoice 42"
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from mqcore.tasks.testing import TaskWorker

__all__ = ["task_worker"]


@pytest.fixture
def task_worker() -> Callable[..., AbstractAsyncContextManager[TaskWorker]]:
    """Return `mqcore.tasks.testing.task_worker`."""
    from mqcore.tasks import testing  # noqa: PLC0415 - slow, and the plugin is in every run

    return testing.task_worker
