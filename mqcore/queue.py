"""`Queue`: the description of a queue, with the type of its payload and its settings.

It holds no connection, so one module-level constant serves every broker and every process.
Declaring it creates three queues in one batch: the queue, its dead-letter queue, and the
quarantine `<queue>.quarantine` (G4).
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    Protocol,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)

from mqcore.errors import ConfigurationError
from mqcore.messages.codec import Payload
from mqcore.rules.checks import (
    check_count,
    check_flag,
    check_options,
    check_seconds,
    check_text,
    described,
)
from mqcore.rules.retry import RetryPolicy
from mqcore.spi import QueueSpec

if TYPE_CHECKING:
    from datetime import timedelta

    from pydantic import TypeAdapter

    from mqcore.rules.capabilities import Durability

__all__ = [
    "DLQ",
    "QUARANTINE",
    "RESERVED_PREFIXES",
    "Named",
    "Queue",
    "QueueOptions",
    "check_queue_name",
    "name_of",
    "payload_of",
    "queue_name",
]

T = TypeVar("T")
DLQ, QUARANTINE = ".dlq", ".quarantine"
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]{0,199}")
RESERVED_PREFIXES = ("mq.", "amq.")
"""Names that begin with these belong to mqcore and the brokers; they cannot be declared."""


def check_queue_name(name: str, what: str = "queue") -> str:
    """Return a name; `ConfigurationError` unless it is 1 to 200 of `A-Z a-z 0-9 .

    _ : -`, not beginning with `.`, `:` or `-`.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        rule = "1 to 200 characters of A-Z a-z 0-9 . _ : -, beginning with a letter, a digit or _"
        raise ConfigurationError(f"{what} name {name!r:.240} is not usable: {rule}")
    return name


class Named(Protocol):
    """A `Queue` or a `Router`: a thing with a name on the broker."""

    name: str


def name_of(target: Named | str) -> str:
    """Return the name of a queue or router that is given as an object or by its name."""
    return target if isinstance(target, str) else target.name


def queue_name(queue: Queue[Any] | str, where: str) -> str:
    """Return the name of a queue that a user gives as an object or by its name.

    Raises `ConfigurationError` for anything else. `where` begins its text.
    """
    if isinstance(queue, (Queue, str)):
        return name_of(queue)
    raise ConfigurationError(
        f"{where} takes a Queue(...) or the name of a queue, not {described(queue)}"
    )


class QueueOptions(TypedDict, total=False):
    """The settings of a queue. All may be left out.

    The settings file may override all of them but `codec` and `declare`.

    `ttl`: seconds that a message lives after its publish (G6). `max_length`: how many ready
    messages the queue holds, and `overflow`: what happens to further ones, `"reject"` or
    `"dead_letter"` (G12). `dead_letter`: the name of the dead-letter queue, `<queue>.dlq` by
    default, or None or False for none (G11). `retention`: seconds that the dead-letter queue keeps
    a message. `retry`: the policy of its consumers (G10). `codec`: the name of the codec; by
    default the payload's type decides. `declare=False`: use a queue that exists, and only check its
    settings. `temporary=True`: the queue ends with the connection that declared it, and its
    bindings with it (G15). It has no dead-letter queue.
    """

    ttl: float | timedelta | None
    max_length: int | None
    overflow: Literal["reject", "dead_letter"]
    dead_letter: str | Literal[False] | None
    retention: float | timedelta | None
    retry: RetryPolicy | None
    codec: str | None
    declare: bool
    temporary: bool


