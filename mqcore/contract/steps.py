"""The steps of a random trace: how they are written, run, printed and read.

    publish jobs 2 9 0.5 -; receive jobs 3; settle 0 1 move other 1.0; crash jobs; wait 2.8

A trace that fails is printed in this form, so that one command repeats it: `pytest --mqcore-steps
'…'`. Each word is a step of `Player`, and its arguments are those of the method.
"""

from __future__ import annotations

from itertools import cycle
from typing import TYPE_CHECKING, NamedTuple

from mqcore.contract.example import QUEUES, Example, Given

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mqcore.spi import Delivery

__all__ = ["Player", "Seen", "Step", "StepsError", "read_steps"]

Argument = str | int | float | None
Seen = tuple[str, str, int, bool, bool]
"""Queue, id, attempt, redelivered, and whether it was taken over."""
_ALL = 100


class StepsError(ValueError):
    """Text that does not consist of steps; the error names the wrong part."""


class Step(NamedTuple):
    """One step: its word and its arguments."""

    word: str
    arguments: tuple[Argument, ...]

    def __str__(self) -> str:
        return " ".join(
            [self.word, *("-" if item is None else str(item) for item in self.arguments)]
        )


def _seconds(text: str) -> float | None:
    return None if text == "-" else float(text)


def _queue(text: str) -> str:
    if text not in QUEUES:
        raise ValueError(text)
    return text


_WORDS: dict[str, tuple[Callable[[str], Argument], ...]] = {
    "publish": (_queue, int, int, float, _seconds),
    "again": (_queue, int),
    "receive": (_queue, int),
    "work": (_queue, str, _queue),
    "settle": (int, int, str, _queue, float),
    "renew": (int,),
    "crash": (_queue,),
    "wait": (float,),
    "count": (_queue,),
    "quiet": (),
    "take": (_queue,),
    "rest": (_queue, str, _queue),
    "end": (),
}
"""The words, and how the arguments of each are read."""


def read_steps(text: str) -> list[Step]:
    """Read steps as they are printed. Raises `StepsError`."""
    steps = []

    for part in filter(None, (part.strip() for part in text.split(";"))):
        word, *rest = part.split()
        readers = _WORDS.get(word)
        if readers is None or len(readers) != len(rest):
            raise StepsError(f"{part!r} is not a step; the steps are: {', '.join(_WORDS)}")
        try:
            arguments = tuple(reader(item) for reader, item in zip(readers, rest, strict=True))
        except ValueError:
            raise StepsError(
                f"{part!r}: an argument is not valid; see mqcore.contract.steps.Player"
            ) from None
        steps.append(Step(word, arguments))
    return steps


