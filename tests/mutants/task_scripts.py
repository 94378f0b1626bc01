"""Scripts of the Redis task store with one piece of text replaced. The contract must catch each."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from mqcore_redis import scripts

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pytest

__all__ = ["SCRIPT_MUTANTS", "ScriptMutant", "broken"]


class ScriptMutant(NamedTuple):
    """A piece of a script that is replaced, and the part of the contract that must catch it."""

    name: str
    part: str
    script: str
    """The file in `lua/tasks/`."""
    text: str
    """What is replaced. It stands once in the file."""
    by: str


@contextmanager
def broken(mutant: ScriptMutant, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace the text in whatever is loaded meanwhile."""
    read = scripts._read
    assert read(f"tasks/{mutant.script}").count(mutant.text) == 1, mutant.text

    def read_broken(name: str) -> str:
        text = read(name)
        is_broken = name == f"tasks/{mutant.script}"
        return text.replace(mutant.text, mutant.by) if is_broken else text

    def forget() -> None:
        scripts.script.cache_clear()
        scripts._start.cache_clear()

    with monkeypatch.context() as patch:
        patch.setattr(scripts, "_read", read_broken)
        forget()
        try:
            yield
        finally:
            forget()
    forget()


_COUNTING = (
    ScriptMutant(
        "MemberCountedTwice",
        "equality",
        "walk",
        "if node.is_counted then",
        "if false then",
    ),
    ScriptMutant(
        "FailureIsNotACompletion",
        "equality",
        "walk",
        "  group.done = group.done + 1\n",
        "  group.done = group.done + (member.state == 'failed' and 0 or 1)\n",
    ),
    ScriptMutant(
        "FailureIsKeptAfterARedrive",
        "equality",
        "walk",
        "  if is_open and node.state == 'succeeded' then",
        "  if false then",
    ),
    ScriptMutant(
        "BodyOfFailedGroup",
        "equality",
        "walk",
        "  elseif group.bad > 0 and group.policy ~= 'collect' then",
        "  elseif false then",
    ),
    ScriptMutant(
        "ClosesBeforeTheLastBatch",
        "equality",
        "walk",
        "or not group.is_sealed or group.done",
        "or group.done",
    ),
)

_FENCES = (
    ScriptMutant(
        "AttemptFence",
        "equality",
        "changes",
        "  if begin.run < node.run or",
        "  if is_live(node) and begin.attempt < node.attempt or begin.run < node.run or",
    ),
    ScriptMutant(
        "NoTokenFence",
        "equality",
        "changes",
        "return node.run == run and node.token == token and node or nil",
        "return node",
    ),
    ScriptMutant(
        "NoRunFence",
        "equality",
        "changes",
        "return node.run == run and node.token",
        "return node.token",
    ),
    ScriptMutant(
        "TerminalStateLeft",
        "equality",
        "changes",
        "local opens_next_run = begin.run > node.run\n",
        "local opens_next_run = true\n",
    ),
    ScriptMutant(
        "LostDeadLetter",
        "crash points",
        "changes",
        "not opens_next_run then\n    return { 'terminal', node.state }",
        "not opens_next_run then\n    return { 'terminal', 'succeeded' }",
    ),
    ScriptMutant(
        "CopyTakesOverALivingRun",
        "cases",
        "changes",
        "  if begin.is_redelivered or node.state ~= 'running' then",
        "  if true then",
    ),
    ScriptMutant(
        "RedeliveryIsACopy",
        "cases",
        "changes",
        "  if begin.is_redelivered or node.state ~= 'running' then",
        "  if node.state ~= 'running' then",
    ),
    ScriptMutant(
        "RecoverIgnoresTheOutbox",
        "cases",
        "changes",
        "  if may_wait and has_entry",
        "  if false and has_entry",
    ),
    ScriptMutant(
        "RecoverForgetsTheExpiry",
        "cases",
        "changes",
        "  if has_expired(node) then",
        "  if false then",
    ),
    ScriptMutant(
        "HookKillsALivingRun",
        "equality",
        "changes",
        "  if node.state == 'running' and is_alive(node.worker) then\n    return 'busy'",
        "  if false then\n    return 'busy'",
    ),
    ScriptMutant(
        "HookNeverEndsARunningTask",
        "equality",
        "changes",
        "  if node.state == 'running' and is_alive(node.worker) then\n    return 'busy'",
        "  if node.state == 'running' then\n    return 'busy'",
    ),
    ScriptMutant(
        "RedriveOpensNothing",
        "equality",
        "changes",
        "  if ENDED[node.state] and not opens_next_run then",
        "  if ENDED[node.state] then",
    ),
    ScriptMutant(
        "ResultOfAnEarlierRun",
        "equality",
        "walk",
        "  if result or node.result then",
        "  if result then",
    ),
)

