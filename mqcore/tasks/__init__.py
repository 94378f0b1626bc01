"""Tasks on any broker: results, workflows and schedules, with one table that holds the truth.

`Tasks` is where to start. `model` is what is stored, `transitions` is what may happen to it, and
`store` is where it is stored.
"""

from mqcore.tasks.api import Registration, Tasks
from mqcore.tasks.calls import Call, Partial, Step, chain, group
from mqcore.tasks.context import TaskContext
from mqcore.tasks.errors import (
    DuplicateTask,
    ResultTimeout,
    SoftTimeout,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    UnknownTask,
    WouldDeadlock,
)
from mqcore.tasks.job import Change, Job
from mqcore.tasks.limits import Rate, Slots
from mqcore.tasks.model.states import State
from mqcore.tasks.schedules.api import Scheduled, ScheduleOptions, TaskSchedules
from mqcore.tasks.schedules.definition import Missed, Overlap
from mqcore.tasks.schedules.errors import InvalidSchedule, UnknownSchedule
from mqcore.tasks.schedules.manage import ScheduleEntry
from mqcore.tasks.schedules.triggers import Cron, Every, Solar, cron, every, solar
from mqcore.tasks.store.values import Failure
from mqcore.tasks.task import AsyncTask, SendOptions, Task, TaskOptions, Unique

__all__ = [
    "AsyncTask",
    "Call",
    "Change",
    "Cron",
    "DuplicateTask",
    "Every",
    "Failure",
    "InvalidSchedule",
    "Job",
    "Missed",
    "Overlap",
    "Partial",
    "Rate",
    "Registration",
    "ResultTimeout",
    "ScheduleEntry",
    "ScheduleOptions",
    "Scheduled",
    "SendOptions",
    "Slots",
    "SoftTimeout",
    "Solar",
    "State",
    "Step",
    "Task",
    "TaskCancelled",
    "TaskContext",
    "TaskExpired",
    "TaskFailed",
    "TaskOptions",
    "TaskSchedules",
    "Tasks",
    "Unique",
    "UnknownSchedule",
    "UnknownTask",
    "WouldDeadlock",
    "chain",
    "cron",
    "every",
    "group",
    "solar",
]
