"""Dead letters: look at them, send them back, let them go (G11).

A dead-letter queue is an ordinary queue, so all of this is browsing, leasing and Moves. A redrive
is a Move from the dead-letter queue to where the message died, or elsewhere: attempts begin anew,
and the expiry is gone. What comes back again and again is noticed by its `redriven` count and left
where it is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypedDict, Unpack

from mqcore.defaults import LEASE, REDRIVES
from mqcore.errors import ConfigurationError
from mqcore.messages.delivery import Ack, Move, Outgoing, Release
from mqcore.messages.message import Death, Message, Reason
from mqcore.queue import DLQ, RESERVED_PREFIXES
from mqcore.rules.capabilities import Capability
from mqcore.rules.checks import check_count, check_seconds, check_text
from mqcore.spi import (
    Done,
    Entry,
    Stale,
    SupportsBrowse,
    SupportsCount,
    SupportsPurge,
    SupportsTake,
    Unknown,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence

    from mqcore.connection.connection import Connection
    from mqcore.messages.delivery import Delivery, Settlement
    from mqcore.spi import Settled, Subscription

    _Judge = Callable[["DeadLetter", Delivery], Settlement | str]
    """Says how to settle a letter, or why it stays."""

__all__ = ["DeadLetter", "DeadLetterFilter", "DeadLetters", "Redriven"]

_PAGE, _LARGE_PAGE = 200, 1_000
"""Dead letters that are listed and leased at once; more where a lease does not end by itself."""
_TIMEOUT = 10.0
_PATIENCE, _BETWEEN = 3.0, 0.05
"""Seconds for which another's work on the same letters is waited for, and between two looks at it.
"""
_LAST_WORD = 2.0
"""Seconds that an interrupted redrive may take to release what it holds."""


class DeadLetterFilter(TypedDict, total=False):
    """Which dead letters are meant; all that is given must hold.

    `ids`: message ids. `reason`: one of the reasons of G11. `queue`: where it died. `error`: text
    in the error's type or text. `before` and `after`: time of death, seconds since the epoch.
    """

    ids: Collection[str]
    reason: str
    queue: str
    error: str
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter: its record and the original message."""

    message: Message
    death: Death
    key: str

    @property
    def id(self) -> str:
        """The message's id."""
        return self.message.id

    @property
    def body(self) -> bytes:
        """The original body, byte for byte."""
        return self.message.body

    @property
    def headers(self) -> Mapping[str, str]:
        """The publisher's headers."""
        return self.message.headers

    @property
    def reason(self) -> str:
        """Why it died: one of the reasons of G11."""
        return self.death.reason.value

    @property
    def queue(self) -> str:
        """Where it died."""
        return self.death.queue

    @property
    def attempts(self) -> int:
        """How often a handler was started."""
        return self.death.attempts

    @property
    def error(self) -> str:
        """Type and text of the error, empty when there was none."""
        return f"{self.death.error_type}: {self.death.error}".strip(": ")

    def matches(self, wanted: DeadLetterFilter) -> bool:
        """Whether it is one of those meant."""
        death = self.death
        return (
            ("ids" not in wanted or self.id in wanted["ids"])
            and ("reason" not in wanted or self.reason == wanted["reason"])
            and ("queue" not in wanted or death.queue == wanted["queue"])
            and ("error" not in wanted or wanted["error"] in self.error)
            and ("before" not in wanted or death.last_at < wanted["before"])
            and ("after" not in wanted or death.last_at >= wanted["after"])
        )


@dataclass(frozen=True, slots=True)
class Redriven:
    """What a redrive did: the ids that went, and for each that stayed, why.

    A letter that another redrive moved meanwhile is in neither.
    """

    moved: tuple[str, ...]
    left: Mapping[str, str]


