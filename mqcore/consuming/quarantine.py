"""The quarantine of one receiver: which suspect may run, and when the quarantine is asked (G4).

A suspect is kept only when it can run at once, alone in its worker. One that merely waited here
would count as started if this process died. So it goes back to the quarantine, not counted, and is
asked for again when the isolation lock is ours.

    idle ─ a suspect cannot run ─► waiting ─ lock entered ─► reserved ─ asked ─► asking ─► idle
                                      └─ now and then, is it still there? ─► checking
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING, Protocol

from mqcore.consuming.isolation import Entry
from mqcore.consuming.subscription import RECEIVE_TIMEOUT

if TYPE_CHECKING:
    from mqcore.clock import Clock
    from mqcore.consuming.held import HeldDelivery
    from mqcore.consuming.isolation import IsolationLock

__all__ = ["Quarantine", "QuarantineState"]

_SUSPECT_TIMEOUT = 0.5
"""Seconds to wait for a suspect that was put back: it may have gone or expired."""
_CHECK_EVERY = 5.0
"""Seconds between two checks whether a suspect that was put back is still there."""


class QuarantineState(Enum):
    """What is known of the quarantine, and whether the isolation lock is ours for it."""

    IDLE = "idle"
    """Nothing is known to be in it. It is asked with a long timeout."""
    WAITING = "waiting"
    """A suspect was put back. The lock is not ours."""
    CHECKING = "checking"
    """As waiting, and a receive is under way to see whether the suspect is still there."""
    RESERVED = "reserved"
    """The lock is ours, and the quarantine is to be asked now."""
    ASKING = "asking"
    """The lock is ours, and a receive is under way for the suspect."""


_LOCKED = {QuarantineState.RESERVED, QuarantineState.ASKING}
_AWAITED = {QuarantineState.WAITING, QuarantineState.CHECKING}


class _Host(Protocol):
    """What the quarantine uses of its receiver."""

    @property
    def stopped(self) -> bool: ...

    @property
    def has_callers(self) -> bool: ...

    @property
    def has_ordinary(self) -> bool: ...

    @property
    def failure(self) -> BaseException | None: ...

    def wake(self) -> None: ...

    def release(self, held: HeldDelivery) -> None: ...

    def leave(self, held: HeldDelivery) -> None: ...


class Quarantine:
    """The suspects of one queue, one at a time."""

    def __init__(self, host: _Host, isolation: IsolationLock, clock: Clock) -> None:
        """`host` is the receiver that hands out what this one keeps."""
        self.state = QuarantineState.IDLE
        self._host = host
        self._isolation = isolation
        self._clock = clock
        self._suspect: HeldDelivery | None = None
        self._may_ask = asyncio.Event()
        self._may_ask.set()

    @property
    def is_awaited(self) -> bool:
        """Whether a suspect is known to be in the quarantine and has to wait for the lock."""
        return self.state in _AWAITED

    def _change(self, state: QuarantineState) -> None:
        """Change the state; the quarantine is asked at once unless its suspect has to wait."""
        self.state = state
        if state in _AWAITED:
            self._may_ask.clear()
        else:
            self._may_ask.set()

    def accept(self, held: HeldDelivery) -> None:
        """Keep a suspect that has come in when it can run at once, or put it back."""
        may_run = self.state in _LOCKED or (self._host.has_callers and self._enter())
        if not may_run:
            self._put_back(held)
            return

        self._change(QuarantineState.IDLE)
        held.entry = Entry.EXCLUSIVE
        if held.rules.notes_starts:
            held.subscription.spawn(self._note_then_keep(held))
        else:
            self._keep(held)

    async def _note_then_keep(self, held: HeldDelivery) -> None:
        """Note the start at the broker before it happens: only what has started counts (G4)."""
        try:
            is_noted = await held.subscription.note_start(held)
            if not (is_noted or self._host.stopped):
                # A backend that refuses the note must not be asked again without a pause.
                await self._clock.sleep(_SUSPECT_TIMEOUT)
        except asyncio.CancelledError:  # the receiver is closed, and others of this broker go on
            self._host.leave(held)
            raise

        if held.is_gone:
            self._host.leave(held)
        elif is_noted and not self._host.stopped:
            self._keep(held)
            if not self._host.has_callers:
                self.put_all_back()
        else:
            self._put_back(held)

    def _keep(self, held: HeldDelivery) -> None:
        self._suspect = held
        self._host.wake()

    def _put_back(self, held: HeldDelivery) -> None:
        self._change(QuarantineState.WAITING)
        self._host.release(held)

    def _enter(self) -> bool:
        """Enter the lock alone, unless it is an ordinary message's turn."""
        if self._host.failure is not None:
            return False  # nothing is handed out any more, and others must not wait for it
        if self._isolation.ordinary_next and self._host.has_ordinary:
            return False
        return self._isolation.enter_exclusive(self)

    def _leave(self) -> None:
        """Leave the lock when it is ours and no suspect has come yet."""
        if self.state in _LOCKED:
            self._change(QuarantineState.IDLE)
            self._isolation.leave(Entry.EXCLUSIVE)

    def take(self) -> HeldDelivery | None:
        """Hand over the suspect that is kept, if there is one."""
        suspect, self._suspect = self._suspect, None
        return suspect

    def reserve(self) -> None:
        """Enter the lock for a suspect that waits in the quarantine, and ask for it."""
        if self.is_awaited and self._enter():
            self._change(QuarantineState.RESERVED)

    def put_all_back(self) -> None:
        """The last caller has gone: put back the suspect that is kept, and leave the lock."""
        if self.state in _LOCKED:
            self._leave()
            self._change(QuarantineState.WAITING)

        if (suspect := self.take()) is None:
            return
        if suspect.is_gone:
            self._host.leave(suspect)
        else:
            self._put_back(suspect)

    def stop(self) -> HeldDelivery | None:
        """Leave the lock, stop waiting for it, and hand over the suspect that is kept."""
        suspect = self.take()
        self.give_up()
        return suspect

    def give_up(self) -> None:
        """Leave the lock, and stop waiting for it."""
        self._isolation.give_up(self)
        self._leave()

    async def permit(self) -> float:
        """Wait until the quarantine may be asked; return for how many seconds.

        Long where nothing is known of it, and short for a suspect that was put back: it may be gone
        by now.
        """
        if self.state in {QuarantineState.CHECKING, QuarantineState.ASKING}:  # it has not come
            self.give_up()
            self._change(QuarantineState.IDLE)

        with suppress(TimeoutError):
            async with self._clock.timeout(_CHECK_EVERY):
                await self._may_ask.wait()

        if self.state is QuarantineState.RESERVED:
            self._change(QuarantineState.ASKING)
        elif self.state is QuarantineState.WAITING:
            self._change(QuarantineState.CHECKING)
        return RECEIVE_TIMEOUT if self.state is QuarantineState.IDLE else _SUSPECT_TIMEOUT
