"""A worker of tasks in a process of its own, for tests that kill it: `BROKER STORE`."""

import asyncio
import sys
from dataclasses import replace

from mqcore import App, RetryPolicy, Settings, Worker, fixed
from mqcore.tasks import Call, TaskContext, Tasks, group

OFTEN = RetryPolicy(20, fixed(0.05))
LEASE = 2.0


def make(store: str) -> tuple[App, Tasks]:
    """Return the app, the same in every process."""
    tasks = Tasks("killed", store=store)

    @tasks.task(name="add", retry=OFTEN)
    async def add(x: int, y: int) -> int:
        await asyncio.sleep(0.01)
        return x + y

    @tasks.task(name="flaky", retry=OFTEN)
    async def flaky(ctx: TaskContext, x: int) -> int:
        if ctx.attempt == 1:
            raise OSError("the first attempt fails")
        return x

    @tasks.task(name="total", retry=OFTEN)
    def total(numbers: list[int]) -> int:
        return sum(numbers)

    @tasks.task(name="spread", retry=OFTEN)
    async def spread(ctx: TaskContext, size: int) -> int:
        return ctx.replace(group(add.s(n, n) for n in range(size)) | total.step())

    app = App("killed", tasks=[tasks])
    tasks.handlers = [replace(spec, lease=LEASE) for spec in tasks.handlers]  # type: ignore[misc]  # a short lease, for a short test
    return app, tasks


def workflow(tasks: Tasks, number: int) -> tuple[Call[int], int]:
    """Return a workflow and its result."""
    add, flaky, total, spread = (
        tasks.registered[name] for name in ("add", "flaky", "total", "spread")
    )
    members = group(
        add.s(number, 1) | flaky.step(), spread.s(3), *(add.s(n, number) for n in range(4))
    )
    call: Call[int] = members | total.step() | add.step(1)
    return call, (number + 1) + 6 + (6 + 4 * number) + 1


async def main(broker: str, store: str) -> None:
    """Run a worker until it is stopped."""
    app, _ = make(store)
    async with app.connect(broker, settings=Settings()) as connected:
        await Worker(app, connected, concurrency=4).run()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
