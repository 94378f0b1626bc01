"""A batch of messages or settlements put into script calls, and the answers read back: an outcome for each item, in order.

A call carries at most 500 messages and 1 MiB, so that the server is held up for a few milliseconds and no longer.
"""

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mqcore.spi import (
    DONE,
    STALE,
    STORED,
    Ack,
    ErrorKind,
    Failed,
    Move,
    Outcome,
    Outgoing,
    Release,
    Settled,
    Settlement,
    Stored,
    Unknown,
)
from mqcore_redis.classify import certain
from mqcore_redis.keys import Keys
from mqcore_redis.link import Answer
from mqcore_redis.options import RedisOptions
from mqcore_redis.records import encode, name_of, wanted
from mqcore_redis.session import Call, Session

__all__ = ["BYTES", "MESSAGES", "Batches"]

MESSAGES, BYTES = 500, 1024 * 1024
_DUPLICATE = Stored(duplicate=True)
_STORED: dict[int, Outcome] = {1: STORED, 2: _DUPLICATE}


@dataclass
class _Chunk:
    """What goes into one call: arguments, and which items of the batch they are."""

    queue: str
    args: list[Any] = field(default_factory=list)
    items: list[int] = field(default_factory=list)
    targets: dict[str, int] = field(default_factory=dict)
    size: int = 0

    def full(self, more: int) -> bool:
        """Whether another item of this size has to go into another call."""
        return bool(self.items) and (len(self.items) >= MESSAGES or self.size + more > BYTES)