class Queue(Generic[T]):
    """A queue that carries payloads of one type.

    `Queue("orders", Order)` carries what pydantic validates as `Order`; `Queue("raw")` carries
    bytes. `payload` may be a type or a `TypeAdapter`. Raises `ConfigurationError` for a bad name or
    setting.
    """

    @overload
    def __init__(self: Queue[bytes], name: str, **options: Unpack[QueueOptions]) -> None: ...
    @overload
    def __init__(
        self, name: str, payload: type[T] | TypeAdapter[T], **options: Unpack[QueueOptions]
    ) -> None: ...
    def __init__(self, name: str, payload: Any = bytes, **options: Unpack[QueueOptions]) -> None:
        self.name = check_queue_name(name)
        check_options(options, QueueOptions, f"queue {name!r}")
        check_flag("declare", options.get("declare", True), f"queue {name!r}")
        if (codec := options.get("codec")) is not None:
            check_text("codec", codec, f"queue {name!r}")
        if options.get("dead_letter") is False:  # as the settings file says it
            options["dead_letter"] = None
        self.options = options
        self.payload: Payload[T] = payload_of(f"queue {name!r}", payload, options.get("codec"))
        self.ttl = _seconds("ttl", options.get("ttl"), name)
        self.max_length = options.get("max_length")
        self.overflow: Literal["reject", "dead_letter"] = options.get("overflow", "reject")
        self.retention = _seconds("retention", options.get("retention"), name)
        self.retry = options.get("retry")
        self.declare = options.get("declare", True)
        self.temporary = options.get("temporary", False)
        check_flag("temporary", self.temporary, f"queue {name!r}")
        own = None if self.temporary else name if name.endswith(DLQ) else name + DLQ
        letters = options.get("dead_letter", own)
        self.dead_letter: str | None = None if letters is False else letters
        self._check()

    def _check(self) -> None:
        name = self.name
        if self.declare and (
            name.endswith((DLQ, QUARANTINE)) or name.startswith(RESERVED_PREFIXES)
        ):
            raise ConfigurationError(
                f"queue {name!r}: names that end in {DLQ!r} or {QUARANTINE!r}, or begin with 'mq.' "
                "or 'amq.', are reserved for mqcore and the brokers. Choose another name, or use "
                "declare=False for a queue that exists"
            )

        if self.temporary and (self.dead_letter is not None or not self.declare):
            raise ConfigurationError(
                f"queue {name!r}: temporary=True does not go with dead_letter= or declare=False: "
                "the queue ends with the connection that declares it. Leave them out"
            )

        if self.dead_letter is not None:
            check_queue_name(self.dead_letter, f"queue {name!r}: dead-letter queue")
            if self.dead_letter.endswith(QUARANTINE):
                raise ConfigurationError(
                    f"queue {name!r}: dead_letter={self.dead_letter!r} is a quarantine's name; "
                    "choose another"
                )
            if self.dead_letter == name and self.declare:
                raise ConfigurationError(f"queue {name!r} cannot be its own dead-letter queue")

        if self.max_length is not None:
            check_count("max_length", self.max_length, f"queue {name!r}")
        if self.retry is not None and not isinstance(self.retry, RetryPolicy):
            raise ConfigurationError(
                f"queue {name!r}: retry={self.retry!r:.60} is not a RetryPolicy; give "
                "RetryPolicy(max_attempts=…)"
            )

        if self.overflow not in ("reject", "dead_letter"):
            raise ConfigurationError(
                f"queue {name!r}: overflow={self.overflow!r} is unknown; it is 'reject' or "
                "'dead_letter'"
            )

        if self.overflow == "dead_letter" and self.dead_letter is None:
            raise ConfigurationError(
                f"queue {name!r}: overflow='dead_letter' needs a dead-letter queue, and "
                "dead_letter=None says that there is none"
            )

    def __repr__(self) -> str:
        """Name and payload type, as in the source."""
        return f"Queue({self.name!r}, {self.payload.name})"

    @property
    def quarantine(self) -> str | None:
        """The queue from which suspected messages run alone (G4).

        None for a dead-letter queue and a temporary one.
        """
        has_none = self.temporary or self.dead_letter == self.name
        return None if has_none else self.name + QUARANTINE

    def configured(self, **options: Unpack[QueueOptions]) -> Queue[T]:
        """Return the queue with these settings in place of its own."""
        if not options:
            return self
        merged: QueueOptions = {**self.options, **options}
        queue: Queue[T] = Queue(self.name, self.payload.adapter, **merged)
        queue.payload.name, queue.payload.kind = self.payload.name, self.payload.kind
        return queue

    def specs(self, durability: Durability | None = None) -> list[QueueSpec]:
        """Return what to declare: the queue, its quarantine and its dead-letter queue."""
        main = QueueSpec(
            name=self.name,
            ttl=self.ttl,
            max_length=self.max_length,
            overflow=self.overflow,
            dead_letter=self.dead_letter,
            durability=durability,
        )
        if self.temporary:
            return [replace(main, role="temporary", durability=None)]

        specs = [
            main,
            replace(
                main,
                name=self.name + QUARANTINE,
                role="quarantine",
                ttl=None,
                max_length=None,
                overflow="reject",
            ),
        ]
        if self.dead_letter is not None:
            dead = QueueSpec(
                name=self.dead_letter,
                role="dead_letter",
                retention=self.retention,
                durability=durability,
            )
            specs.append(dead)

        return specs


def payload_of(where: str, payload: Any, codec: str | None = None) -> Payload[Any]:
    """Return the payload of a queue or router. `where` begins the text of an error."""
    try:
        return Payload(payload, codec)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}: {error}") from None


def _seconds(name: str, value: float | timedelta | None, queue: str) -> float | None:
    return None if value is None else check_seconds(name, value, f"queue {queue!r}")