_CANCELLATION = (
    ScriptMutant(
        "CancelOfAWaitingStepWalksUpward",
        "equality",
        "walk",
        "  elseif node.state ~= 'waiting' then\n    walk.cancel_below(node)\n",
        "  elseif node.state ~= 'waiting' then\n    walk.cancel_below(node)\n"
        "  else\n    walk.finish(node, 'cancelled')\n",
    ),
    ScriptMutant(
        "ChainIgnoresTheCancel",
        "equality",
        "walk",
        "  if walk.is_cancelled(chain) then",
        "  if false then",
    ),
    ScriptMutant(
        "FlagsAboveAreNotRead",
        "equality",
        "walk",
        "    above = above.parent ~= '' and above.index >= 0 and get(above.parent)",
        "    above = nil",
    ),
    ScriptMutant(
        "ReplacedAfterACancel",
        "equality",
        "changes",
        "  local node, rows = held(take(), take_number(), take()), take_rows()\n"
        "  if not node then\n    return 'refused'\n  end\n  if walk.is_cancelled(node) then",
        "  local node, rows = held(take(), take_number(), take()), take_rows()\n"
        "  if not node then\n    return 'refused'\n  end\n  if false then",
    ),
    ScriptMutant(
        "CancelStopsAtTheReplacement",
        "equality",
        "walk",
        "    local below = get(current)",
        "    local below = node.kind == 'chain' and get(current)",
    ),
    ScriptMutant(
        "SkipsOnlyTheNextStep",
        "equality",
        "walk",
        "    for _, step in ipairs(children(flow.id, flow.done, flow.size)) do",
        "    for _, step in ipairs({}) do",
    ),
    ScriptMutant(
        "CancelIsNotShownToTheWorker",
        "equality",
        "rows",
        "return node.cancel ~= 'no' and node.worker ~= '' and is_live(node) and node.worker",
        "return false",
    ),
    ScriptMutant(
        "CancelIsShownToEveryWorker",
        "equality",
        "heartbeat",
        "  if asked[place + 1] == ARGV[2] then",
        "  if true then",
    ),
)

_SLICES_AND_OUTBOX = (
    ScriptMutant(
        "BlindSlice", "cases", "changes", "if start_of(key) ~= first then", "if false then"
    ),
    ScriptMutant(
        "LastSliceIsForgotten",
        "cases",
        "changes",
        "  if stop < group.size then",
        "  if stop + slice_size < group.size then",
    ),
    ScriptMutant(
        "TreatsEveryGroupAtOnce", "cases", "walk", "  if group.size <= room then", "  if true then"
    ),
    ScriptMutant(
        "ForgetsTheOutbox",
        "equality",
        "walk",
        "  put_entry(message_key(node), node.id, node.run)",
        "  if node.input == '' then put_entry(message_key(node), node.id, node.run) end",
    ),
    ScriptMutant(
        "OutboxWithoutItsOrder",
        "cases",
        "rows",
        "push(order, now_text, key)",
        "push(order, 0, key)",
    ),
    ScriptMutant(
        "WritesBeforeTheEnd",
        "cases",
        "changes",
        "      walk.run()\n",
        "      walk.run()\n      commit()\n",
    ),
    ScriptMutant(
        "StepsAreMadeFromTheLastOne",
        "equality",
        "walk",
        "  last_step = last_step + 1\n",
        "  last_step = next_step\n",
    ),
)

