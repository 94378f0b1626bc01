"""Random steps on any backend, compared with the model.

`check_model` lets Hypothesis choose the steps. `compare_with_memory` runs one trace on this backend
and on `memory://`, and compares what users saw. A trace that fails is printed step by step, with a
command that repeats it (`replay`). With a virtual clock no real time passes and there are many long
examples; on a server there are few short ones (`MQCORE_CONTRACT_EXAMPLES` says how many).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import HealthCheck, Phase, Verbosity, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyStrategyDefinition
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from mqcore.contract.example import QUEUES, WORK, Example
from mqcore.contract.harness import Harness, MemoryHarness
from mqcore.contract.kit import ContractError
from mqcore.contract.steps import Player, Step, StepsError, read_steps
from mqcore.testing import VirtualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

__all__ = ["ContractMachine", "StepsError", "check_model", "compare_with_memory", "replay"]

_HOWS = st.sampled_from(["ack", "release", "move", "move"])
_TEST = "-k test_model"

_TRIES = 3
"""A real server may return the same messages in other batches the second time.

Hypothesis then gives up.
"""


class ContractMachine(RuleBasedStateMachine):
    """The steps, as Hypothesis chooses them. One event loop for each example."""

    make_harness: ClassVar[Callable[[], Harness]]
    test: ClassVar[str] = _TEST

    def __init__(self) -> None:
        """Open."""
        super().__init__()
        self.runner = asyncio.Runner()
        self.example = Example(type(self).make_harness())
        self.player = Player(self.example)
        self.failed = False
        try:
            self.run(self.example.open())
        except BaseException:
            self.teardown()
            raise

    def run(self, work: Coroutine[Any, Any, object]) -> None:
        """Do one step; when it fails, the error lists all steps."""
        try:
            self.runner.run(work)
        except Exception as error:
            self.failed = True
            error.add_note(self.player.described(self.test))
            raise
        except BaseException:
            self.failed = True
            raise

    @rule(
        name=st.sampled_from(WORK),
        count=st.integers(1, 3),
        priority=st.sampled_from([5, 0, 4, 6, 10]),
        delay=st.sampled_from([0.0, 0.0, 0.0, 0.5, 2.0, 5.0]),
        ttl=st.sampled_from([None, None, None, 1.5, 6.0]),
    )
    def publish(
        self, name: str, count: int, priority: int, delay: float, ttl: float | None
    ) -> None:
        """Publish new messages."""
        self.run(self.player.do("publish", name, count, priority, delay, ttl))

    @precondition(lambda self: self.example.stored)
    @rule(name=st.sampled_from(WORK), pick=st.integers(0, 9))
    def publish_again(self, name: str, pick: int) -> None:
        """Publish a recent message again, to the same queue or to another."""
        self.run(self.player.do("again", name, pick))

    @rule(name=st.sampled_from(QUEUES), limit=st.integers(1, 5))
    def receive(self, name: str, limit: int) -> None:
        """Receive some messages."""
        self.run(self.player.do("receive", name, limit))

    @rule(
        name=st.sampled_from(QUEUES),
        hows=st.lists(_HOWS, min_size=1, max_size=4),
        to=st.sampled_from(QUEUES),
    )
    def work(self, name: str, hows: list[str], to: str) -> None:
        """Receive some messages and settle them in one batch, in reverse order."""
        self.run(self.player.do("work", name, "+".join(hows), to))

    @precondition(lambda self: self.example.given)
    @rule(
        pick=st.integers(0, 9),
        count=st.integers(1, 3),
        how=_HOWS,
        to=st.sampled_from(QUEUES),
        delay=st.sampled_from([0.0, 1.0, 3.0]),
    )
    def settle(self, pick: int, count: int, how: str, to: str, delay: float) -> None:
        """Settle some recent messages of one consumer, perhaps for the second time."""
        self.run(self.player.do("settle", pick, count, how, to, delay))

    @precondition(lambda self: self.example.given and self.example.model.rules.lease < float("inf"))
    @rule(pick=st.integers(0, 9))
    def renew(self, pick: int) -> None:
        """Renew a recent message."""
        self.run(self.player.do("renew", pick))

    @rule(name=st.sampled_from(QUEUES))
    def crash(self, name: str) -> None:
        """End a consumer."""
        self.run(self.player.do("crash", name))

    @rule(seconds=st.sampled_from([0.3, 1.0, 2.8, 8.0]))
    def wait(self, seconds: float) -> None:
        """Let delays, ttls and leases end."""
        self.run(self.player.do("wait", seconds))

    @rule(name=st.sampled_from(QUEUES))
    def count(self, name: str) -> None:
        """Compare the counts."""
        self.run(self.player.do("count", name))

    def teardown(self) -> None:
        """Empty the queues, unless a step has failed already, and close."""
        try:
            if not self.failed:
                self.run(self.player.do("end"))
        finally:
            with suppress(Exception):
                self.runner.run(self.example.kit.close())
            self.runner.close()


def check_model(
    make_harness: Callable[[], Harness], *, examples: int | None = None, test: str = _TEST
) -> None:
    """Run random examples, each with a new harness; raise what failed, with the trace as a note.

    Where time is virtual, shorter traces are tried afterwards: failing again with fewer steps takes
    seconds, while Hypothesis would shrink a long trace for minutes. `test` is what pytest calls the
    test.
    """
    virtual = isinstance(make_harness().clock, VirtualClock)
    count = examples or int(os.environ.get("MQCORE_CONTRACT_EXAMPLES") or (500 if virtual else 20))
    machine = type(
        "ContractMachine",
        (ContractMachine,),
        {"make_harness": staticmethod(make_harness), "test": test},
    )

    try:
        _run(machine, count, 50 if virtual else 20)
    except Exception:
        for steps in (4, 8, 16) if virtual else ():
            _run(machine, count, steps)
        raise


def _run(machine: type[ContractMachine], examples: int, steps: int) -> None:
    chosen = settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate,),
        verbosity=Verbosity.quiet,  # the trace is printed by us, with times and answers
    )

    for trial in range(_TRIES):
        try:
            run_state_machine_as_test(machine, settings=chosen)
        except FlakyStrategyDefinition:
            if trial + 1 == _TRIES:
                raise
        else:
            return


def replay(harness: Harness, text: str, *, test: str = _TEST) -> None:
    """Repeat the steps of a trace, as printed when it failed.

    What each `take` received is compared with memory, as in `compare_with_memory`. Raises
    `StepsError` for text that does not consist of steps.
    """
    steps = read_steps(text)
    _compare(harness, steps if steps[-1:] == [_END] else [*steps, _END], "memory gave", test)


# The same trace here and there


def compare_with_memory(
    harness: Harness, *, seed: int = 3, steps: int | None = None, test: str = _TEST
) -> None:
    """Run one trace on this backend and on memory; fail unless users see the same.

    Each step takes everything that is ready, and time passes in strides beyond every tolerance, so
    that timing has no influence. What each stride received is compared for each queue, in order
    where both have the same order.
    """
    rounds = steps or (40 if isinstance(harness.clock, VirtualClock) else 12)
    _compare(
        harness,
        [*_chosen(random.Random(seed), rounds), _END],
        f"memory gave in the trace of seed {seed}",
        test,
    )


_END = Step("end", ())


def _compare(harness: Harness, steps: Sequence[Step], what: str, test: str) -> None:
    here, kept = _played(harness, steps, test)
    if not here.seen:
        return
    reference, _ = _played(MemoryHarness(), steps, test)

    for number, (actual, expected) in enumerate(zip(here.seen, reference.seen, strict=True), 1):
        if actual != expected and (kept or Counter(actual) != Counter(expected)):
            error = ContractError(
                f"what {what}, at take {number}: {expected}", actual, "Subscription.receive"
            )
            error.add_note(here.described(test))
            raise error


def _played(harness: Harness, steps: Sequence[Step], test: str) -> tuple[Player, bool]:
    """Run steps on one broker; also return whether its order can be compared."""
    example = Example(harness)
    player = Player(example)

    async def play() -> None:
        try:
            await example.open()
            for step in steps:
                await player.do(step.word, *step.arguments)
        except Exception as error:
            error.add_note(player.described(test))
            raise
        finally:
            await example.kit.close()

    asyncio.run(play())
    rules = example.model.rules
    return (
        player,
        rules.ordered and rules.by_priority and rules.release_in_place and rules.delay_to_the_end,
    )


def _chosen(choose: random.Random, rounds: int) -> Iterator[Step]:
    """Choose the steps of a trace that has the same result on every broker."""
    for _ in range(rounds):
        delay = choose.choice([0.0, 0.0, 1.0])
        arguments = (choose.choice(WORK), choose.randint(1, 3), choose.choice([0, 10]), delay, None)
        yield Step("publish", arguments)
        if delay:
            yield Step("quiet", ())

        name = choose.choice(QUEUES)
        yield Step("take", (name,))
        if choose.random() < 0.15:  # noqa: PLR2004 - one in seven
            yield Step("crash", (name,))
            yield Step("quiet", ())
        hows = "+".join(choose.choice(["ack", "release", "move"]) for _ in range(7))
        yield Step("rest", (name, hows, choose.choice(QUEUES)))
