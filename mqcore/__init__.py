"""mqcore: one messaging library whose meaning is the same on every broker.

Describe queues, routers and handlers; connect to whichever broker the configuration names. Start
with `Queue`, `App` and `Broker.connect`. What each call promises is in `docs/semantics.md`,
guarantee by guarantee.
"""

from mqcore.admin.dead_letters import DeadLetter, DeadLetterFilter, DeadLetters, Redriven
from mqcore.app import App
from mqcore.broker import Broker
from mqcore.clock import Clock, SystemClock
from mqcore.config.fallback import Fallback
from mqcore.config.settings import Settings
from mqcore.connection.altering import AlterOptions
from mqcore.consuming.conclusions import Conclusion
from mqcore.consuming.consumer import Consumer, Received
from mqcore.consuming.context import BlockingContext, Context, DeliveryInfo
from mqcore.errors import (
    BackendNotFound,
    Blocked,
    BrokerError,
    ConfigurationError,
    ConnectionLost,
    DecodeError,
    DurabilityUnavailable,
    HandlerTimeout,
    LeaseLost,
    MessageError,
    MessageTooLarge,
    MqcoreError,
    Postpone,
    PublishFailed,
    PublishUnknown,
    QueueFull,
    QueueNotFound,
    Reject,
    RemoteError,
    RequestTimeout,
    Retry,
    TopologyMismatch,
    Unroutable,
    UnsupportedFeature,
    ValidationError,
)
from mqcore.events import Event
from mqcore.messages.message import Limits, Message, Reason
from mqcore.middleware import Middleware
from mqcore.publishing.options import PublishOptions, Receipt
from mqcore.publishing.producer import Producer
from mqcore.queue import Queue, QueueOptions
from mqcore.router import Router
from mqcore.rules.capabilities import Capabilities, Capability, Durability, Level, Support
from mqcore.rules.profile import Profile
from mqcore.rules.retry import Backoff, RetryPolicy, exponential, fixed, linear
from mqcore.rules.routing import Binding
from mqcore.running.handlers import BatchOptions, ConsumerOptions
from mqcore.session import ConnectOptions, Health, OutboxHealth, SpoolHealth
from mqcore.spi import Entry, QueueCounts
from mqcore.worker import Worker, WorkerOptions

__all__ = [
    "AlterOptions",
    "App",
    "BackendNotFound",
    "Backoff",
    "BatchOptions",
    "Binding",
    "Blocked",
    "BlockingContext",
    "Broker",
    "BrokerError",
    "Capabilities",
    "Capability",
    "Clock",
    "Conclusion",
    "ConfigurationError",
    "ConnectOptions",
    "ConnectionLost",
    "Consumer",
    "ConsumerOptions",
    "Context",
    "DeadLetter",
    "DeadLetterFilter",
    "DeadLetters",
    "DecodeError",
    "DeliveryInfo",
    "Durability",
    "DurabilityUnavailable",
    "Entry",
    "Event",
    "Fallback",
    "HandlerTimeout",
    "Health",
    "LeaseLost",
    "Level",
    "Limits",
    "Message",
    "MessageError",
    "MessageTooLarge",
    "Middleware",
    "MqcoreError",
    "OutboxHealth",
    "Postpone",
    "Producer",
    "Profile",
    "PublishFailed",
    "PublishOptions",
    "PublishUnknown",
    "Queue",
    "QueueCounts",
    "QueueFull",
    "QueueNotFound",
    "QueueOptions",
    "Reason",
    "Receipt",
    "Received",
    "Redriven",
    "Reject",
    "RemoteError",
    "RequestTimeout",
    "Retry",
    "RetryPolicy",
    "Router",
    "Settings",
    "SpoolHealth",
    "Support",
    "SystemClock",
    "TopologyMismatch",
    "Unroutable",
    "UnsupportedFeature",
    "ValidationError",
    "Worker",
    "WorkerOptions",
    "exponential",
    "fixed",
    "linear",
]
