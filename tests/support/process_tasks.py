"""An app with tasks that run in a process of their own, where the process can import them."""

import os
import signal
import time

from mqcore import App, RetryPolicy
from mqcore.tasks import SoftTimeout, TaskContext, Tasks
from mqcore.testing import memory_url

tasks = Tasks("processes", store=memory_url())
app = App("processes", tasks=[tasks])
ONCE = RetryPolicy(1)


@tasks.task(process=True)
def pid(ctx: TaskContext, *numbers: int) -> tuple[int, str, int]:
    return os.getpid(), ctx.id, sum(numbers)


@tasks.task(process=True)
def double(number: int) -> int:
    return 2 * number


@tasks.task()
async def here(number: int) -> int:
    return number + 1


@tasks.task(process=True, retry=ONCE)
def killer() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@tasks.task(process=True, retry=ONCE, soft_timeout=0.2)
def slow() -> str:
    try:
        time.sleep(60)
    except SoftTimeout:
        return "in time"
    return "never"


@tasks.task(process=True, retry=ONCE)
def endless(path: str) -> None:
    with open(path, "w", encoding="utf-8") as file:  # noqa: PTH123 - short
        file.write(str(os.getpid()))
    time.sleep(600)


@tasks.task(process=True, retry=ONCE)
def reports(ctx: TaskContext) -> None:
    ctx.progress(1, 2)
