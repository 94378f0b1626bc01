"""Batches of messages or settlements as script calls, and their answers as outcomes.

A call carries at most 500 messages and 1 MiB, so that it occupies the server for a few milliseconds
only. Deadlines are by the loop's clock.
"""

from collections.abc import Iterable, Iterator, Sequence
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
    Settled,
    Settlement,
    Stored,
    Unknown,
)
from mqcore_redis.classify import refusal_of
from mqcore_redis.link import Answer
from mqcore_redis.records import encode, name_of, store_options
from mqcore_redis.scripts import Call
from mqcore_redis.session import Session, raise_if_error

__all__ = ["BYTES", "MESSAGES", "Batches"]

MESSAGES, BYTES = 500, 1024 * 1024
_STORED = {1: STORED, 2: Stored(duplicate=True)}
_Line = list[tuple[int, Sequence[Any]]]
"""Indexes into the batch, each with the words that a script gets. A record is the last of them."""


class Batches:
    """Publishing and settling over one session."""

    def __init__(self, session: Session) -> None:
        options = session.place.options
        self._session, self._keys, self._max_delay = session, session.keys, options.max_delay
        self._window = (round(options.dedup_window * 1e6), options.dedup_size)
        self._letters: dict[str, str] = {}
        """The dead-letter queue of each queue that overflows into one."""

    async def publish(
        self, batch: Sequence[Outgoing], deadline: float, since: int | None = None
    ) -> list[Outcome]:
        """Store a batch; calls of one queue are sent in their order."""
        outcomes: dict[int, Outcome] = {}
        lines: dict[str, _Line] = {}
        for item, out in enumerate(batch):
            if (refused := self._refused(out)) is not None:
                outcomes[item] = refused
                continue
            words = name_of(out.message), store_options(out, since), encode(out.message)
            lines.setdefault(str(out.to), []).append((item, words))

        parts = [(queue, part) for queue, line in lines.items() for part in _cut(line)]
        for (queue, part), answer in zip(parts, await self._store(parts, deadline), strict=True):
            for index, (item, _) in enumerate(part):
                outcomes[item] = self._outcome(queue, answer, index)
        return [outcomes[item] for item in range(len(batch))]

    async def _store(self, parts: Sequence[tuple[str, _Line]], deadline: float) -> list[Answer]:
        """Run `publish` for each queue and what it gets.

        The script may ask for the keys of a dead-letter queue; then it runs once more with them.
        """
        answers = await self._session.gather([self._publishing(*it) for it in parts], deadline)
        again = [index for index, answer in enumerate(answers) if isinstance(answer, bytes)]
        if not again:
            return answers

        for index in again:  # such a call had no effect
            self._letters[parts[index][0]] = answers[index].decode()
        more = await self._session.gather(
            [self._publishing(*parts[index]) for index in again], deadline
        )
        for index, answer in zip(again, more, strict=True):
            answers[index] = answer
        return answers

    def _publishing(self, queue: str, part: _Line) -> Call:
        letters = self._letters.get(queue, "")
        keys = self._keys.of(queue) + (self._keys.of(letters) if letters else ())
        return Call("publish", keys, (*self._window, letters, *_words(part)))

    def _outcome(self, queue: str, answer: Answer, index: int) -> Outcome:
        if not isinstance(answer, list):
            return self._trouble(queue, answer)
        return _STORED.get(answer[index]) or Failed(
            ErrorKind.FULL, f"queue {queue!r} holds its max_length of ready messages"
        )

    async def settle(
        self, queue: str, batch: Sequence[Settlement], deadline: float
    ) -> list[Settled]:
        """Settle a batch of claims on one queue."""
        settled: dict[int, Settled] = {}
        here: _Line = []
        for item, settlement in enumerate(batch):
            if not isinstance(settlement, Move):
                how = "A" if isinstance(settlement, Ack) else "R"
                here.append((item, (how, settlement.receipt)))
                continue
            out = settlement.to
            if (refused := self._refused(out)) is not None:
                settled[item] = refused
            elif self._keys.group(str(out.to)) != self._keys.group(queue):
                settled[item] = await self._move_across_slots(queue, settlement, deadline)
            else:
                words = name_of(out.message), store_options(out), encode(out.message)
                here.append((item, ["M", settlement.receipt, out.to, *words]))

        parts = list(_cut(here))
        answers = await self._session.gather(
            [self._settling(queue, part) for part in parts], deadline
        )
        for part, answer in zip(parts, answers, strict=True):
            for index, (item, _) in enumerate(part):
                settled[item] = self._ending(queue, batch[item], answer, index)
        return [settled[item] for item in range(len(batch))]

    async def renew(self, queue: str, receipts: Sequence[bytes], lease: float) -> list[int]:
        """Return how many microseconds are left of each claim.

        A claim is extended to `lease` seconds, unless that is 0. Raises errors.
        """
        parts = [receipts[start : start + MESSAGES] for start in range(0, len(receipts), MESSAGES)]
        keys, until = self._keys.of(queue), round(lease * 1e6)
        answers = await self._session.gather(
            [Call("renew", keys, (until, *part)) for part in parts]
        )
        return [rest for answer in answers for rest in raise_if_error(answer)]

    def abandoning(self, queue: str, unseen: Iterable[bytes], lost: Iterable[bytes]) -> list[Call]:
        """Return calls that end claims.

        `unseen` were not handed out, and their marks stay. `lost` count as taken over.
        """
        line: _Line = [(0, ("U", receipt)) for receipt in unseen]
        line += [(0, ("L", receipt)) for receipt in lost]
        return [self._settling(queue, part) for part in _cut(line)]

    def _settling(self, queue: str, part: _Line) -> Call:
        targets: dict[str, int] = {}
        for _, words in part:
            if isinstance(words, list):  # a Move names its target by the place of its keys
                words[2] = targets.setdefault(words[2], len(targets) + 1)
        keys = tuple(key for name in (queue, *targets) for key in self._keys.of(name))
        return Call("settle", keys, (*self._window, *_words(part)))

    def _ending(self, queue: str, settlement: Settlement, answer: Answer, index: int) -> Settled:
        if not isinstance(answer, list):
            return self._trouble(queue, answer)
        if isinstance(settlement, Move) and answer[index] < 0:
            return self._trouble(str(settlement.to.to), answer[index])
        return DONE if answer[index] else STALE

    async def _move_across_slots(self, queue: str, move: Move, deadline: float) -> Settled:
        """Move to another slot of a cluster: store the successor, then acknowledge the source.

        Repeated, it finds its own successor.
        """
        (ours,) = await self._session.gather(
            [Call("renew", self._keys.of(queue), (0, move.receipt))], deadline
        )
        if not isinstance(ours, list):
            return self._trouble(queue, ours)
        if not ours[0]:
            return STALE
        number = int(move.receipt.rpartition(b"|")[2][2:])
        (stored,) = await self.publish([move.to], deadline, since=number)
        if not isinstance(stored, Stored):
            return stored
        (settled,) = await self.settle(queue, [Ack(move.receipt)], deadline)
        return settled

    def _refused(self, out: Outgoing) -> Failed | None:
        if not isinstance(out.to, str):
            text = f"Redis does not route: {out.to} has to be resolved to queues first"
            return Failed(ErrorKind.PERMANENT, text)
        if out.delay > self._max_delay:
            text = f"a delay of {out.delay:g} s is above max_delay={self._max_delay:g} s"
            return Failed(ErrorKind.PERMANENT, text)
        return None

    def _trouble(self, queue: str, answer: Answer) -> Failed | Unknown:
        """Return what an error, a missing queue or a missing answer means for a request."""
        if answer is None:
            return Unknown("Redis has not answered in time")
        if answer == -1:
            return Failed(ErrorKind.NOT_FOUND, str(self._session.missing(queue)))
        kind = refusal_of(answer)
        if kind is None:
            return Unknown(f"{type(answer).__name__}: {answer}", answer)
        return Failed(kind, f"Redis refused it: {answer}", answer)


def _words(part: _Line) -> list[Any]:
    return [word for _, words in part for word in words]


def _cut(line: _Line) -> Iterator[_Line]:
    """Split a list into calls. A record that is larger than a call is sent alone."""
    part: _Line = []
    size = 0
    for item, words in line:
        if part and (len(part) >= MESSAGES or size + len(words[-1]) > BYTES):
            yield part
            part, size = [], 0
        part.append((item, words))
        size += len(words[-1])
    if part:
        yield part
