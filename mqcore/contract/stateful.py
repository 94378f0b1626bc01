"""Random steps on any backend, held against the model: what no author of cases thought of.

`check_model` lets Hypothesis choose the steps; `compare_with_memory` runs one trace here and on `memory://`, the reference, and
compares what their users saw. Where the clock is virtual no real time passes, and there are many long examples; on a server there
are few and short ones (`MQCORE_CONTRACT_EXAMPLES` says how many).
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyStrategyDefinition
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from mqcore.contract.harness import Harness, MemoryHarness
from mqcore.contract.kit import ContractError
from mqcore.contract.rig import QUEUES, WORK, Given, Rig
from mqcore.testing import VirtualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = ["ContractMachine", "check_model", "compare_with_memory"]

_HOWS = st.sampled_from(["ack", "release", "move", "move"])

_TRIES = 3
"""A real server may give the same messages in other portions the second time, which is its right; Hypothesis then gives up."""


class ContractMachine(RuleBasedStateMachine):
    """The steps, as Hypothesis chooses them. One event loop for each example."""

    make_harness: ClassVar[Callable[[], Harness]]

    def __init__(self) -> None:
        """Open."""
        super().__init__()
        self.runner = asyncio.Runner()
        self.rig = Rig(type(self).make_harness())
        self.failed = False
        try:
            self.run(self.rig.open())
        except BaseException:
            self.teardown()
            raise

    def run(self, work: Coroutine[Any, Any, object]) -> None:
        """Do one step."""
        try:
            self.runner.run(work)
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
    def publish(self, name: str, count: int, priority: int, delay: float, ttl: float | None) -> None:
        """Publish new messages."""
        self.run(self.rig.publish(name, count, priority, delay, ttl))

    @precondition(lambda self: self.rig.stored)
    @rule(name=st.sampled_from(WORK), pick=st.integers(0, 9))
    def publish_again(self, name: str, pick: int) -> None:
        """Publish one of the last again, to the same queue or to another."""
        stored = list(self.rig.stored.values())
        self.run(self.rig.publish_again(name, stored[-1 - pick % len(stored)]))

    @rule(name=st.sampled_from(QUEUES), limit=st.integers(1, 5))
    def receive(self, name: str, limit: int) -> None:
        """Receive some."""
        self.run(self.rig.receive(name, limit))

    @rule(name=st.sampled_from(QUEUES), hows=st.lists(_HOWS, min_size=1, max_size=4), to=st.sampled_from(QUEUES))
    def work(self, name: str, hows: list[str], to: str) -> None:
        """Receive some, and settle them at once in one batch, in the opposite order."""
        self.run(self.rig.receive(name, len(hows)))
        held = [given for given in self.rig.given if given[1].state == "live" and given[2] is self.rig.consumers[name]]
        self.run(self.rig.settle(name, *zip(reversed(held), hows, strict=False), to=to))

    @precondition(lambda self: self.rig.given)
    @rule(
        pick=st.integers(0, 9),
        count=st.integers(1, 3),
        how=_HOWS,
        to=st.sampled_from(QUEUES),
        delay=st.sampled_from([0.0, 1.0, 3.0]),
    )
    def settle(self, pick: int, count: int, how: str, to: str, delay: float) -> None:
        """Settle some of the last that one consumer was given, perhaps for the second time."""
        given = self.rig.given[-1 - pick % len(self.rig.given)]
        same = [it for it in self.rig.given if it[2] is given[2] and it is not given]
        name = next(name for name, real in self.rig.names.items() if real == given[1].copy.queue)
        self.run(self.rig.settle(name, *[(it, how) for it in [*same[: count - 1], given]], to=to, delay=delay))

    @precondition(lambda self: self.rig.given and self.rig.model.rules.lease < float("inf"))
    @rule(pick=st.integers(0, 9))
    def renew(self, pick: int) -> None:
        """Renew one of the last that came."""
        self.run(self.rig.renew(self.rig.given[-1 - pick % len(self.rig.given)]))

    @rule(name=st.sampled_from(QUEUES))
    def crash(self, name: str) -> None:
        """End a consumer."""
        self.run(self.rig.crash(name))

    @rule(seconds=st.sampled_from([0.3, 1.0, 2.8, 8.0]))
    def wait(self, seconds: float) -> None:
        """Let delays, ttls and leases end."""
        self.run(self.rig.kit.advance(seconds * self.rig.unit))

    @rule(name=st.sampled_from(QUEUES))
    def count(self, name: str) -> None:
        """Look at the counts."""
        self.run(self.rig.count(name))

    def teardown(self) -> None:
        """Empty the queues, unless a step has failed already, and close."""
        try:
            if not self.failed:
                self.run(self.rig.end())
        finally:
            with suppress(Exception):
                self.runner.run(self.rig.kit.close())
            self.runner.close()


def check_model(make_harness: Callable[[], Harness], *, examples: int | None = None) -> None:
    """Run random examples, each with a harness from `make_harness`; raises with a trace that fails.

    Where time is virtual, shorter traces are then looked for: to fail again with fewer steps takes seconds, while Hypothesis would
    shrink a long trace for minutes.
    """
    virtual = isinstance(make_harness().clock, VirtualClock)
    count = examples or int(os.environ.get("MQCORE_CONTRACT_EXAMPLES") or (500 if virtual else 20))
    machine = type("ContractMachine", (ContractMachine,), {"make_harness": staticmethod(make_harness)})
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
    )
    for trial in range(_TRIES):
        try:
            run_state_machine_as_test(machine, settings=chosen)
        except FlakyStrategyDefinition:
            if trial + 1 == _TRIES:
                raise
        else:
            return


# The same trace here and there


def compare_with_memory(harness: Harness, *, seed: int = 3, steps: int | None = None) -> None:
    """Run one trace on this backend and on memory; fail unless their users saw the same.

    Each step takes all that is ready, and time passes in strides beyond every tolerance, so that nothing hangs on who was quicker.
    What each stride brought is compared as a multiset for each queue; where both have the same order, in its order.
    """
    steps = steps or (40 if isinstance(harness.clock, VirtualClock) else 12)
    here, kept = _history(harness, seed, steps)
    reference, _ = _history(MemoryHarness(), seed, steps)
    for step, (came, wanted) in enumerate(zip(here, reference, strict=True)):
        if came != wanted and (kept or Counter(came) != Counter(wanted)):
            raise ContractError(
                f"what memory gave in step {step} of seed {seed}: {wanted}", came, "Subscription.receive"
            )


Seen = tuple[str, str, int, bool, bool]


def _history(harness: Harness, seed: int, steps: int) -> tuple[list[list[Seen]], bool]:
    with asyncio.Runner() as runner:
        return runner.run(_trace(Rig(harness), random.Random(seed), steps))


async def _trace(rig: Rig, choose: random.Random, steps: int) -> tuple[list[list[Seen]], bool]:
    seen: list[list[Seen]] = []
    try:
        await rig.open()
        rules = rig.model.rules
        kept = rules.ordered and rules.by_priority and rules.release_in_place and rules.delay_to_the_end
        for _ in range(steps):
            name, count, level = choose.choice(WORK), choose.randint(1, 3), choose.choice([0, 10])
            crash, delay = choose.random() < 0.15, choose.choice([0.0, 0.0, 1.0])  # noqa: PLR2004 - one in seven
            hows = [choose.choice(["ack", "release", "move"]) for _ in range(100)]
            await rig.publish(name, count, level, delay)
            if delay:
                await rig.kit.advance(max(rig.model.quiet_at() - rig.kit.now, 0.0) + 0.01)
            name = choose.choice(QUEUES)
            got = await rig.receive(name, 100)
            ids = [(it.message.id, it.attempt, it.redelivered, it.takeovers > 0) for it in got]
            seen.append([(name, *one) for one in ids])
            if crash:
                await rig.crash(name)
                await rig.kit.advance(max(rig.model.quiet_at() - rig.kit.now, 0.0) + 0.01)
            if not crash:
                await rig.settle(name, *zip(sorted(rig.given, key=_id), hows, strict=False), to=choose.choice(QUEUES))
            rig.given.clear()
        await rig.end()
    finally:
        await rig.kit.close()
    return seen, kept


def _id(given: Given) -> tuple[str, int, str]:
    return given[0].message.copy_name