class Player:
    """Runs steps in turn, compares each with the model, and records times and answers."""

    def __init__(self, example: Example) -> None:
        """Start with no step done."""
        self.example = example
        self.steps: list[Step] = []
        self.seen: list[list[Seen]] = []
        """What each `take` received."""
        self._lines: list[str] = []

    async def do(self, word: str, *arguments: Argument) -> None:
        """Do one step."""
        step, began = Step(word, arguments), self.example.kit.now - self.example.opened_at
        self.steps.append(step)

        answer = "<- this step failed"
        try:
            answer = await getattr(self, f"_{word}")(*arguments)
        finally:
            ended = self.example.kit.now - self.example.opened_at
            self._lines.append(f"{began:8.3f} to {ended:8.3f} s  {step!s:<30} {answer}".rstrip())

    def described(self, test: str) -> str:
        """Return the steps with times and answers, and a command that repeats them.

        `test` is what pytest calls the test.
        """
        text = "; ".join(str(step) for step in self.steps)
        return "\n".join(
            ["steps:", *self._lines, "", f"replay: pytest {test} --mqcore-steps '{text}'"]
        )

    # The steps

    async def _publish(
        self, name: str, count: int, priority: int, delay: float, ttl: float | None
    ) -> str:
        """Publish `count` new messages in one batch."""
        batch = await self.example.publish(name, count, priority, delay, ttl)
        return ", ".join(
            f"{out.message.id} (priority {out.message.priority}) stored" for out in batch
        )

    async def _again(self, name: str, pick: int) -> str:
        """Publish a recent message again, to the same queue or to another."""
        stored = list(self.example.stored.values())
        return (
            await self.example.publish_again(name, stored[-1 - pick % len(stored)])
            if stored
            else "nothing to repeat"
        )

    async def _receive(self, name: str, limit: int) -> str:
        """Receive up to `limit`."""
        return _described(await self.example.receive(name, limit))

    async def _work(self, name: str, hows: str, to: str) -> str:
        """Receive some messages and settle them in one batch, in reverse order.

        `hows` is such as `ack+move`.
        """
        example, ways = self.example, hows.split("+")
        got = await example.receive(name, len(ways))
        held = [
            given
            for given in example.given
            if given[1].state == "live" and given[2] is example.consumers[name]
        ]
        settled = await example.settle(name, *zip(reversed(held), ways, strict=False), to=to)
        return f"{_described(got)}; {settled}"

    async def _settle(self, pick: int, count: int, how: str, to: str, delay: float) -> str:
        """Settle some recent messages of one consumer, perhaps for the second time."""
        example = self.example
        if not example.given:
            return "nothing to settle"
        given = example.given[-1 - pick % len(example.given)]
        same = [item for item in example.given if item[2] is given[2] and item is not given]
        name = next(name for name, real in example.names.items() if real == given[1].copy.queue)
        return await example.settle(
            name, *[(item, how) for item in [*same[: count - 1], given]], to=to, delay=delay
        )

    async def _renew(self, pick: int) -> str:
        """Renew a recent message."""
        given = self.example.given
        return (
            await self.example.renew(given[-1 - pick % len(given)]) if given else "nothing to renew"
        )

    async def _crash(self, name: str) -> str:
        """End the queue's consumer, which settles nothing of what it holds; start another."""
        await self.example.crash(name)
        return "another consumer"

    async def _wait(self, seconds: float) -> str:
        """Let delays, ttls and leases end."""
        await self.example.kit.advance(seconds * self.example.unit)
        return ""

    async def _count(self, name: str) -> str:
        """Compare the counts."""
        return await self.example.count(name)

    async def _end(self) -> str:
        """End all consumers and empty the queues."""
        await self.example.end()
        return "all came"

    # The steps of a trace that runs on two brokers; none depends on chance

    async def _quiet(self) -> str:
        """Wait until everything is ready that is not held."""
        await self.example.kit.advance(
            max(self.example.model.quiet_at() - self.example.kit.now, 0.0) + 0.01
        )
        return ""

    async def _take(self, name: str) -> str:
        """Receive everything that is there."""
        got = await self.example.receive(name, _ALL)
        self.seen.append(
            [
                (
                    name,
                    delivery.message.id,
                    delivery.attempt,
                    delivery.redelivered,
                    delivery.takeovers > 0,
                )
                for delivery in got
            ]
        )
        return _described(got)

    async def _rest(self, name: str, hows: str, to: str) -> str:
        """Settle everything received, in the order of the ids; `hows` is repeated as needed."""
        held, self.example.given = sorted(self.example.given, key=_id), []
        held = [given for given in held if given[2] is self.example.consumers[name]]
        return await self.example.settle(name, *zip(held, cycle(hows.split("+"))), to=to)


def _described(deliveries: Sequence[Delivery]) -> str:
    told = []

    for it in deliveries:
        marks = [f"priority {it.message.priority}", f"attempt {it.attempt}"]
        marks += ["redelivered"] * it.redelivered
        marks += [f"takeovers {it.takeovers}"] * bool(it.takeovers)
        marks += [] if it.expires_in is None else [f"expires in {it.expires_in:g} s"]
        told.append(f"{it.message.id} ({', '.join(marks)})")
    return ", ".join(told) or "nothing"


def _id(given: Given) -> tuple[str, int, str]:
    return given[0].message.copy_name
