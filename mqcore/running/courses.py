"""How the messages of one consumer are run: the handler's own way, and those of its profiles.

    message ─ profile= ─► Profile ─► Course: mode, time limit, chain of middlewares ─► executor

A consumer without profiles has one course, made once.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass
from functools import partial
from types import EllipsisType
from typing import TYPE_CHECKING

from mqcore.clock import seconds
from mqcore.errors import ConfigurationError
from mqcore.middleware import Middleware, Timeout
from mqcore.rules.profile import Mode, Profile
from mqcore.running.executors import Executor, executor_for

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mqcore.clock import Clock
    from mqcore.consuming.context import Context
    from mqcore.consuming.held import HeldDelivery
    from mqcore.messages.codec import Codecs
    from mqcore.messages.message import Message
    from mqcore.running.handlers import HandlerSpec

__all__ = ["Course", "Courses"]

_MOST = 1_000
"""Courses that are kept: a function may give each message a time limit of its own."""


@dataclass(frozen=True, slots=True)
class Course:
    """One way to run a message: where, for how long at most, and through which middlewares."""

    mode: Mode
    timeout: float | None
    call: Callable[[Context], Awaitable[object]]


class Courses:
    """The courses of one consumer, and the executors that they end in, one for each mode.

    To a runner whose messages have profiles it is what a single executor is to another runner.
    """

    def __init__(
        self,
        spec: HandlerSpec,
        clock: Clock,
        codecs: Codecs,
        *,
        middleware: Sequence[Middleware],
        freed: Callable[[], None],
        has_sessions: bool = False,
    ) -> None:
        """`freed` is called when a stuck slot may be free again; `has_sessions`: see `once=`."""
        self._spec = spec
        self._clock = clock
        self._middleware = [
            each for each in middleware if type(each).handle is not Middleware.handle
        ]
        self._executors: dict[Mode, Executor] = {
            each.mode: executor_for(each, clock, codecs, freed, has_sessions=has_sessions)
            for each in (spec, *spec.others)
        }
        self._handed: Counter[Mode] = Counter()
        self._made: dict[tuple[Mode, float | None], Course] = {}
        self.executor = self._executors[spec.mode]
        """That of the consumer's own handler."""
        self.own = self._course(spec.mode, spec.timeout)
        """That of a message without a profile."""

    @property
    def stuck(self) -> int:
        """How many slots are taken by runs that are not waited for any more."""
        return sum(executor.stuck for executor in self._executors.values())

    async def start(self) -> None:
        """Make ready. Raises `ConfigurationError` when a handler cannot run in its mode."""
        for executor in self._executors.values():
            await executor.start()

    async def ready(self, _handed: int, /) -> None:
        """Return at once: which executor the next message needs is not known; see `enter`."""

    def resize(self, concurrency: int) -> None:
        """Run at most so many messages of each mode at once from now on."""
        for executor in self._executors.values():
            executor.resize(concurrency)

    async def close(self) -> None:
        """End what is idle, and kill what can be killed."""
        await asyncio.gather(*(executor.close() for executor in self._executors.values()))

    def choose(self, message: Message) -> Profile | None:
        """Return the profile of a message. Raises what the user's function raises."""
        assert self._spec.profile is not None  # noqa: S101 - it is called for no other consumer
        profile = self._spec.profile(message)
        if profile is None:
            return None

        where = f"handler {self._spec.name} of queue {self._spec.queue.name!r}"
        if not isinstance(profile, Profile):
            raise ConfigurationError(
                f"{where}: profile= returned {type(profile).__name__} for message {message.id}; "
                "return a Profile(...), or None for the consumer's own settings"
            )
        if profile.mode is not None and profile.mode not in self._executors:
            raise ConfigurationError(
                f"{where}: the profile of message {message.id} names mode {profile.mode!r}, for "
                f"which the consumer has no handler. Add one: modes={{{profile.mode!r}: ...}}"
            )
        return profile

    def of(self, held: HeldDelivery) -> Course:
        """Return the course of a message."""
        profile = held.profile
        if profile is None:
            return self.own

        mode = self._spec.mode if profile.mode is None else profile.mode
        timeout = profile.timeout
        if isinstance(timeout, EllipsisType):
            return self._course(mode, self._spec.timeout)
        return self._course(mode, None if timeout is None else seconds(timeout))

    def _course(self, mode: Mode, timeout: float | None) -> Course:
        course = self._made.get((mode, timeout))
        if course is None:
            if len(self._made) >= _MOST:
                self._made.clear()
            course = self._made[mode, timeout] = Course(mode, timeout, self._chain(mode, timeout))
        return course

    def _chain(self, mode: Mode, timeout: float | None) -> Callable[[Context], Awaitable[object]]:
        """Nest the middlewares that override `handle`, the time limit innermost."""
        around = list(self._middleware)
        if timeout is not None:
            around.append(Timeout(timeout, self._clock))
        call: Callable[[Context], Awaitable[object]] = self._executors[mode].run
        for each in reversed(around):
            call = partial(_with_next, each, call)
        return call

    async def enter(self, course: Course, halted: asyncio.Event) -> None:
        """Take a place in the course's executor. Returns early when the consumer is halted.

        The mode of a message is known when it has come. So a process is started then, before the
        message has begun: one that dies at its start costs no attempt.
        """
        mode = course.mode
        if mode == "process":
            ready = asyncio.ensure_future(self._executors[mode].ready(self._handed[mode]))
            stop = asyncio.ensure_future(halted.wait())
            try:
                await asyncio.wait({ready, stop}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stop.cancel()
                if not ready.done():
                    ready.cancel()
            if not ready.cancelled() and ready.done():
                ready.result()
        self._handed[mode] += 1

    def leave(self, course: Course) -> None:
        """Leave what `enter` has taken."""
        self._handed[course.mode] -= 1


async def _with_next(
    middleware: Middleware, call_next: Callable[[Context], Awaitable[object]], ctx: Context
) -> object:
    return await middleware.handle(ctx, call_next)
