"""procrastinate on PostgreSQL: its batch defer, and its worker with async or blocking tasks."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import procrastinate
from common import PAYLOAD, PREFETCH, THREADS, WINDOW, Job, run
from procrastinate.exceptions import ConnectorException


@asynccontextmanager
async def _open(job: Job) -> AsyncIterator[procrastinate.App]:
    """Return an application whose tables exist."""
    connector = procrastinate.PsycopgConnector(conninfo=job.url)
    async with procrastinate.App(connector=connector).open_async() as app:
        with suppress(ConnectorException):  # an earlier scenario has made them
            await app.schema_manager.apply_schema_async()
        yield app


def _task(app: procrastinate.App, job: Job) -> Any:
    """Return an async task that counts."""

    @app.task(queue=job.queue, name=job.queue)
    async def handle(user: int, text: str, at: float | None = None) -> None:
        if at is not None:
            job.latencies.append(time.perf_counter() - at)
        job.count_one()

    return handle


async def _fill(handle: Any, count: int) -> None:
    for start in range(0, count, WINDOW):
        await handle.batch_defer_async(*[PAYLOAD] * min(WINDOW, count - start))


async def one_by_one(job: Job) -> None:
    """Defer, and wait for each job's number."""
    async with _open(job) as app:
        handle = _task(app, job)
        await handle.defer_async(**PAYLOAD)
        job.start()
        for _ in range(job.count):
            await handle.defer_async(**PAYLOAD)
        job.stop()


async def bulk(job: Job) -> None:
    """Defer batches, one after the other."""
    async with _open(job) as app:
        handle = _task(app, job)
        job.start()
        await _fill(handle, job.count)
        job.stop()


async def drain(job: Job) -> None:
    """Run its worker until the queue is empty; finished jobs are deleted."""
    async with _open(job) as app:
        await _fill(_task(app, job), job.count)
        await _work(app, job, PREFETCH // 2)


async def drain_blocking(job: Job) -> None:
    """Run its worker with blocking tasks, which it gives to threads."""
    async with _open(job) as app:

        @app.task(queue=job.queue, name=job.queue)
        def handle(user: int, text: str) -> None:
            job.count_one()

        await _fill(handle, job.count)
        await _work(app, job, THREADS)


async def _work(app: procrastinate.App, job: Job, concurrency: int) -> None:
    job.start()
    await app.run_worker_async(
        queues=[job.queue],
        wait=False,
        concurrency=concurrency,
        delete_jobs="always",
        install_signal_handlers=False,
    )


async def latency(job: Job) -> None:
    """From defer to task, one at a time on an idle system."""
    async with _open(job) as app:
        handle = _task(app, job)
        worker = asyncio.create_task(
            app.run_worker_async(queues=[job.queue], install_signal_handlers=False)
        )
        await asyncio.sleep(1)
        job.start()
        for number in range(job.count):
            await handle.defer_async(**PAYLOAD, at=time.perf_counter())
            while job.handled <= number:  # noqa: ASYNC110 - as an application would see it
                await asyncio.sleep(0.005)
        job.stop()
        worker.cancel()


SCENARIOS = {
    "one by one": one_by_one,
    "bulk": bulk,
    "drain": drain,
    "drain, blocking": drain_blocking,
    "latency": latency,
}

if __name__ == "__main__":
    run(SCENARIOS)
