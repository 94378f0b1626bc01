"""What `@app.consumer` registers: a handler, its queue and its settings, checked at import."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypedDict

from mqcore.clock import seconds
from mqcore.consuming.conclusions import ConclusionHook
from mqcore.defaults import CONCURRENCY, HANDLER_TIMEOUT, LEASE, LINGER, PREFETCH_PER_SLOT
from mqcore.errors import ConfigurationError
from mqcore.messages.message import Message
from mqcore.queue import DLQ, Queue, name_of
from mqcore.rules.checks import (
    check_count,
    check_duration,
    check_flag,
    check_options,
    check_seconds,
    check_text,
    closest,
)
from mqcore.rules.profile import MODES, Mode, Profile
from mqcore.rules.retry import AfterCrash, RetryPolicy, check_after_crash
from mqcore.running.signatures import Signature, handler_name

if TYPE_CHECKING:
    from datetime import timedelta

    from mqcore.messages.codec import Payload

__all__ = ["BatchOptions", "ConsumerOptions", "HandlerOptions", "HandlerSpec", "chosen_handlers"]


class _AnyHandler(TypedDict, total=False):
    retry: RetryPolicy
    concurrency: int
    prefetch: int
    timeout: float | timedelta | None
    lease: float
    after_crash: AfterCrash
    conclusion: ConclusionHook
    once: str | float | timedelta
    name: str


class ConsumerOptions(_AnyHandler, total=False):
    """How a handler is run.

    `retry`: the policy, in place of the queue's own (G10). `concurrency`: how many at once, 10.
    `prefetch`: how many messages may be held unsettled, twice the concurrency (G12). `timeout`:
    seconds for one run, 300, None for no limit (G4). `process`: run a blocking handler in a
    killable process a slot. `ack_first`: settle before the handler starts: at most once (G2).
    `profile`: a function of the message as it is stored, which may return a `Profile` for it: its
    own mode, time limit and retry policy. `modes`: handlers for the modes that profiles name beside
    the handler's own: `"async"`, `"thread"`, `"process"`.
    `lease`: seconds that a claim holds without renewal, 30 (G5). `after_crash`: `"isolate"` runs a
    message alone from the second time on that its consumer died, `"count"` takes each such death
    for a failed attempt and never isolates (G4). `conclusion`: an async function of a list of
    `Conclusion`, awaited before the final outcome of a message is settled. `once`: for how long a
    message that was handled is remembered, so that it is not handled again; `"24h"`, seconds or a
    timedelta; not set by default. `name`: for logs and metrics, the function's own by default;
    with `once`, what is remembered belongs to this name.
    """

    process: bool
    ack_first: bool
    profile: Callable[[Message], Profile | None]
    modes: Mapping[Mode, Callable[..., Any]]


class BatchOptions(_AnyHandler, total=False):
    """How a batch handler is run: as `ConsumerOptions`, and `linger`.

    `linger`: seconds to wait for more after the first item, 0.2.

    `process` and `ack_first` do not go with a batch, whose items are settled apart.
    """

    linger: float


class HandlerOptions(ConsumerOptions, BatchOptions, total=False):
    """All of them. `batch`: call with a list of up to so many items."""

    batch: int


@dataclass(frozen=True)
class HandlerSpec:
    """One registered handler.

    Raises `ConfigurationError` for a handler or setting that could not work.
    """

    queue: Queue[Any]
    call: Callable[..., Any]
    options: HandlerOptions
    mode: Mode = "async"
    takes_context: bool = False
    concurrency: int = CONCURRENCY
    prefetch: int = PREFETCH_PER_SLOT * CONCURRENCY
    timeout: float | None = HANDLER_TIMEOUT
    batch: int = 0
    linger: float = LINGER
    lease: float = LEASE
    after_crash: AfterCrash = "isolate"
    ack_first: bool = False
    conclusion: ConclusionHook | None = None
    once: float | None = None
    profile: Callable[[Message], Profile | None] | None = None
    others: tuple[HandlerSpec, ...] = ()
    """The handlers for other modes, one each."""
    name: str = ""
    retry: RetryPolicy | None = field(default=None)

    @property
    def payload(self) -> Payload[Any]:
        """What the queue carries."""
        return self.queue.payload

    @property
    def longest_hold(self) -> float:
        """How long a message may be held at most, in seconds.

        That is when every message that was fetched before it takes its whole time limit.
        """
        rounds = math.ceil(self.prefetch / (self.concurrency * max(self.batch, 1)))
        return math.inf if self.timeout is None else rounds * self.timeout

    def with_concurrency(self, concurrency: int) -> HandlerSpec:
        """Return the handler with another concurrency; its prefetch matches unless it was set."""
        options: HandlerOptions = {**self.options, "concurrency": concurrency, "name": self.name}
        return HandlerSpec.of(self.queue, self.call, options)

    def with_lease(self, lease: float) -> HandlerSpec:
        """Return the handler with another lease."""
        options: HandlerOptions = {**self.options, "lease": lease, "name": self.name}
        return HandlerSpec.of(self.queue, self.call, options)

    @classmethod
    def of(
        cls, queue: Queue[Any] | str, call: Callable[..., Any], options: HandlerOptions
    ) -> HandlerSpec:
        """Inspect a handler: its mode, parameters, and for a bare queue name its payload type."""
        name = check_text(
            "name", options.get("name", handler_name(call)), f"handler {handler_name(call)}"
        )
        where = f"handler {name} of queue {name_of(queue)!r}"
        check_options(options, HandlerOptions, where)
        _check_numbers(options, where)
        for flag in ("process", "ack_first"):
            check_flag(flag, options.get(flag, False), where)
        batch = options.get("batch", 0)
        signature = Signature.of(
            call, where, batched=bool(batch), process=bool(options.get("process"))
        )
        if isinstance(queue, str):
            queue = _queue_for(queue, signature, where)
        signature.check_payload(queue.payload.kind, where)
        concurrency = options.get("concurrency", CONCURRENCY)
        timeout = options.get("timeout", HANDLER_TIMEOUT)
        spec = cls(
            queue=queue,
            call=call,
            options=options,
            mode="process"
            if options.get("process")
            else "async"
            if signature.is_async
            else "thread",
            takes_context=signature.takes_context,
            concurrency=concurrency,
            prefetch=max(options.get("prefetch", PREFETCH_PER_SLOT * concurrency), batch),
            timeout=None if timeout is None else seconds(timeout),
            batch=batch,
            linger=seconds(options.get("linger", LINGER)),
            lease=seconds(options.get("lease", LEASE)),
            after_crash=check_after_crash(options.get("after_crash", "isolate"), where),
            ack_first=options.get("ack_first", False),
            conclusion=_checked_conclusion(options, where),
            once=check_duration("once", options["once"], where) if "once" in options else None,
            profile=options.get("profile"),
            others=_others(queue, options, where),
            name=name,
            retry=options.get("retry"),
        )

        spec._check(where)
        return spec

    def _check(self, where: str) -> None:
        checks = [
            (
                bool(self.batch) and self.takes_context,
                "a batch handler takes one list; each item in it has the facts",
            ),
            (
                bool(self.batch) and self.mode == "process",
                "a batch handler cannot run in a process: its items could not be settled there",
            ),
            (
                bool(self.batch) and self.ack_first,
                "a batch handler settles its items itself; ack_first does not go with it",
            ),
            (
                self.retry is not None and not isinstance(self.retry, RetryPolicy),
                f"retry={self.retry!r:.60} is not a RetryPolicy; give RetryPolicy(max_attempts=…)",
            ),
            (
                self.conclusion is not None and self.ack_first,
                _SETTLED_FIRST,
            ),
            (
                self.once is not None and self.ack_first,
                (
                    "once= records a message after its handler, and ack_first=True acknowledges it "
                    "before; leave one of them out"
                ),
            ),
            (self.mode == "process" and not _importable(self.call), _NESTED),
            (
                "linger" in self.options and not self.batch,
                "linger= is for batch handlers; give batch= too, or leave it out",
            ),
        ]

        for wrong, why in (*checks, *self._checks_of_profiles()):
            if wrong:
                raise ConfigurationError(f"{where}: {why}")

    def _checks_of_profiles(self) -> list[tuple[bool, str]]:
        return [
            (
                self.once is not None and bool(self.others),
                "once= does not go with modes=: its transaction is that of one handler",
            ),
            (
                self.profile is not None and (bool(self.batch) or not callable(self.profile)),
                "profile= is a function of one message, and does not go with a batch",
            ),
            (
                bool(self.others) and self.profile is None,
                "modes= has no effect without profile=, which chooses among them",
            ),
            (
                self.mode in [other.mode for other in self.others],
                f"modes= names {self.mode!r}, and this handler is of that mode itself",
            ),
        ]


_SETTLED_FIRST = (
    "conclusion= is awaited before a message is settled, and ack_first=True settles it before its "
    "handler starts. Leave one of them out"
)
_NESTED = (
    "process=True needs a function at the top level of a module: its process imports it by name"
)


def _check_numbers(options: HandlerOptions, where: str) -> None:
    for name in ("concurrency", "prefetch", "batch"):
        check_count(name, options.get(name, 1), where)
    check_seconds("lease", options.get("lease", LEASE), where)
    check_seconds("linger", options.get("linger", LINGER), where, zero=True)
    if (timeout := options.get("timeout", HANDLER_TIMEOUT)) is not None:  # None: without limit
        check_seconds("timeout", timeout, where)


def _others(queue: Queue[Any], options: HandlerOptions, where: str) -> tuple[HandlerSpec, ...]:
    """Return the handlers for other modes, as inspected as the consumer's own."""
    modes = options.get("modes", {})
    if not isinstance(modes, Mapping) or not set(modes) <= set(MODES):
        raise ConfigurationError(
            f"{where}: modes={modes!r:.100} is not usable; give a dict of handlers by mode: "
            f"{', '.join(MODES)}"
        )

    found = []
    for mode, call in modes.items():
        own: HandlerOptions = {**options, "process": mode == "process"}
        for name in ("profile", "modes", "name"):
            own.pop(name, None)  # type: ignore[misc]  # each of them may be left out
        other = HandlerSpec.of(queue, call, own)
        if other.mode != mode:
            raise ConfigurationError(
                f"{where}: modes= names {other.name} for {mode!r}, and it is a handler of mode "
                f"{other.mode!r}"
            )
        found.append(other)
    return tuple(found)


