"""Celery with its solo pool (its fastest in one process), late acknowledgements and no results."""

from typing import Any

import celery
from common import PAYLOAD, PREFETCH, Job, end, run


def _task(job: Job) -> tuple[Any, Any]:
    app = celery.Celery("bench", broker=job.url)
    app.conf.update(
        task_default_queue=job.queue,
        task_acks_late=True,
        task_ignore_result=True,
        worker_prefetch_multiplier=PREFETCH,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        broker_connection_retry_on_startup=True,
        broker_transport_options={"confirm_publish": True},
    )

    @app.task
    def handle(payload: dict[str, Any]) -> None:
        if job.count_one():
            end(job)

    return app, handle


def publish(job: Job) -> None:
    """Call `delay` one by one."""
    _, handle = _task(job)
    handle.delay(PAYLOAD)
    job.start()
    for _ in range(job.count):
        handle.delay(PAYLOAD)
    job.stop()


def drain(job: Job) -> None:
    """Run its worker in this process."""
    app, handle = _task(job)
    for _ in range(job.count):
        handle.delay(PAYLOAD)
    job.start()
    app.Worker(
        pool="solo", concurrency=1, loglevel="ERROR", without_gossip=True, without_mingle=True
    ).start()


run({"one by one": publish, "drain, blocking": drain})
