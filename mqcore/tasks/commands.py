"""Commands to a worker about its tasks; see `mqcore.control`."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from mqcore.errors import ConfigurationError
from mqcore.rules.checks import check_seconds
from mqcore.tasks.limits import Rate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mqcore.control.commands import Extension
    from mqcore.tasks.api import Tasks

__all__ = ["task_commands"]


def task_commands(tasks: Tasks) -> Mapping[str, Extension]:
    """Return the commands that these tasks execute."""
    return {"time_limit": partial(_time_limit, tasks), "rate": partial(_rate, tasks)}


def _rate(tasks: Tasks, arguments: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Change how often a task starts (T10). `count` in `per` seconds; None for no limit.

    The keys, the burst and the name of the task's own rate stay, also after no limit. A rate holds
    over all workers, so all of them should get the command.
    """
    task = tasks.find(str(arguments.get("task")))
    if task is None:
        return None
    count, per = arguments.get("count"), arguments.get("per", 1.0)
    if count is None:
        task.rate = None
        return {"task": task.name, "rate": None}
    if tasks.store is None:
        raise ConfigurationError(f"command 'rate' of task {task.name!r}: a rate needs a store")
    own = task.rate or task.own_rate
    task.rate = Rate(count, per) if own is None else replace(own, count=count, per=per)
    return {"task": task.name, "rate": f"{count} in {per:g} s"}


def _time_limit(tasks: Tasks, arguments: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Change the time limits of a task in this worker, for the runs that begin from now on.

    `timeout` and `soft_timeout` are seconds, or None for no limit. What is left out stays.
    """
    task = tasks.find(str(arguments.get("task")))
    if task is None:
        return None
    where = f"command 'time_limit' of task {task.name!r}"
    limits = {name: arguments[name] for name in ("timeout", "soft_timeout") if name in arguments}
    for name, value in limits.items():
        if value is not None:
            check_seconds(name, value, where)
    if "soft_timeout" in limits and task.mode == "process":
        raise ConfigurationError(
            f"{where}: a task with process=True takes its soft_timeout from the code. Change it "
            "there, or change its timeout"
        )
    for name, value in limits.items():
        setattr(task, name, value)
    return {"task": task.name, "timeout": task.timeout, "soft_timeout": task.soft_timeout}