def _checked_conclusion(options: HandlerOptions, where: str) -> ConclusionHook | None:
    hook = options.get("conclusion")
    if hook is None or _is_async(hook):
        return hook
    raise ConfigurationError(
        f"{where}: conclusion={handler_name(hook)} is not usable; give an async function of one "
        "list of mqcore.Conclusion"
    )


def _is_async(call: object) -> bool:
    """Whether it is an async function, a partial of one, or an object that is called as one."""
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(
        getattr(call, "__call__", None)  # noqa: B004 - whether it is async, not whether it can be called
    )


def _importable(call: Callable[..., Any]) -> bool:
    """Whether another process can import it: not a lambda, not nested, not a bound method."""
    return inspect.isfunction(call) and "<" not in call.__qualname__


def _queue_for(name: str, signature: Signature, where: str) -> Queue[Any]:
    """Return the queue of a bare name; its payload type is the handler's annotation.

    An existing dead-letter queue is adopted, not declared.
    """
    if signature.unreadable:
        raise ConfigurationError(
            f"{where}: the annotation of {signature.first!r} cannot be read "
            f"({signature.unreadable}). "
            "Pass a Queue(...) with its type instead"
        )
    payload = bytes if signature.payload is None else signature.payload
    return Queue(name, payload, declare=not name.endswith(DLQ))