class DeadLetters:
    """The dead letters of one queue; of all its queues, when a shared dead-letter queue itself was asked for."""

    def __init__(
        self, connection: Connection, origin: str, find: Callable[[], Awaitable[str]]
    ) -> None:
        """`origin` is the queue that was asked for, `find` returns its dead-letter queue's name.

        Made by `Broker.dead_letters`.
        """
        self._connection = connection
        self._origin = origin
        self._find = find

    def _own(self, wanted: DeadLetterFilter, queue: str) -> DeadLetterFilter:
        """In a shared dead-letter queue only what died in the queue that was asked for is meant, unless another is named."""
        if queue in {self._origin, self._origin + DLQ} or "queue" in wanted:
            return wanted
        return {**wanted, "queue": self._origin}

    async def list(self, limit: int = 100, **wanted: Unpack[DeadLetterFilter]) -> list[DeadLetter]:
        """Return up to `limit` dead letters, the oldest first, changing neither order nor count.

        Raises `UnsupportedFeature` on a backend without BROWSE, and `ConfigurationError` for an
        unknown reason or filter.
        """
        check_count("limit", limit, "list of dead letters")
        _check(wanted)
        queue = await self._find()
        wanted = self._own(wanted, queue)
        found: list[DeadLetter] = []
        async for letter in self._all(queue):
            if letter.matches(wanted):
                found.append(letter)
            if len(found) >= limit:
                break
        return found

    async def get(self, id: str) -> DeadLetter | None:
        """Return the dead letter with this message id, None when there is none."""
        return next(iter(await self.list(1, ids=[id])), None)

    async def redrive(
        self,
        *,
        to: str | None = None,
        limit: int | None = None,
        force: bool = False,
        **wanted: Unpack[DeadLetterFilter],
    ) -> Redriven:
        """Send dead letters back to where they died, or to queue `to`; attempts begin anew and nothing expires.

        Takes those that are there now, not those that come back meanwhile. One that was redriven
        five times already stays, unless `force`: it would only come back (G11). Safe to run twice
        at once. Raises as `list` does.
        """
        queue = await self._find()
        return await self._settle_all(
            wanted, limit, partial(_redrive, queue=queue, to=to, force=force)
        )

    async def purge(self, **wanted: Unpack[DeadLetterFilter]) -> int:
        """Remove dead letters for good; how many.

        Without a filter all of them, at once. Raises as `list` does.
        """
        queue = await self._find()
        if not self._own(wanted, queue):
            backend = self._connection.supporting(SupportsPurge, "purge")
            return await self._connection.call(f"purging {queue!r}", lambda: backend.purge(queue))
        gone = await self._settle_all(wanted, None, lambda _, delivery: Ack(delivery.receipt))
        return len(gone.moved)

    async def _all(self, queue: str) -> AsyncIterator[DeadLetter]:
        """Page through the queue.

        A message that somebody published here by hand has no record of a death: it is told as such.
        """
        backend = self._connection.supporting(SupportsBrowse, "listing dead letters")
        after: str | None = None
        while True:
            page = await self._connection.call(
                f"listing {queue!r}", partial(backend.browse, queue, _PAGE, after)
            )
            for entry in page:
                yield _letter(entry, queue)
            if len(page) < _PAGE:
                return
            after = page[-1].key

    async def _settle_all(
        self, wanted: DeadLetterFilter, limit: int | None, judge: _Judge
    ) -> Redriven:
        """Lease the chosen ones and settle them by the page.

        The list is made first: what comes back is not met again.
        """
        chosen = await self.list(limit if limit is not None else 1_000_000_000, **wanted)
        backend = self._connection.supporting(SupportsTake, "taking chosen dead letters")
        queue = await self._find()
        subscription = await self._connection.subscribe(queue, 1, LEASE)
        moving = _Moving(self._connection, backend, queue, subscription, chosen, judge)
        try:
            await moving.run()
        finally:
            try:
                await moving.release()
            finally:
                await subscription.close()
        return Redriven(tuple(moving.moved), moving.left)


