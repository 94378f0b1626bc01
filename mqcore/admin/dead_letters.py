"""Dead letters: list, redrive and purge them (G11).

A dead-letter queue is an ordinary queue, so everything here is browsing, leasing and moving. A
redrive moves a message from the dead-letter queue to the queue where it died, or to another one.
Its attempts start at 1 again, and it no longer expires. A message that comes back again and again
is recognized by its `redriven` count, and stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from mqcore.defaults import LEASE, REDRIVES
from mqcore.errors import ConfigurationError
from mqcore.messages.delivery import Ack, Move, Outgoing, Release
from mqcore.messages.message import Death, Message, Reason
from mqcore.queue import DLQ, RESERVED_PREFIXES, queue_name
from mqcore.rules.capabilities import Capability
from mqcore.rules.checks import check_count, check_flag, check_seconds, check_text
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
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from mqcore.connection.connection import Connection
    from mqcore.messages.delivery import Delivery, Settlement
    from mqcore.queue import Queue
    from mqcore.spi import Settled, Subscription

    _Judge = Callable[["DeadLetter", Delivery], Settlement | str]
    """Returns how to settle a dead letter, or the reason why it stays."""

__all__ = ["DeadLetter", "DeadLetterFilter", "DeadLetters", "Redriven"]

_PAGE, _LARGE_PAGE = 200, 1_000
"""How many dead letters are listed and leased at once; more where leases do not expire."""
_TIMEOUT = 10.0
_PATIENCE, _POLL_EVERY = 3.0, 0.05
"""Seconds to wait for another consumer that holds the same messages, and between two polls."""
_RELEASE_TIMEOUT = 2.0
"""Seconds that an interrupted redrive may take to release what it holds."""


class DeadLetterFilter(TypedDict, total=False):
    """Which dead letters to choose. A dead letter must match everything that is given.

    `ids`: message ids. `reason`: one of the reasons of G11. `queue`: the queue where the message
    died. `error`: a text that the error's type or text contains. `before` and `after`: the time of
    death, in seconds since the epoch.
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
        """Why the message died: one of the reasons of G11."""
        return self.death.reason.value

    @property
    def queue(self) -> str:
        """The queue where the message died."""
        return self.death.queue

    @property
    def attempts(self) -> int:
        """How often a handler was started for it."""
        return self.death.attempts

    @property
    def error(self) -> str:
        """Type and text of the last error, or an empty text."""
        return f"{self.death.error_type}: {self.death.error}".strip(": ")

    def matches(self, filters: DeadLetterFilter) -> bool:
        """Whether the filter chooses this dead letter."""
        death = self.death
        return (
            ("ids" not in filters or self.id in filters["ids"])
            and ("reason" not in filters or self.reason == filters["reason"])
            and ("queue" not in filters or death.queue == filters["queue"])
            and ("error" not in filters or filters["error"] in self.error)
            and ("before" not in filters or death.last_at < filters["before"])
            and ("after" not in filters or death.last_at >= filters["after"])
        )


@dataclass(frozen=True, slots=True)
class Redriven:
    """The result of a redrive.

    `moved` has the ids of the messages that were moved, `left` the reason for each message that was
    not. A message that another redrive moved meanwhile is in neither.
    """

    moved: tuple[str, ...]
    left: Mapping[str, str]


