"""What mypy says of tasks. A line that must be refused is marked, and mypy reports unused marks."""

from __future__ import annotations

from typing import assert_type

from mqcore.tasks import (
    AsyncTask,
    Call,
    Failure,
    Job,
    Step,
    Task,
    TaskContext,
    Tasks,
    chain,
    group,
)

tasks = Tasks("typing")


@tasks.task(queue="mail")
async def send_invoice(ctx: TaskContext, order: int, *, copy: bool = False) -> str:
    return f"{ctx.id} {order} {copy}"


@tasks.task()
def add(x: int, y: int) -> int:
    return x + y


@tasks.task()
async def neg(x: int) -> float:
    return -x


@tasks.task()
async def xsum(numbers: list[int]) -> int:
    return sum(numbers)


@tasks.task()
async def report(numbers: list[int | Failure]) -> str:
    return str(numbers)


async def check() -> None:
    assert_type(await send_invoice.send(42), Job[str])
    assert_type(await send_invoice.using(priority=8, delay=10).send(42, copy=True), Job[str])
    assert_type(await (await send_invoice.send(42)).result(timeout=5), str)
    assert_type(await send_invoice(1), str)
    assert_type(add(1, 2), int)
    _: AsyncTask[[int], float] = neg
    __: Task[[int, int], int] = add

    await send_invoice.send("42")  # type: ignore[arg-type]
    await send_invoice.send()  # type: ignore[call-arg]
    await send_invoice.using(priority=8).send(1, 2)  # type: ignore[call-arg, arg-type]
    await send_invoice.using(prio=8).send(1)  # type: ignore[call-arg]
    tasks.task(queu="mail")  # type: ignore[call-arg]


def check_workflows() -> None:
    assert_type(add.s(1, 2), Call[int])
    assert_type(add.step(8), Step[int, int])
    assert_type(add.step(8).s(1), Call[int])
    assert_type(group(add.step(8), add.step(9)).s(1), Call[list[int]])
    assert_type((add.step(8) | neg.step()).s(1), Call[float])
    assert_type(add.s(1, 2) | neg.step(), Call[float])
    assert_type(group(add.s(1, 2), add.s(3, 4)), Call[list[int]])
    assert_type(group(add.s(n, n) for n in range(3)), Call[list[int]])
    assert_type(group(add.s(n, n) for n in range(3)) | xsum.step(), Call[int])
    assert_type(chain(add.s(1, 2), add.step(1), neg.step()), Call[float])
    assert_type(xsum.s([1]) | add.step(2) | neg.step(), Call[float])

    assert_type(neg.map([1, 2]), Call[list[float]])
    assert_type(group(add.s(1, 2), policy="collect"), Call[list[int | Failure]])
    assert_type(group(add.s(1, 2), policy="collect") | report.step(), Call[str])
    assert_type(chain(add.s(1, 2), add.step(1), add.step(2), neg.step()), Call[float])

    add.step(8).s("1")  # type: ignore[arg-type]
    neg.map(["1"])  # type: ignore[list-item]
    chain(neg.s(1), add.step(1))  # type: ignore[misc]
    group(add.s(1, 2), policy="collect") | xsum.step()  # type: ignore[operator]
    group(add.s(1, 2), policy="ignore")  # type: ignore[call-overload]
    add.s(1)  # type: ignore[call-arg]
    add.s(1, "2")  # type: ignore[arg-type]
    add.step("8")  # type: ignore[arg-type]
    add.s(1, 2) | xsum.step()  # type: ignore[operator]
    neg.s(1) | add.step(1)  # type: ignore[operator]