class _Moving:
    """Dead letters on their way out of one queue, and what became of each.

    Others may be at the same work. What one of them holds is asked for again until it is gone or
    given back.
    """

    def __init__(
        self,
        connection: Connection,
        backend: SupportsTake,
        queue: str,
        subscription: Subscription,
        chosen: Sequence[DeadLetter],
        judge: _Judge,
    ) -> None:
        """`judge` says for a letter and its delivery how to settle it, or why it stays."""
        self.moved: list[str] = []
        self.left: dict[str, str] = {}
        self._connection, self._backend = connection, backend
        self._queue, self._subscription, self._judge = queue, subscription, judge
        self._waiting = {letter.key: letter for letter in chosen}
        self._keys: dict[tuple[str, int, str], list[str]] = {}
        for letter in chosen:
            self._keys.setdefault(letter.message.copy_name, []).append(letter.key)
        self._unsettled: dict[bytes, str] = {}
        """Receipts of what we hold, and the ids."""
        self._page = _PAGE if connection.capabilities.has(Capability.LEASE) else _LARGE_PAGE

    async def run(self) -> None:
        """Move all that can be moved.

        What another consumer holds for longer than a moment is left.
        """
        until = asyncio.get_running_loop().time() + _PATIENCE

        while self._waiting:
            before = len(self._waiting)
            for keys in _pages(list(self._waiting), self._page):
                await self._settle(await self._take(keys))

            if len(self._waiting) == before:
                held = await self._held_by_others()
                if not held:
                    return  # another has moved or removed them: they are not here any more
                if asyncio.get_running_loop().time() > until:
                    break
                await asyncio.sleep(
                    _BETWEEN
                )  # another process is at work: no clock of ours says how long

        for letter in self._waiting.values():
            self.left[letter.id] = (
                f"another consumer of {self._queue!r} holds it; if that has died, its claim ends "
                f"within {LEASE:g} s"
            )

    async def _take(self, keys: Sequence[str]) -> Sequence[Delivery]:
        """Lease some.

        If we are cancelled meanwhile, what the backend has leased for us is released all the same.
        """
        call = partial(self._backend.take, self._queue, tuple(keys), LEASE)
        taking = asyncio.ensure_future(self._connection.call(f"taking from {self._queue!r}", call))
        try:
            taken = await asyncio.shield(taking)
        except asyncio.CancelledError:
            with suppress(Exception):
                async with asyncio.timeout(_LAST_WORD):
                    self._note(await taking)
            raise
        self._note(taken)
        return taken

    def _note(self, taken: Sequence[Delivery]) -> None:
        self._unsettled.update((delivery.receipt, delivery.message.id) for delivery in taken)

    async def _settle(self, taken: Sequence[Delivery]) -> None:
        """Settle what was taken as the judge says."""
        batch: list[Settlement] = []
        letters = [self._letter(delivery) for delivery in taken]

        for letter, delivery in zip(letters, taken, strict=True):
            answer = self._judge(letter, delivery)
            if isinstance(answer, str):
                self.left[letter.id] = answer
                answer = Release(delivery.receipt)
            batch.append(answer)

        undone: list[Settlement] = []
        for letter, answer, result in zip(
            letters, batch, await self._send_to_its_end(batch), strict=True
        ):
            if not isinstance(result, Done):
                self.left[letter.id] = _why(result)
                undone.append(Release(answer.receipt))
            elif not isinstance(answer, Release):
                self.moved.append(letter.id)
        await self._send(undone)

    def _letter(self, delivery: Delivery) -> DeadLetter:
        """Return the letter that was taken, which waits no longer.

        A message without an id, published here by hand, may have another id at each delivery: then
        its body tells which one it is.
        """
        message = delivery.message
        keys = self._keys.get(message.copy_name)
        if keys:
            return self._waiting.pop(keys.pop(0))

        key = next(
            (key for key, letter in self._waiting.items() if letter.body == message.body), None
        )
        return _letter(Entry("", message), self._queue) if key is None else self._waiting.pop(key)

    async def _send_to_its_end(self, batch: Sequence[Settlement]) -> Sequence[Settled]:
        """Settle, and if we are cancelled meanwhile, wait a moment for the answers.

        A letter whose successor is being stored must not be released too: it would be in two queues
        (G3).
        """
        sending = asyncio.ensure_future(self._send(batch))
        try:
            return await asyncio.shield(sending)
        except asyncio.CancelledError:
            await asyncio.wait([sending], timeout=_LAST_WORD)
            sending.cancel()  # what has no answer is released: nobody else would give it back
            await asyncio.gather(sending, return_exceptions=True)
            raise

    async def _send(self, batch: Sequence[Settlement]) -> Sequence[Settled]:
        if not batch:
            return []
        send = partial(self._subscription.settle, batch, timeout=_TIMEOUT)
        results = await self._connection.call("settling dead letters", send)
        for item, result in zip(batch, results, strict=True):
            if isinstance(result, (Done, Stale)):
                self._unsettled.pop(item.receipt, None)
        return results

    async def _held_by_others(self) -> bool:
        """Whether somebody holds messages of this queue, as far as the backend can tell."""
        backend = self._connection.backend
        if not isinstance(backend, SupportsCount):
            return False
        counts = await self._connection.call(
            f"counting {self._queue!r}", partial(backend.count, [self._queue])
        )
        return any(found.leased for found in counts)

    async def release(self) -> None:
        """Release what is still ours, because we were interrupted: it must not be out of reach until the lease ends."""
        if not self._unsettled:
            return
        batch = [Release(receipt) for receipt in self._unsettled]
        with suppress(Exception):  # where the connection is gone the broker gives it back by itself
            async with asyncio.timeout(_LAST_WORD):
                await self._send(batch)