def chosen_handlers(
    app: str, specs: Sequence[HandlerSpec], queues: Sequence[str] | None
) -> list[HandlerSpec]:
    """Return the handlers of these queues, or all; `ConfigurationError` where one has none."""
    if queues is not None and not (
        isinstance(queues, (list, tuple, set, frozenset))
        and all(isinstance(name, str) for name in queues)
    ):
        raise ConfigurationError(
            f"worker of app {app!r}: queues={queues!r:.100} is not usable; give a list of names"
        )

    consumed = {spec.queue.name: spec for spec in specs}
    if not consumed:
        raise ConfigurationError(
            f"app {app!r} has no consumers: decorate a handler with @app.consumer(...)"
        )

    unknown = sorted(set(queues or ()) - set(consumed))
    if queues is not None and not queues:
        raise ConfigurationError(
            f"queues={queues!r} would consume nothing; app {app!r} consumes "
            f"{', '.join(sorted(consumed))}"
        )

    if unknown:
        close = closest(unknown[0], consumed)
        hint = f" (did you mean {close!r}?)" if close else ""
        raise ConfigurationError(
            f"app {app!r} does not consume {', '.join(unknown)}{hint}; it consumes "
            f"{', '.join(sorted(consumed))}"
        )

    return [spec for name, spec in consumed.items() if queues is None or name in queues]