_RECONCILER_AND_KEYS = (
    ScriptMutant(
        "RecoverReusesTheId", "equality", "changes", "  node.copies = node.copies + 1\n", ""
    ),
    ScriptMutant(
        "RecoverForgetsRunningTasks",
        "equality",
        "rows",
        "    return is_live(node) and node.due",
        "    return is_live(node) and node.state ~= 'running' and node.due",
    ),
    ScriptMutant(
        "RecoverForgetsAbandonedGroups",
        "equality",
        "rows",
        "    return not node.is_sealed and not ENDED[node.state] and node.seal_by",
        "    return false",
    ),
    ScriptMutant(
        "IndexesKeepWhatHasEnded",
        "equality",
        "rows",
        "        gone[#gone + 1] = was[id] and member\n",
        "",
    ),
    ScriptMutant(
        "KeyIsNotGivenBack",
        "equality",
        "walk",
        "    limits.hand_over(node)\n",
        "",
    ),
    ScriptMutant(
        "RedriveTakesTheKey",
        "cases",
        "changes",
        "  return conflict or wait",
        "  return wait",
    ),
    ScriptMutant(
        "TwoSchedulersFire",
        "cases",
        "changes",
        "  if (stored and head_of(stored).version or 0) ~= version then",
        "  if false then",
    ),
    ScriptMutant(
        "PurgeRemovesWhatIsLive",
        "cases",
        "purge",
        "or 0) == 0 then",
        "or 0) >= 0 then",
    ),
    ScriptMutant(
        "PurgeRemovesByTheTimeOfTheServer",
        "cases",
        "purge",
        "'(' .. ARGV[2]",
        "'(' .. text(server_time())",
    ),
    ScriptMutant("TimesAreRounded", "cases", "rows", "'%.17g'", "'%.3g'"),
    ScriptMutant(
        "TheClockIsNotRead",
        "equality",
        "rows",
        "tonumber(ARGV[1]) or server_time()",
        "server_time()",
    ),
)

_LIMITS = (
    ScriptMutant(
        "TurnIsTakenTwice", "cases", "limits", "if turn > 0 and used", "if false and used"
    ),
    ScriptMutant(
        "TurnsThatAreOverStartAtOnce",
        "cases",
        "limits",
        "local is_late = now - turn >= interval",
        "local is_late = false",
    ),
    ScriptMutant(
        "UnusedTurnsHoldOthersUp", "cases", "limits", "if used + UNUSED < now", "if false"
    ),
    ScriptMutant(
        "EarlyMessageTakesATurn", "cases", "limits", "if turn > now + EARLY then", "if false then"
    ),
    ScriptMutant(
        "LineIsForgotten", "cases", "limits", "while #slots.held < slots.count do", "while false do"
    ),
    ScriptMutant(
        "KeyIsNotHandedOver",
        "cases",
        "limits",
        "  local task, since = first_waiter(key)\n  while task do",
        "  local task, since\n  while task do",
    ),
    ScriptMutant("DeadWorkerKeepsItsSlot", "cases", "limits", "or is_alive(holder[2])", "or true"),
    ScriptMutant("SlotIsNotKept", "cases", "limits", "if between and place", "if false and place"),
    ScriptMutant("SlotIsNotLeft", "cases", "walk", "  limits.leave(node)\n", ""),
    ScriptMutant(
        "TaskOfADeadWorkerIsInNoLine",
        "cases",
        "limits",
        " or node.state == 'running' then",
        " then",
    ),
    ScriptMutant(
        "LineIsNotWritten",
        "cases",
        "limits",
        "      if since then\n",
        "      if false then\n",
    ),
)

_FOLLOWING = (
    ScriptMutant(
        "RedriveSendsTheCallsAgain",
        "cases",
        "walk",
        "elseif following and following.state == 'waiting' then",
        "elseif following then\n      following.state = 'waiting'",
    ),
    ScriptMutant(
        "CancellationReachesTheCalls",
        "cases",
        "walk",
        "    above = above.parent ~= '' and above.index >= 0 and get",
        "    above = above.parent ~= '' and get",
    ),
    ScriptMutant(
        "CallCountsAsAMember",
        "cases",
        "walk",
        "  if node.parent ~= '' and node.index >= 0 then",
        "  if node.parent ~= '' then",
    ),
    ScriptMutant(
        "SuccessIsAnError",
        "cases",
        "walk",
        "if following and (not is_wanted or",
        "if following and (",
    ),
)

SCRIPT_MUTANTS = (
    *_FOLLOWING,
    *_LIMITS,
    *_COUNTING,
    *_FENCES,
    *_CANCELLATION,
    *_SLICES_AND_OUTBOX,
    *_RECONCILER_AND_KEYS,
)