def _pages(keys: Sequence[str], size: int) -> list[Sequence[str]]:
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def _check(wanted: DeadLetterFilter) -> None:
    if isinstance(ids := wanted.get("ids", ()), (str, bytes)) or not isinstance(ids, Iterable):
        raise ConfigurationError(
            f"filter of dead letters: ids={ids!r:.60} is not usable; give a list of message ids"
        )
    for name in ("queue", "error"):
        check_text(name, wanted.get(name, "any"), "filter of dead letters")
    for name in ("before", "after"):
        check_seconds(name, wanted.get(name, 0), "filter of dead letters", zero=True)
    reasons = [reason.value for reason in Reason]
    if "reason" in wanted and wanted["reason"] not in reasons:
        raise ConfigurationError(
            f"reason {wanted['reason']!r} is unknown; it is one of {', '.join(reasons)}"
        )
    unknown = set(wanted) - set(DeadLetterFilter.__annotations__)
    if unknown:
        raise ConfigurationError(
            f"unknown filter {', '.join(sorted(unknown))}; there are "
            f"{', '.join(DeadLetterFilter.__annotations__)}"
        )


def _letter(entry: Entry, queue: str) -> DeadLetter:
    message = entry.message
    death = message.death or Death(
        reason=Reason.REJECTED,
        queue=queue,
        attempts=0,
        first_at=message.published_at or 0.0,
        last_at=message.published_at or 0.0,
        error="published here by hand: there is no record of a death",
    )
    return DeadLetter(message, death, entry.key)


def _redrive(
    letter: DeadLetter, delivery: Delivery, *, queue: str, to: str | None, force: bool
) -> Settlement | str:
    message = delivery.message
    if message.death is None and to is None:
        return "it did not die anywhere: say where to send it"
    if to is None and letter.queue.startswith(RESERVED_PREFIXES):
        return (
            f"its record says that it died in {letter.queue!r:.100}, which is not a queue of "
            "yours: say where to send it"
        )
    if message.redriven >= REDRIVES and not force:
        return (
            f"it came back {message.redriven} times already; redrive it with force when its cause "
            "is gone"
        )
    fresh = {"attempt": 1, "expires_at": None, "failed_at": None, "death": None}
    successor = message.moved(queue, redriven=message.redriven + 1, **fresh)
    return Move(delivery.receipt, Outgoing(to or letter.queue, successor))


def _why(result: Settled) -> str:
    text = getattr(result, "text", "") or type(result).__name__.lower()
    if isinstance(result, Unknown):
        return f"it may or may not have been moved: {text}"
    return f"not moved: {text}"