class DeadLetters:
    """The dead letters of one queue; made by `Broker.dead_letters`.

    For the name of a shared dead-letter queue, these are the dead letters of all its queues.
    """

    def __init__(
        self, connection: Connection, origin: str, find: Callable[[], Awaitable[str]]
    ) -> None:
        """`origin` is the given queue; `find` returns the name of its dead-letter queue."""
        self._connection = connection
        self._origin = origin
        self._find = find

    def _own(self, filters: DeadLetterFilter, queue: str) -> DeadLetterFilter:
        """In a shared dead-letter queue, choose only messages that died in the given queue."""
        if queue in {self._origin, self._origin + DLQ} or "queue" in filters:
            return filters
        return {**filters, "queue": self._origin}

    async def list(self, limit: int = 100, **filters: Unpack[DeadLetterFilter]) -> list[DeadLetter]:
        """Return up to `limit` dead letters, the oldest first, without changing anything.

        For the filters see `DeadLetterFilter`. Raises `UnsupportedFeature` on a backend without
        BROWSE, and `ConfigurationError` for an unknown reason or filter.
        """
        check_count("limit", limit, "list of dead letters")
        _check(filters)
        queue = await self._find()
        filters = self._own(filters, queue)
        letters: list[DeadLetter] = []
        async for letter in self._all(queue):
            if letter.matches(filters):
                letters.append(letter)
            if len(letters) >= limit:
                break
        return letters

    async def get(self, id: str) -> DeadLetter | None:
        """Return the dead letter with this message id, or None. Raises as `list` does."""
        check_text("id", id, "getting a dead letter")
        return next(iter(await self.list(1, ids=[id])), None)

    async def redrive(
        self,
        *,
        to: Queue[Any] | str | None = None,
        limit: int | None = None,
        force: bool = False,
        **filters: Unpack[DeadLetterFilter],
    ) -> Redriven:
        """Move dead letters back to the queue where they died, or to the queue `to`.

        Their attempts start at 1 again, and they no longer expire. `limit` is how many at most.
        Only dead letters that exist now are moved, not those that come back meanwhile. A message
        that was redriven five times stays, unless `force` is true (G11). May run several times at
        once. For the filters see `DeadLetterFilter`. Raises as `list` does.
        """
        target = None if to is None else queue_name(to, "redrive: to=")
        check_flag("force", force, "redrive")
        queue = await self._find()
        return await self._settle_all(
            filters, limit, partial(_redrive, queue=queue, to=target, force=force)
        )

    async def purge(self, **filters: Unpack[DeadLetterFilter]) -> int:
        """Remove dead letters for good, and return how many.

        Without a filter, all are removed in one request. Raises as `list` does.
        """
        queue = await self._find()
        if not self._own(filters, queue):
            backend = self._connection.supporting(SupportsPurge, "purge")
            return await self._connection.call(f"purging {queue!r}", lambda: backend.purge(queue))
        removed = await self._settle_all(filters, None, lambda _, delivery: Ack(delivery.receipt))
        return len(removed.moved)

    async def _all(self, queue: str) -> AsyncIterator[DeadLetter]:
        """Page through the queue.

        A message that was published directly to this queue has no failure record; its error says
        so.
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
        self, filters: DeadLetterFilter, limit: int | None, judge: _Judge
    ) -> Redriven:
        """Lease the chosen dead letters, a page at a time, and settle them.

        They are listed first, so a message that comes back meanwhile is not chosen again.
        """
        chosen = await self.list(limit if limit is not None else 1_000_000_000, **filters)
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
    """Moves chosen dead letters out of one queue, and records what happened to each.

    Another process may do the same. A message that it holds is requested again until it is gone or
    released.
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
        """`judge` returns how to settle a dead letter, or the reason why it stays."""
        self.moved: list[str] = []
        self.left: dict[str, str] = {}
        self._connection, self._backend = connection, backend
        self._queue, self._subscription, self._judge = queue, subscription, judge
        self._waiting = {letter.key: letter for letter in chosen}
        self._keys: dict[tuple[str, int, str], list[str]] = {}
        for letter in chosen:
            self._keys.setdefault(letter.message.copy_name, []).append(letter.key)
        self._unsettled: dict[bytes, str] = {}
        """The receipts of the messages that are held, with their ids."""
        self._page = _PAGE if connection.capabilities.has(Capability.LEASE) else _LARGE_PAGE

    async def run(self) -> None:
        """Move everything that can be moved.

        A message that another consumer holds for several seconds stays.
        """
        until = asyncio.get_running_loop().time() + _PATIENCE

        while self._waiting:
            before = len(self._waiting)
            for keys in _pages(list(self._waiting), self._page):
                await self._settle(await self._take(keys))

            if len(self._waiting) == before:
                if not await self._held_by_others():
                    return  # another process has moved or removed the rest
                if asyncio.get_running_loop().time() > until:
                    break
                # Real time, because another process is at work.
                await asyncio.sleep(_POLL_EVERY)

        for letter in self._waiting.values():
            self.left[letter.id] = (
                f"another consumer of {self._queue!r} holds it; if that consumer has died, its "
                f"claim ends within {LEASE:g} s"
            )

    async def _take(self, keys: Sequence[str]) -> Sequence[Delivery]:
        """Lease some messages.

        If this is cancelled meanwhile, messages that the backend has leased are still noted, so
        that they can be released.
        """
        call = partial(self._backend.take, self._queue, tuple(keys), LEASE)
        taking = asyncio.ensure_future(self._connection.call(f"taking from {self._queue!r}", call))
        try:
            taken = await asyncio.shield(taking)
        except asyncio.CancelledError:
            with suppress(Exception):
                async with asyncio.timeout(_RELEASE_TIMEOUT):
                    self._note(await taking)
            raise
        self._note(taken)
        return taken

    def _note(self, taken: Sequence[Delivery]) -> None:
        self._unsettled.update((delivery.receipt, delivery.message.id) for delivery in taken)

    async def _settle(self, taken: Sequence[Delivery]) -> None:
        """Settle the leased messages as the judge decides."""
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
        """Return the chosen dead letter that was delivered, and stop waiting for it.

        A foreign message without an id may get another id at each delivery. Then its body
        identifies it.
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
        """Settle. If this is cancelled meanwhile, wait a moment for the answers.

        A message whose successor is being stored must not be released as well: it would be in two
        queues (G3).
        """
        sending = asyncio.ensure_future(self._send(batch))
        try:
            return await asyncio.shield(sending)
        except asyncio.CancelledError:
            await asyncio.wait([sending], timeout=_RELEASE_TIMEOUT)
            sending.cancel()  # what has no answer is released later
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
        """Whether a consumer holds messages of this queue, as far as the backend can tell."""
        backend = self._connection.backend
        if not isinstance(backend, SupportsCount):
            return False
        counts = await self._connection.call(
            f"counting {self._queue!r}", partial(backend.count, [self._queue])
        )
        return any(each.leased for each in counts)

    async def release(self) -> None:
        """Release what is still held after an interruption: no lease has to expire first."""
        if not self._unsettled:
            return
        batch = [Release(receipt) for receipt in self._unsettled]
        with suppress(Exception):  # without a connection, the broker releases it
            async with asyncio.timeout(_RELEASE_TIMEOUT):
                await self._send(batch)


def _pages(keys: Sequence[str], size: int) -> list[Sequence[str]]:
    return [keys[start : start + size] for start in range(0, len(keys), size)]


def _check(filters: DeadLetterFilter) -> None:
    ids = filters.get("ids", ())
    if (
        isinstance(ids, (str, bytes))
        or not isinstance(ids, Collection)
        or not all(isinstance(each, str) for each in ids)
    ):
        raise ConfigurationError(
            f"filter of dead letters: ids={ids!r:.60} is not usable; give a list of message ids"
        )

    for name in ("queue", "error"):
        check_text(name, filters.get(name, "any"), "filter of dead letters")
    for name in ("before", "after"):
        check_seconds(name, filters.get(name, 0), "filter of dead letters", zero=True)
    reasons = [reason.value for reason in Reason]
    if "reason" in filters and filters["reason"] not in reasons:
        raise ConfigurationError(
            f"reason {filters['reason']!r} is unknown; it is one of {', '.join(reasons)}"
        )

    unknown = set(filters) - set(DeadLetterFilter.__annotations__)
    if unknown:
        raise ConfigurationError(
            f"unknown filter {', '.join(sorted(unknown))}; the filters are "
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
        error="published directly to this queue; it has no failure record",
    )
    return DeadLetter(message, death, entry.key)


def _redrive(
    letter: DeadLetter, delivery: Delivery, *, queue: str, to: str | None, force: bool
) -> Settlement | str:
    message = delivery.message
    if message.death is None and to is None:
        return "it has no failure record: name the queue to send it to"
    # what died in a queue of a relay may return; a record of another queue may be forged
    is_ours = queue.startswith(RESERVED_PREFIXES)
    if to is None and letter.queue.startswith(RESERVED_PREFIXES) and not is_ours:
        return (
            f"its failure record names the queue {letter.queue!r:.100}, which is reserved: name "
            "the queue to send it to"
        )

    if message.redriven >= REDRIVES and not force:
        return (
            f"it came back {message.redriven} times already; redrive it with force when the cause "
            "is fixed"
        )

    fresh = {"attempt": 1, "expires_at": None, "failed_at": None, "death": None}
    successor = message.moved(queue, redriven=message.redriven + 1, **fresh)
    return Move(delivery.receipt, Outgoing(to or letter.queue, successor))


def _why(result: Settled) -> str:
    text = getattr(result, "text", "") or type(result).__name__.lower()
    if isinstance(result, Unknown):
        return f"it may or may not have been moved: {text}"
    return f"not moved: {text}"
