"""The transitions of tasks, on the store in memory. The trial's counterexamples are among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mqcore.contract.store.workflows import ChainPlan, GroupPlan, Plan, TaskPlan, rows_of
from mqcore.tasks.model.changes import (
    Add,
    Back,
    Begin,
    Cancel,
    End,
    Fire,
    Gone,
    More,
    Progress,
    Recover,
    Replace,
    Sent,
    Spread,
    roots_of,
)
from mqcore.tasks.model.nodes import Node, Policy, root_of
from mqcore.tasks.model.outcomes import (
    Added,
    Asked,
    Busy,
    Cancelled,
    Closed,
    Conflict,
    Done,
    Ended,
    Exists,
    Fired,
    Lost,
    Ok,
    Outcome,
    Refused,
    Stale,
    Started,
    Terminal,
    Unknown,
)
from mqcore.tasks.model.states import ENDED, NEXT, NEXT_RUN, IllegalTransition, State
from mqcore.tasks.store.memory import MemoryTaskStore, Tables
from mqcore.tasks.store.seam import Heartbeat
from mqcore.tasks.store.values import Failure, value_of

if TYPE_CHECKING:
    from mqcore.tasks.model.changes import Change

OK = TaskPlan()


class Clock:
    """A clock that a test sets."""

    real = False

    def __init__(self) -> None:
        self.time = 1_000.0

    def now(self) -> float:
        return self.time


class Play:
    """A store, and short words for what happens to its tasks."""

    def __init__(self, slice_size: int = 1_000) -> None:
        self.clock = Clock()
        self.store = MemoryTaskStore(clock=self.clock, tables=Tables(), slice_size=slice_size)
        self.keys: list[str] = []

    async def do(self, change: Change) -> Outcome:
        applied = await self.store.apply([change])
        self.keys = list(applied.keys)
        return applied.outcomes[0]

    async def add(self, plan: Plan, root: str = "r") -> Outcome:
        return await self.do(Add(rows_of(plan, root)))

    async def begin(self, task: str, who: str = "t", run: int = 0, attempt: int = 1) -> Outcome:
        return await self.do(Begin(task, run, attempt, who, "w"))

    async def run(self, *tasks: str, state: State = State.SUCCEEDED, run: int = 0) -> None:
        for task in tasks:
            assert isinstance(await self.begin(task, run=run), Started), task
            is_good = state is State.SUCCEEDED
            result, reason = (task.encode(), "") if is_good else (None, "why")
            assert await self.do(End(task, run, "t", state, result, reason)) == Ended()

    async def row(self, node: str) -> Node:
        found = (await self.store.nodes([node]))[0]
        assert found is not None
        return found

    async def states(self, *nodes: str) -> str:
        return " ".join([(await self.row(node)).state for node in nodes])


@pytest.fixture
def play() -> Play:
    return Play()


# Model


def test_nothing_follows_an_ended_state_inside_a_run() -> None:
    assert all(not NEXT[state] for state in ENDED)
    assert set(NEXT) == set(State)
    assert set(NEXT_RUN) <= ENDED


def test_a_move_that_the_table_does_not_have_is_refused() -> None:
    node = Node(id="r", state=State.SUCCEEDED)
    with pytest.raises(IllegalTransition, match="'r' cannot become running, because it is succ"):
        node.move_to(State.RUNNING)


def test_the_root_is_part_of_the_id() -> None:
    assert [root_of(node) for node in ("r", "r.0.12", "r~.1", "r.0~")] == ["r"] * 4


def test_roots_are_locked_in_sorted_order() -> None:
    changes = [End("b.1", 0, "t", State.FAILED), Cancel("a~"), Sent(["x"]), Add(rows_of(OK, "c"))]
    assert roots_of(changes) == ["a", "b", "c"]


# A single task


async def test_a_task_is_queued_run_and_ended(play: Play) -> None:
    assert await play.add(OK) == Added()
    assert play.keys == ["r:0"]
    assert await play.states("r") == "queued"

    started = await play.begin("r")
    assert isinstance(started, Started)
    assert started.node.state is State.RUNNING
    assert await play.do(End("r", 0, "t", State.SUCCEEDED, b"42")) == Ended()
    assert (await play.row("r")).result == b"42"


async def test_a_task_that_was_added_is_not_added_again(play: Play) -> None:
    await play.add(OK)
    await play.run("r")
    assert await play.add(OK) == Exists()
    assert play.keys == []


async def test_a_delayed_task_is_scheduled_until_it_begins(play: Play) -> None:
    await play.add(TaskPlan(delay=10))
    assert (await play.row("r")).due == 1_010
    assert await play.states("r") == "scheduled"
    assert isinstance(await play.begin("r"), Started)


async def test_the_newest_attempt_holds_the_row(play: Play) -> None:
    await play.add(OK)
    await play.begin("r", "old")
    await play.begin("r", "new")
    assert await play.do(End("r", 0, "old", State.SUCCEEDED)) == Refused()
    assert await play.do(Back("r", 0, "old", State.RETRYING)) == Refused()
    assert await play.do(Progress("r", 0, "old", 1, b"half")) == Refused()
    assert await play.do(Replace("r", 0, "old", rows_of(OK, "r~", "r"))) == Refused()
    assert await play.do(End("r", 0, "new", State.SUCCEEDED)) == Ended()
    assert await play.do(End("r", 0, "new", State.FAILED)) == Refused()


async def test_a_lower_attempt_is_not_refused(play: Play) -> None:
    """The process died between the row of attempt 2 and its message: attempt 1 comes back."""
    await play.add(OK)
    await play.begin("r", "one", attempt=2)
    assert await play.do(Back("r", 0, "one", State.RETRYING, 5)) == Ok()
    assert isinstance(await play.begin("r", "two", attempt=1), Started)


async def test_an_ended_task_says_how_it_ended(play: Play) -> None:
    await play.add(OK)
    await play.run("r", state=State.FAILED)
    assert await play.begin("r") == Terminal(State.FAILED)
    assert await play.begin("x") == Unknown()


async def test_a_group_has_no_attempt(play: Play) -> None:
    await play.add(GroupPlan([OK]))
    assert await play.do(End("r", 0, "", State.SUCCEEDED)) == Refused()
    assert await play.do(Gone("r", 0, State.EXPIRED)) == Refused()


async def test_progress_rises_and_ends_with_the_task(play: Play) -> None:
    await play.add(OK)
    await play.begin("r")
    assert await play.do(Progress("r", 0, "t", 2, b"half")) == Ok()
    assert await play.do(Progress("r", 0, "t", 1, b"late")) == Refused()
    assert (await play.row("r")).progress == b"half"
    await play.do(End("r", 0, "t", State.SUCCEEDED))
    assert await play.do(Progress("r", 0, "t", 3, b"later")) == Refused()


# Messages that end without a run


async def test_a_message_that_expires_ends_its_task(play: Play) -> None:
    await play.add(OK)
    assert await play.do(Gone("r", 0, State.EXPIRED)) == Ended()
    assert await play.do(Gone("r", 0, State.EXPIRED)) == Refused()
    assert await play.begin("r") == Terminal(State.EXPIRED)


async def test_a_duplicate_that_expires_does_not_end_a_living_run(play: Play) -> None:
    await play.add(OK)
    await play.store.heartbeat(Heartbeat("w", ttl=15))
    await play.begin("r")
    assert await play.do(Gone("r", 0, State.EXPIRED)) == Busy()

    play.clock.time += 15
    assert await play.do(Gone("r", 0, State.FAILED, "crashed")) == Ended()
    assert (await play.row("r")).reason == "crashed"


# Redrives


async def test_a_redrive_opens_the_next_run_of_a_failed_task(play: Play) -> None:
    await play.add(OK)
    await play.run("r", state=State.FAILED)
    await play.run("r", run=1)
    assert await play.states("r") == "succeeded"
    assert (await play.row("r")).reason == ""
    assert await play.begin("r") == Stale()
    assert await play.begin("r", run=1) == Terminal(State.SUCCEEDED)


async def test_a_redrive_does_not_run_a_task_again_that_succeeded(play: Play) -> None:
    """A duplicate expired, and its dead letter is redriven."""
    await play.add(OK)
    await play.run("r")
    assert await play.begin("r", run=1) == Terminal(State.SUCCEEDED)


async def test_a_failed_run_has_no_result_of_an_earlier_one(play: Play) -> None:
    await play.add(OK)
    await play.begin("r")
    await play.do(End("r", 0, "t", State.FAILED, b"partial"))
    await play.run("r", run=1, state=State.FAILED)
    assert (await play.row("r")).result is None


async def test_a_late_redrive_inserts_its_row_again(play: Play) -> None:
    missing = rows_of(OK, "r.3", "r")[0]
    assert await play.do(Begin("r.3", 0, 1, "t", "w", missing)) == Unknown()
    assert isinstance(await play.do(Begin("r.3", 2, 1, "t", "w", missing)), Started)
    assert await play.do(End("r.3", 2, "t", State.SUCCEEDED, b"late")) == Ended()


async def test_a_member_that_succeeds_after_a_redrive_saves_its_open_group(play: Play) -> None:
    await play.add(ChainPlan([GroupPlan([OK, OK]), OK]))
    await play.run("r.0.0", state=State.FAILED)
    await play.run("r.0.0", run=1)
    await play.run("r.0.1", "r.1")
    assert await play.states("r") == "succeeded"


async def test_a_redrive_after_the_end_runs_alone(play: Play) -> None:
    await play.add(ChainPlan([GroupPlan([OK, OK]), OK]))
    await play.run("r.0.0", state=State.FAILED)
    await play.run("r.0.1")
    assert await play.states("r", "r.0", "r.1") == "failed failed skipped"
    await play.run("r.0.0", run=1)
    assert await play.states("r", "r.0", "r.1") == "failed failed skipped"
    assert (await play.row("r.0")).bad == 1


async def test_a_redrive_starts_nothing_of_a_cancelled_workflow(play: Play) -> None:
    await play.add(GroupPlan([OK, OK]))
    await play.run("r.0", state=State.FAILED)
    await play.do(Cancel("r"))
    assert await play.begin("r.0", run=1) == Cancelled()
    assert await play.states("r.0") == "failed"


# Workflows


async def test_a_chord_runs_its_body_once_with_the_results_in_order(play: Play) -> None:
    await play.add(ChainPlan([GroupPlan([OK, OK, OK]), OK]))
    assert play.keys == ["r.0.0:0", "r.0.1:0", "r.0.2:0"]
    await play.run("r.0.2", "r.0.0", "r.0.1")
    assert play.keys == ["r.1:0"]

    body = await play.row("r.1")
    assert await value_of(play.store, body.input) == [b"r.0.0", b"r.0.1", b"r.0.2"]
    await play.run("r.1")
    assert await value_of(play.store, "r") == b"r.1"


async def test_a_member_that_fails_is_a_completion(play: Play) -> None:
    await play.add(ChainPlan([GroupPlan([OK, ChainPlan([OK, OK])]), OK]))
    await play.run("r.0.1.0", state=State.FAILED)
    await play.run("r.0.0")
    assert await play.states("r.0.1.1", "r.0.1", "r.0", "r.1", "r") == (
        "skipped failed failed skipped failed"
    )


async def test_a_collecting_group_has_the_failure_in_the_members_place(play: Play) -> None:
    await play.add(ChainPlan([GroupPlan([OK, OK], Policy.COLLECT), OK]))
    await play.run("r.0.0", state=State.FAILED)
    await play.run("r.0.1")
    assert await value_of(play.store, "r.0") == [Failure("r.0.0", State.FAILED, "why"), b"r.0.1"]
    assert await play.states("r.1") == "queued"


async def test_a_cancelling_group_cancels_the_others_and_fails(play: Play) -> None:
    await play.add(GroupPlan([OK, OK, ChainPlan([OK, OK])], Policy.CANCEL))
    await play.run("r.0", state=State.FAILED)
    assert await play.states("r", "r.1", "r.2", "r.2.0", "r.2.1") == (
        "failed cancelled cancelled cancelled skipped"
    )
    assert (await play.row("r")).reason == "r.0 ended as failed"


async def test_empty_flows_end_at_once(play: Play) -> None:
    await play.add(ChainPlan([GroupPlan(), ChainPlan(), OK]))
    assert play.keys == ["r.2:0"]
    await play.run("r.2")
    assert await play.states("r") == "succeeded"


async def test_a_chain_of_thousands_of_empty_groups_ends(play: Play) -> None:
    await play.add(ChainPlan([GroupPlan()] * 5_000))
    assert await play.states("r") == "succeeded"


async def test_a_replaced_task_ends_as_its_replacement_and_keeps_its_place(play: Play) -> None:
    await play.add(ChainPlan([GroupPlan([OK, OK]), OK]))
    await play.begin("r.0.0")
    rows = rows_of(ChainPlan([OK, OK]), "r.0.0~", "r.0.0")
    assert await play.do(Replace("r.0.0", 0, "t", rows)) == Ok()
    assert await play.begin("r.0.0") == Terminal(State.DELEGATED)
    await play.run("r.0.1", "r.0.0~.0", "r.0.0~.1")
    assert await value_of(play.store, "r.0") == [b"r.0.0~.1", b"r.0.1"]
    assert await play.states("r.1") == "queued"


async def test_a_task_that_replaces_itself_many_times_ends(play: Play) -> None:
    await play.add(OK)
    task = "r"
    for _ in range(300):
        await play.begin(task)
        await play.do(Replace(task, 0, "t", rows_of(OK, f"{task}~", task)))
        task += "~"
    await play.run(task)
    assert await play.states("r") == "succeeded"


# Cancellation


async def test_cancel_ends_what_has_not_started(play: Play) -> None:
    await play.add(ChainPlan([GroupPlan([OK, OK]), OK]))
    assert await play.do(Cancel("r", "not needed")) == Cancelled()
    assert await play.states("r.0.0", "r.0.1", "r.0", "r.1", "r") == (
        "cancelled cancelled cancelled skipped cancelled"
    )
    assert (await play.row("r")).reason == "not needed"
    assert await play.begin("r.0.0") == Terminal(State.CANCELLED)
    assert await play.do(Cancel("r")) == Terminal(State.CANCELLED)
    assert await play.do(Cancel("x")) == Unknown()


async def test_a_running_task_is_asked_and_its_worker_hears_of_it(play: Play) -> None:
    await play.add(OK)
    await play.begin("r")
    assert await play.store.heartbeat(Heartbeat("w")) == []
    assert await play.do(Cancel("r")) == Asked()
    assert await play.store.heartbeat(Heartbeat("w")) == ["r"]
    assert await play.do(Back("r", 0, "t", State.RETRYING, 60)) == Cancelled()
    assert await play.states("r") == "cancelled"


async def test_a_task_whose_worker_died_does_not_start_again_after_a_cancel(play: Play) -> None:
    await play.add(OK)
    await play.begin("r")
    await play.do(Cancel("r"))
    assert await play.begin("r", "other") == Cancelled()


async def test_a_waiting_step_is_cancelled_when_its_turn_comes(play: Play) -> None:
    await play.add(GroupPlan([ChainPlan([OK, OK, OK])]))
    assert await play.do(Cancel("r.0.1")) == Asked()
    assert await play.states("r.0.0", "r.0.1", "r") == "queued waiting running"
    await play.run("r.0.0")
    assert await play.states("r.0.1", "r.0.2", "r.0", "r") == "cancelled skipped cancelled failed"


async def test_a_step_that_succeeds_after_the_cancel_starts_no_other(play: Play) -> None:
    await play.add(ChainPlan([OK, OK]))
    await play.begin("r.0")
    assert await play.do(Cancel("r")) == Asked()
    assert await play.do(End("r.0", 0, "t", State.SUCCEEDED)) == Ended()
    assert play.keys == []
    assert await play.states("r.0", "r.1", "r") == "succeeded skipped cancelled"


async def test_a_task_is_not_replaced_after_the_cancel(play: Play) -> None:
    await play.add(OK)
    await play.begin("r")
    await play.do(Cancel("r"))
    assert await play.do(Replace("r", 0, "t", rows_of(OK, "r~", "r"))) == Cancelled()


async def test_a_cancel_reaches_the_replacement(play: Play) -> None:
    await play.add(OK)
    await play.begin("r")
    await play.do(Replace("r", 0, "t", rows_of(ChainPlan([OK, OK]), "r~", "r")))
    assert await play.do(Cancel("r")) == Cancelled()
    assert await play.states("r", "r~", "r~.0", "r~.1") == ("cancelled cancelled cancelled skipped")


# Large groups


async def test_a_large_group_is_released_slice_by_slice() -> None:
    play = Play(slice_size=2)
    await play.add(GroupPlan([OK] * 5))
    assert play.keys == ["r:members"]
    made = []
    for start in (0, 2, 4):
        assert await play.do(Spread("r", start)) == Ok()
        made += sorted(play.keys)
    assert made == ["r.0:0", "r.1:0", "r:members", "r.2:0", "r.3:0", "r:members", "r.4:0"]
    assert await play.do(Spread("r", 4)) == Done()


async def test_a_slice_of_another_process_is_not_treated_again() -> None:
    play = Play(slice_size=2)
    await play.add(GroupPlan([OK] * 5))
    await play.do(Spread("r", 0))
    assert await play.do(Spread("r", 0)) == Done()
    assert play.keys == []


async def test_a_large_group_is_cancelled_slice_by_slice() -> None:
    play = Play(slice_size=2)
    await play.add(ChainPlan([GroupPlan([OK] * 5), OK]))
    await play.do(Spread("r.0", 0))
    assert await play.do(Cancel("r")) == Asked()
    assert await play.begin("r.0.0") == Cancelled(), "its slice has not come, the flag is read"
    for start in (0, 2, 4):
        await play.do(Spread("r.0", start))
    assert await play.states(*[f"r.0.{n}" for n in range(5)]) == " ".join(["cancelled"] * 5)
    assert await play.states("r.0", "r.1", "r") == "cancelled skipped cancelled"


async def test_a_large_group_is_skipped_slice_by_slice() -> None:
    play = Play(slice_size=2)
    await play.add(ChainPlan([OK, GroupPlan([ChainPlan([OK])] * 5)]))
    await play.run("r.0", state=State.FAILED)
    assert play.keys == ["r.1:members"]
    assert await play.states("r", "r.1", "r.1.0") == "failed skipped waiting"
    for start in (0, 2, 4):
        await play.do(Spread("r.1", start))
    assert await play.states("r.1.0", "r.1.4.0") == "skipped skipped"


# Groups that are sent in batches


async def test_a_group_is_sent_in_batches_and_closes_after_the_last(play: Play) -> None:
    await play.add(GroupPlan([OK], is_sealed=False))
    await play.run("r.0")
    assert await play.states("r") == "running"
    batch = More("r", [*rows_of(OK, "r.1", "r", 1), *rows_of(OK, "r.2", "r", 2)], seal=False)
    assert await play.do(batch) == Ok()
    assert play.keys == ["r.1:0", "r.2:0"]
    assert await play.do(batch) == Ok(), "a batch may be repeated"
    assert play.keys == []
    assert await play.do(More("r", [], seal=True)) == Ok()
    assert await play.do(More("r", rows_of(OK, "r.3", "r", 3))) == Closed()
    await play.run("r.1", "r.2")
    assert await play.states("r") == "succeeded"


async def test_an_abandoned_group_ends(play: Play) -> None:
    await play.add(ChainPlan([GroupPlan([OK, OK], is_sealed=False), OK]))
    await play.run("r.0.0")
    play.clock.time += 61
    assert await play.store.suspects(before=0) == ["r.0"]
    assert await play.do(Recover("r.0", before=0)) == Ok()
    assert await play.do(More("r.0", rows_of(OK, "r.0.2", "r.0", 2))) == Closed()
    assert await play.states("r.0.1", "r.0", "r.1", "r") == (
        "cancelled cancelled skipped cancelled"
    )
    assert (await play.row("r.0")).reason.startswith("abandoned")


async def test_every_batch_gives_the_sender_more_time(play: Play) -> None:
    await play.add(GroupPlan([OK], is_sealed=False))
    play.clock.time += 50
    await play.do(More("r", rows_of(OK, "r.1", "r", 1)))
    play.clock.time += 50
    assert await play.store.suspects(before=0) == []
    assert await play.do(Recover("r", before=0)) == Refused()


async def test_a_group_that_is_cancelled_takes_no_more_members(play: Play) -> None:
    await play.add(GroupPlan([OK], is_sealed=False))
    assert await play.do(Cancel("r")) == Cancelled()
    assert await play.do(More("r", rows_of(OK, "r.1", "r", 1))) == Closed()


async def test_a_cancelling_group_that_fails_early_takes_no_more_members(play: Play) -> None:
    await play.add(GroupPlan([OK], Policy.CANCEL, is_sealed=False))
    await play.run("r.0", state=State.FAILED)
    assert await play.states("r") == "failed"
    assert await play.do(More("r", rows_of(OK, "r.1", "r", 1))) == Closed()


# Lost messages


async def test_a_lost_message_is_published_under_another_id(play: Play) -> None:
    await play.add(OK)
    await play.do(Sent(["r:0"]))
    play.clock.time += 100
    late = play.clock.time - 60
    assert await play.store.suspects(late) == ["r"]
    assert await play.do(Recover("r", late)) == Ok()
    assert play.keys == ["r:0:1"]
    assert await play.store.suspects(late) == []
    assert await play.do(Recover("r", late)) == Refused()


async def test_a_running_task_is_recovered_when_its_worker_is_dead(play: Play) -> None:
    await play.add(OK)
    await play.store.heartbeat(Heartbeat("w", ttl=200))
    await play.begin("r")
    play.clock.time += 100
    late = play.clock.time - 60
    assert await play.store.suspects(late) == []
    assert await play.do(Recover("r", late)) == Refused()

    play.clock.time += 100
    assert await play.store.suspects(late) == ["r"]
    assert await play.do(Recover("r", late)) == Ok()
    assert await play.do(End("r", 0, "t", State.SUCCEEDED)) == Ended(), "it was alive after all"


# Unique keys


async def test_a_unique_key_has_one_open_task(play: Play) -> None:
    one = TaskPlan(unique="k")
    await play.add(one, "a")
    assert await play.add(one, "b") == Conflict("a")
    assert play.keys == []
    await play.run("a")
    assert await play.add(one, "b") == Added()


async def test_a_redrive_against_an_open_unique_key_changes_nothing(play: Play) -> None:
    one = TaskPlan(unique="k")
    await play.add(one, "a")
    await play.run("a", state=State.FAILED)
    await play.add(one, "b")
    assert await play.begin("a", run=1) == Conflict("b")
    assert await play.states("a", "b") == "failed queued"
    await play.run("b")
    await play.begin("a", run=1)
    assert await play.add(one, "c") == Conflict("a")


# Schedules, batches, retention


async def test_only_one_scheduler_fires(play: Play) -> None:
    assert await play.do(Fire("s", 0, 60.0, definition=b"cron")) == Fired()
    assert await play.do(Fire("s", 0, 60.0)) == Lost()
    assert await play.do(Fire("s", 1, 120.0, rows_of(OK, "s60"))) == Fired()
    assert play.keys == ["s60:0"]
    assert await play.do(Fire("s", 1, 120.0, rows_of(OK, "s60"))) == Lost()
    schedule = (await play.store.schedules())[0]
    assert (schedule.version, schedule.next_at, schedule.definition) == (2, 120.0, b"cron")


async def test_changes_of_one_transaction_see_each_other(play: Play) -> None:
    applied = await play.store.apply(
        [
            Add(rows_of(OK, "r")),
            Begin("r", 0, 1, "t", "w"),
            End("r", 0, "t", State.SUCCEEDED, b"1"),
            Sent(["r:0"]),
        ]
    )
    assert [type(outcome) for outcome in applied.outcomes] == [Added, Started, Ended, Ok]
    assert applied.keys == []
    assert await play.states("r") == "succeeded"


async def test_a_transaction_that_fails_changes_nothing(play: Play) -> None:
    with pytest.raises(IllegalTransition):
        await play.store.apply(
            [Add(rows_of(OK, "r")), Begin("r", 0, 1, "t", "w"), Back("r", 0, "t", State.SKIPPED)]
        )
    assert await play.store.nodes(["r"]) == [None]
    assert await play.store.outbox() == []


async def test_old_trees_are_removed_and_live_ones_are_not(play: Play) -> None:
    await play.add(GroupPlan([OK, OK]))
    await play.run("r.0", "r.1", state=State.FAILED)
    await play.begin("r.1", run=1)
    play.clock.time += 100
    assert await play.store.purge(play.clock.time) == 0
    await play.do(End("r.1", 1, "t", State.SUCCEEDED))
    assert await play.store.purge(play.clock.time) == 1
    assert await play.store.nodes(["r", "r.0", "r.1"]) == [None, None, None]


async def test_the_outbox_keeps_what_was_not_sent(play: Play) -> None:
    await play.add(OK)
    play.clock.time += 5
    await play.add(OK, "s")
    old = await play.store.outbox(written_before=play.clock.time)
    assert [(item.entry.key, item.node and item.node.queue) for item in old] == [("r:0", "work")]
    assert [item.entry.key for item in await play.store.entries(["s:0", "x"])] == ["s:0"]
    await play.do(Sent(["r:0", "s:0"]))
    assert await play.store.outbox() == []
