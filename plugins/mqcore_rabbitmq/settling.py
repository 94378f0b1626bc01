"""Letting go: acknowledgements at once, and what needs a successor when that is stored (G3).

    settle ─┬─ Ack ───────────────────────────────────────────► acknowledged
            └─ Move, Release ─► stored, confirmed one by one ──► acknowledged, each as soon as its own successor is there

Confirm and acknowledgement go by two connections, so a successor may be delivered before its source has been let go. Whoever died
of it then would leave two copies: until the source is gone nobody in this process gets the successor.
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING

from pika import BasicProperties

from mqcore.spi import DONE, STALE, Ack, Message, Move, Outcome, Release, Settled, Settlement, Stored
from mqcore_rabbitmq.confirms import Sending
from mqcore_rabbitmq.window import Held, Window
from mqcore_rabbitmq.wire import HOP, LINEAGE, message_of, released

if TYPE_CHECKING:
    from mqcore_rabbitmq.backend import RabbitBackend

__all__ = ["Passing", "Settling"]

_Name = tuple[str, object, object]


class Passing:
    """Successors that are under way, by id, hop and lineage, and who waits to take them in."""

    def __init__(self) -> None:
        self._waiting: dict[_Name, list[Callable[[], None]]] = {}

    def begin(self, message: Message) -> _Name:
        """Hold up this copy until `end`."""
        name = (message.id, str(message.hop), message.lineage or None)
        self._waiting.setdefault(name, [])
        return name

    def holds_up(self, properties: BasicProperties, take_in: Callable[[], None]) -> bool:
        """Whether a delivery has to wait; `take_in` is called when it has not to any more."""
        if not self._waiting:
            return False
        headers = properties.headers or {}
        waiting = self._waiting.get((properties.message_id or "", headers.get(HOP), headers.get(LINEAGE)))
        if waiting is None:
            return False
        waiting.append(take_in)
        return True

    def end(self, name: _Name) -> None:
        """Its source is gone, or stays for good."""
        for take_in in self._waiting.pop(name, ()):
            take_in()


class Settling:
    """One call of `settle`: acks at once, then all that must be stored first as one publish."""

    def __init__(self, backend: "RabbitBackend", batch: Sequence[Settlement]) -> None:
        self._backend = backend
        self._batch = batch
        self._results: list[Settled] = [STALE] * len(batch)
        self._later: list[tuple[int, Window, Held]] = []
        self._names: dict[int, _Name] = {}

    async def run(self, timeout: float) -> list[Settled]:
        """Settle; an answer for each, in order."""
        for index, item in enumerate(self._batch):
            found = self._backend.held_by(item.receipt)
            if found is None:
                continue
            window, held = found
            if isinstance(item, Ack):
                window.ack(held)
                self._results[index] = DONE
            else:
                held.busy = True
                self._later.append((index, window, held))
        if self._later:
            try:
                await self._store(timeout)
            finally:
                for index, _, held in self._later:
                    held.busy = False
                    self._passed(index)
        return self._results

    async def _store(self, timeout: float) -> None:
        """Store successors and given-back copies, then let go of the sources whose were stored (G3)."""
        until = monotonic() + timeout
        with suppress(Exception):  # a channel that is lost, or a broker that does not answer: what follows tells
            async with asyncio.timeout(timeout / 2):
                releasing = {window for at, window, _ in self._later if isinstance(self._batch[at], Release)}
                await self._backend.pause(releasing)
        timeout = until - monotonic()
        moves = [(at, item.to) for at, _, _ in self._later if isinstance(item := self._batch[at], Move)]
        gifts = [(at, self._copy(held)) for at, _, held in self._later if isinstance(self._batch[at], Release)]
        self._names = {at: self._backend.passing.begin(out.message) for at, out in moves}
        places = [at for at, _ in (*moves, *gifts)]
        held_at = {at: (window, held) for at, window, held in self._later}

        def each(at: int, outcome: Outcome) -> None:
            """Let go of a source as soon as its successor is stored: who dies now leaves no duplicate of it."""
            if isinstance(outcome, Stored):
                self._let_go(places[at], *held_at[places[at]])

        outcomes = await self._backend.store([out for _, out in moves], [copy for _, copy in gifts], timeout, each)
        for index, outcome in zip(places, outcomes, strict=True):
            window, held = held_at[index]
            if not held.busy:
                continue
            if isinstance(outcome, Stored) or not window.alive or held.tag not in window.held:
                self._let_go(index, window, held)
            elif isinstance(self._batch[index], Release):
                window.give_back(held)  # as doubtful as after a crash, and not lost
                self._results[index] = DONE
            else:
                self._results[index] = outcome

    def _let_go(self, index: int, window: Window, held: Held) -> None:
        if held.busy and window.alive and held.tag in window.held:
            window.ack(held)
            self._results[index] = DONE
        held.busy = False
        self._passed(index)

    def _passed(self, index: int) -> None:
        if (name := self._names.pop(index, None)) is not None:
            self._backend.passing.end(name)

    def _copy(self, held: Held) -> Sending:
        """Return the marked copy that a release stores."""
        message = message_of(held.properties, held.body, held.expires)
        queue = self._backend.refuge(held.queue)
        return Sending("", queue, released(held.properties, message, held.expires), held.body, queue)
