"""The segmentation service: one queue of tasks, one of results, and the worker between them.

A task's way: a client publishes a `SegmentationTask` to the router `segmentation` with key
`task.new`, premium users' with priority 10 and the others' with 1, which brings it to
`segmentation.tasks`. `segment_image` handles one at a time, and publishes to the same router: a
`SegmentationResult` as `task.completed`, or a `TaskFailed` as `task.failed`; both come to
`segmentation.results`. What the storage did not give out is tried again after a growing wait, and
dead-lettered after the last attempt; an image that is broken is dead-lettered at once. The task's
row in the service's database is completed in the transaction of the handler (`tables.py`).

Run it as a service of its own, on any broker: `mqcore worker examples.segmentation.app:app --url
URL`.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from examples.segmentation import tables
from examples.segmentation.images import BrokenImageError, StorageError, Tier, read_image
from examples.segmentation.segment import Segmentation, save_labels, segment
from mqcore import App, BlockingContext, Broker, Queue, Reject, RetryPolicy, Router, exponential
from mqcore_sql import SqlInbox

PRIORITY = {Tier.PREMIUM: 10, Tier.REGULAR: 1}


class SegmentationTask(BaseModel):
    """Segment the image in the file `image`; write the object of each pixel to `labels`.

    Messages carry the names of files, not the files: a broker is not an image store.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    tier: Tier
    image: Path
    labels: Path


class SegmentationResult(BaseModel):
    """What a worker found.

    `task` is the id of the task's message, `started_at` seconds since the epoch.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["completed"] = "completed"
    task: str
    name: str
    tier: Tier
    attempt: int
    started_at: float
    labels: Path
    found: Segmentation


class TaskFailed(BaseModel):
    """One attempt failed.

    `final` says that no other will follow, so that the task is now a dead letter.
    """

    model_config = ConfigDict(frozen=True)

    kind: Literal["failed"] = "failed"
    task: str
    name: str
    tier: Tier
    attempt: int
    started_at: float
    error: str
    final: bool


Outcome: TypeAlias = SegmentationResult | TaskFailed
OUTCOME: TypeAdapter[Outcome] = TypeAdapter(Annotated[Outcome, Field(discriminator="kind")])

RETRY = RetryPolicy(max_attempts=3, backoff=exponential(0.5, cap=30))

tasks = Queue("segmentation.tasks", SegmentationTask, ttl=3600)
results = Queue("segmentation.results", OUTCOME)

# One topic router on the broker, seen from its two sides: what is asked for is a task, what comes
# of it an outcome. Each side has its own type, so mypy and the publish itself notice when one is
# sent for the other.
requests = Router("segmentation", SegmentationTask, kind="topic").bind(tasks, "task.new")
outcomes = (
    Router("segmentation", OUTCOME, kind="topic")
    .bind(results, "task.completed")
    .bind(results, "task.failed")
)


@asynccontextmanager
async def lifespan(_: Broker) -> AsyncIterator[None]:
    """Have the service's tables before a worker consumes."""
    tables.create_tables()
    yield


app = App(
    "segmentation",
    routers=[requests, outcomes],
    lifespan=lifespan,
    inbox=SqlInbox(tables.sessions),
)


# A blocking handler runs in a thread, and NumPy releases the interpreter while it computes. One
# task at a time, and none held in reserve (prefetch=1): no premium task waits behind a regular one
# that this worker has taken already.
@app.consumer(tasks, retry=RETRY, prefetch=1, concurrency=1, timeout=300, once="7d")
def segment_image(task: SegmentationTask, ctx: BlockingContext) -> None:
    """Segment one image and publish what was found, or why it failed.

    A task that was completed is not done again (`once=`). One whose worker died in the middle is,
    and that does no harm: the same labels are written to the same file.
    """
    started_at = time.time()
    try:
        found, labels = segment(read_image(task.image))
        save_labels(labels, task.labels)
    except BrokenImageError as error:
        _note_failure(task, ctx, started_at, error, final=True)
        raise Reject(str(error)) from error
    except StorageError as error:
        _note_failure(task, ctx, started_at, error, final=ctx.attempt >= RETRY.max_attempts)
        raise
    result = SegmentationResult(
        task=ctx.id,
        name=task.name,
        tier=task.tier,
        attempt=ctx.attempt,
        started_at=started_at,
        labels=task.labels,
        found=found,
    )
    ctx.publish(outcomes, result, key="task.completed")
    # Last: queues in the same SQLite file cannot be written to while this transaction is open.
    tables.complete(ctx.session, ctx.id, time.time() - started_at, found.objects)


def _note_failure(
    task: SegmentationTask,
    ctx: BlockingContext,
    started_at: float,
    error: Exception,
    *,
    final: bool,
) -> None:
    """Store a failed attempt, and publish it."""
    tables.add_failure(ctx.id, ctx.attempt, str(error), final=final)
    failed = TaskFailed(
        task=ctx.id,
        name=task.name,
        tier=task.tier,
        attempt=ctx.attempt,
        started_at=started_at,
        error=str(error),
        final=final,
    )
    ctx.publish(outcomes, failed, key="task.failed")
