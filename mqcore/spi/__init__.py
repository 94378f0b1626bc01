"""The seam: what a backend implements, and everything of mqcore that it may import.

A driver moves bytes. It answers with an outcome for each item of a batch, and it *classifies* its
exceptions when core asks. It never repeats a request that may have taken effect, never wraps an
error, and never decides what becomes of a message. One instance serves one event loop; core may
open several, for example a second one that renews leases from a thread.

One message through the seam: `publish([Outgoing])` stores it and answers `Stored`.
`subscribe(queue)` returns a Subscription whose `receive` hands the message out as a `Delivery`.
`settle([Ack])` removes it. Core does the rest.

| module | holds |
| --- | --- |
| `backend` | `Backend` with its 6 methods and `Subscription` with its 3: a minimal driver |
| `outcomes` | the answers to a batch, and the kinds of errors |
| `optional` | a `Supports…` protocol for each thing that only some brokers can do |
| `enlisting` | publishing inside a transaction of the application, for a backend in a database |
| `toolbox` | what several drivers need: comparing specs, overflow, expiry, hosts, TLS |
| `inbox` | what records which messages were handled, for consumers with `once=` |
| `blocking` | the adapter for a client library that blocks |

All names can be imported from `mqcore.spi`.
"""

from mqcore.clock import Clock, SystemClock
from mqcore.errors import (
    ConfigurationError,
    ConnectionLost,
    DurabilityUnavailable,
    QueueNotFound,
    TopologyMismatch,
)
from mqcore.messages.delivery import Ack, Delivery, Move, Outgoing, Release, Route, Settlement
from mqcore.messages.message import (
    Death,
    Message,
    Reason,
    new_id,
    pack,
    unpack,
    unpack_fields,
)
from mqcore.rules.capabilities import Capabilities, Capability, Durability, Level, Support
from mqcore.rules.routing import Binding
from mqcore.spi.backend import (
    SPI_VERSION,
    Backend,
    Options,
    QueueSpec,
    Role,
    Subscription,
    hookimpl,
)
from mqcore.spi.blocking import BlockingBackend, BlockingDriver
from mqcore.spi.enlisting import SupportsEnlist, Transaction
from mqcore.spi.inbox import (
    BlockingInboxBatch,
    BlockingInboxTransaction,
    HoldsUp,
    Inbox,
    InboxBatch,
    InboxEntry,
    InboxTransaction,
    Recorded,
    SupportsInbox,
    SupportsJoin,
)
from mqcore.spi.optional import (
    Alterations,
    Entry,
    QueueCounts,
    SupportsAlter,
    SupportsBind,
    SupportsBrowse,
    SupportsCount,
    SupportsDelete,
    SupportsDiagnose,
    SupportsExists,
    SupportsPause,
    SupportsProof,
    SupportsPurge,
    SupportsRenew,
    SupportsResize,
    SupportsStart,
    SupportsSweep,
    SupportsTake,
    SupportsUnwrap,
)
from mqcore.spi.outcomes import (
    DONE,
    STALE,
    STORED,
    Done,
    ErrorKind,
    Failed,
    Outcome,
    Settled,
    Stale,
    Stored,
    Unknown,
)
from mqcore.spi.toolbox import (
    HIDDEN_ROLES,
    check_router_kinds,
    check_spec,
    expiry_of,
    mismatch,
    not_alterable,
    overflowed,
    quarantine_of,
    router_mismatch,
    split_hosts,
    split_url,
    tls_context,
)

__all__ = [
    "DONE",
    "HIDDEN_ROLES",
    "SPI_VERSION",
    "STALE",
    "STORED",
    "Ack",
    "Alterations",
    "Backend",
    "Binding",
    "BlockingBackend",
    "BlockingDriver",
    "BlockingInboxBatch",
    "BlockingInboxTransaction",
    "Capabilities",
    "Capability",
    "Clock",
    "ConfigurationError",
    "ConnectionLost",
    "Death",
    "Delivery",
    "Done",
    "Durability",
    "DurabilityUnavailable",
    "Entry",
    "ErrorKind",
    "Failed",
    "HoldsUp",
    "Inbox",
    "InboxBatch",
    "InboxEntry",
    "InboxTransaction",
    "Level",
    "Message",
    "Move",
    "Options",
    "Outcome",
    "Outgoing",
    "QueueCounts",
    "QueueNotFound",
    "QueueSpec",
    "Reason",
    "Recorded",
    "Release",
    "Role",
    "Route",
    "Settled",
    "Settlement",
    "Stale",
    "Stored",
    "Subscription",
    "Support",
    "SupportsAlter",
    "SupportsBind",
    "SupportsBrowse",
    "SupportsCount",
    "SupportsDelete",
    "SupportsDiagnose",
    "SupportsEnlist",
    "SupportsExists",
    "SupportsInbox",
    "SupportsJoin",
    "SupportsPause",
    "SupportsProof",
    "SupportsPurge",
    "SupportsRenew",
    "SupportsResize",
    "SupportsStart",
    "SupportsSweep",
    "SupportsTake",
    "SupportsUnwrap",
    "SystemClock",
    "TopologyMismatch",
    "Transaction",
    "Unknown",
    "check_router_kinds",
    "check_spec",
    "expiry_of",
    "hookimpl",
    "mismatch",
    "new_id",
    "not_alterable",
    "overflowed",
    "pack",
    "quarantine_of",
    "router_mismatch",
    "split_hosts",
    "split_url",
    "tls_context",
    "unpack",
    "unpack_fields",
]
