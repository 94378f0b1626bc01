"""Everything that a plugin with a task store imports.

A store is a subclass of `TaskStore`, registered by a function marked with `hookimpl`. Inside its
transaction it calls `apply_changes` with its rows, which are a `Rows`. `mqcore contract run-store
URL` says what is missing. The store in memory, `mqcore.tasks.store.memory`, is an example.
"""

from mqcore.spi import Clock, ConfigurationError, SystemClock, hookimpl
from mqcore.spi.blocking import CallNotBegun, CallNotEnded, CallThread
from mqcore.tasks.model import changes, outcomes
from mqcore.tasks.model.changes import Change, roots_of
from mqcore.tasks.model.limits import RateLimit, SlotLimit
from mqcore.tasks.model.nodes import (
    FOLLOWING,
    ON_DONE,
    ON_ERROR,
    CancelFlag,
    Kind,
    Node,
    Policy,
    child_id,
    replacement_id,
    root_of,
)
from mqcore.tasks.model.outcomes import Outcome
from mqcore.tasks.model.states import ENDED, LIVE, NEXT, NEXT_RUN, IllegalTransition, State
from mqcore.tasks.store.seam import (
    Announcement,
    Applied,
    Heartbeat,
    Pending,
    StoreError,
    SupportsAnnouncements,
    TaskStore,
)
from mqcore.tasks.transitions.apply import SEAL_WITHIN, apply_changes
from mqcore.tasks.transitions.rows import OutboxEntry, Rows, Schedule, message_key, slice_key
from mqcore.tasks.transitions.walk import SLICE

__all__ = [
    "ENDED",
    "FOLLOWING",
    "LIVE",
    "NEXT",
    "NEXT_RUN",
    "ON_DONE",
    "ON_ERROR",
    "SEAL_WITHIN",
    "SLICE",
    "Announcement",
    "Applied",
    "CallNotBegun",
    "CallNotEnded",
    "CallThread",
    "CancelFlag",
    "Change",
    "Clock",
    "ConfigurationError",
    "Heartbeat",
    "IllegalTransition",
    "Kind",
    "Node",
    "OutboxEntry",
    "Outcome",
    "Pending",
    "Policy",
    "RateLimit",
    "Rows",
    "Schedule",
    "SlotLimit",
    "State",
    "StoreError",
    "SupportsAnnouncements",
    "SystemClock",
    "TaskStore",
    "apply_changes",
    "changes",
    "child_id",
    "hookimpl",
    "message_key",
    "outcomes",
    "replacement_id",
    "root_of",
    "roots_of",
    "slice_key",
]