class Batches:
    """Publishing and settling over one session."""

    def __init__(self, session: Session, keys: Keys, options: RedisOptions) -> None:
        self._session, self._keys, self._options = session, keys, options
        self._window = (round(options.dedup_window * 1e6), options.dedup_size)
        self._letters: dict[str, str] = {}
        """Of queues that overflow into a dead-letter queue, which one."""

    async def publish(self, batch: Sequence[Outgoing], timeout: float, since: int | None = None) -> list[Outcome]:
        """Store a batch; calls of one queue go out in their order."""
        outcomes: list[Outcome | None] = [self._refused(out) for out in batch]
        chunks = self._split_messages(batch, outcomes, since)
        answers = await self._store(chunks, _until(timeout))
        for chunk, answer in zip(chunks, answers, strict=True):
            for index, item in enumerate(chunk.items):
                outcomes[item] = self._outcome(chunk.queue, answer, index)
        return [outcome for outcome in outcomes if outcome is not None]

    async def _store(self, chunks: Sequence[_Chunk], left: Callable[[], float]) -> list[Answer]:
        answers = await self._session.gather([self._publishing(chunk) for chunk in chunks], left())
        for index, answer in enumerate(answers):
            if isinstance(answer, bytes):  # nothing was done: it takes the keys of this dead-letter queue
                self._letters[chunks[index].queue] = answer.decode()
        again = [index for index, answer in enumerate(answers) if isinstance(answer, bytes)]
        if again:
            more = await self._session.gather([self._publishing(chunks[index]) for index in again], left())
            for index, answer in zip(again, more, strict=True):
                answers[index] = answer
        return answers

    def _publishing(self, chunk: _Chunk) -> Call:
        letters = self._letters.get(chunk.queue, "")
        keys = self._keys.of(chunk.queue) + (self._keys.of(letters) if letters else ())
        return Call("publish", keys, (*self._window, letters, *chunk.args))

    def _split_messages(
        self, batch: Sequence[Outgoing], refused: Sequence[Outcome | None], since: int | None
    ) -> list[_Chunk]:
        chunks: list[_Chunk] = []
        open_: dict[str, _Chunk] = {}
        for item, out in enumerate(batch):
            if refused[item] is not None:
                continue
            queue, record = str(out.to), encode(out.message)
            chunk = open_.get(queue)
            if chunk is None or chunk.full(len(record)):
                chunk = open_[queue] = _Chunk(queue)
                chunks.append(chunk)
            chunk.args += (name_of(out.message), wanted(out, since), record)
            chunk.items.append(item)
            chunk.size += len(record)
        return chunks

    def _refused(self, out: Outgoing) -> Failed | None:
        if not isinstance(out.to, str):
            return Failed(ErrorKind.PERMANENT, f"Redis does not route: {out.to} has to be resolved to queues first")
        if out.delay > self._options.max_delay:
            text = f"a delay of {out.delay:g} s is above max_delay={self._options.max_delay:g} s"
            return Failed(ErrorKind.PERMANENT, text)
        return None

    def _outcome(self, queue: str, answer: Answer, index: int) -> Outcome:
        if isinstance(answer, list):
            full = Failed(ErrorKind.FULL, f"queue {queue!r} holds its max_length of ready messages")
            return _STORED.get(answer[index], full)
        if answer == -1:
            return self._missing(queue)
        return _trouble(answer)

    def _missing(self, queue: str) -> Failed:
        return Failed(
            ErrorKind.NOT_FOUND, f"there is no queue {queue!r} at {self._session.place.shown}: declare it first"
        )

    async def settle(self, queue: str, batch: Sequence[Settlement], timeout: float) -> list[Settled]:
        """Settle a batch of claims on one queue."""
        left = _until(timeout)
        settled: list[Settled | None] = [None] * len(batch)
        plain: list[tuple[int, Settlement]] = []
        for item, settlement in enumerate(batch):
            if isinstance(settlement, Move) and (refused := self._refused(settlement.to)) is not None:
                settled[item] = refused
            elif isinstance(settlement, Move) and self._keys.group(str(settlement.to.to)) != self._keys.group(queue):
                settled[item] = await self._move_far(queue, settlement, left)
            else:
                plain.append((item, settlement))
        chunks = list(self._split_settlements(queue, plain))
        answers = await self._session.gather([self._settling(chunk) for chunk in chunks], left())
        for chunk, answer in zip(chunks, answers, strict=True):
            for index, item in enumerate(chunk.items):
                settled[item] = self._ending(batch[item], answer, index)
        return [ending for ending in settled if ending is not None]

    def abandoning(self, queue: str, unseen: Sequence[bytes], lost: Sequence[bytes]) -> Call:
        """Return a call that gives claims back: those that nobody saw, and those whose owner goes without a word."""
        args = [word for how, receipts in (("U", unseen), ("L", lost)) for it in receipts for word in (how, it)]
        return Call("settle", self._keys.of(queue), (*self._window, *args))

    def _split_settlements(self, queue: str, batch: Iterable[tuple[int, Settlement]]) -> Iterator[_Chunk]:
        chunk = _Chunk(queue)
        for item, settlement in batch:
            record = encode(settlement.to.message) if isinstance(settlement, Move) else b""
            if chunk.full(len(record)):
                yield chunk
                chunk = _Chunk(queue)
            if isinstance(settlement, Move):
                out = settlement.to
                target = chunk.targets.setdefault(str(out.to), len(chunk.targets) + 1)
                chunk.args += ("M", settlement.receipt, target, name_of(out.message), wanted(out), record)
            else:
                chunk.args += ("R" if isinstance(settlement, Release) else "A", settlement.receipt)
            chunk.items.append(item)
            chunk.size += len(record)
        if chunk.items:
            yield chunk

    def _settling(self, chunk: _Chunk) -> Call:
        queues = (chunk.queue, *chunk.targets)
        return Call("settle", [key for name in queues for key in self._keys.of(name)], (*self._window, *chunk.args))

    def _ending(self, settlement: Settlement, answer: Answer, index: int) -> Settled:
        if isinstance(answer, list):
            if answer[index] < 0 and isinstance(settlement, Move):
                return self._missing(str(settlement.to.to))
            return DONE if answer[index] else STALE
        return _trouble(answer)

    async def _move_far(self, queue: str, move: Move, left: Callable[[], float]) -> Settled:
        """Move to another slot of a cluster: store the successor, then let go; repeated, it finds its own successor."""
        (ours,) = await self._session.gather([Call("renew", self._keys.of(queue), (0, move.receipt))], left())
        if not isinstance(ours, list):
            return _trouble(ours)
        if not ours[0]:
            return STALE
        number = int(move.receipt.rpartition(b"|")[2][2:])
        (stored,) = await self.publish([move.to], left(), since=number)
        if not isinstance(stored, Stored):
            return stored
        (settled,) = await self.settle(queue, [Ack(move.receipt)], left())
        return settled


def _until(timeout: float) -> Callable[[], float]:
    """Return what tells how many seconds are left of these."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout
    return lambda: max(deadline - clock(), 0.0)


def _trouble(answer: Answer) -> Failed | Unknown:
    """Say what an error, or no answer at all, means for what was asked."""
    if answer is None:
        return Unknown("Redis has not answered in time")
    kind = certain(answer)
    if kind is None:
        return Unknown(f"{type(answer).__name__}: {answer}", answer)
    return Failed(kind, f"Redis refused it: {answer}", answer)
