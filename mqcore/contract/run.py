"""Running cases without pytest. `mqcore contract run` and the pytest plugin use it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mqcore.contract.case import Case, all_cases
from mqcore.contract.kit import ContractError, Kit, NotShown
from mqcore.contract.locate import (
    LogCapture,
    raised_at,
    raised_in,
    root_cause,
    seen_by_application,
    suspended_at,
)
from mqcore.contract.machine import watched
from mqcore.errors import UnsupportedFeature
from mqcore.rules.redact import mask_text
from mqcore.testing import VirtualClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from mqcore.contract.harness import Harness
    from mqcore.rules.capabilities import Capabilities

__all__ = ["Result", "Status", "Waiver", "run_case", "run_contract"]

Status = Literal["passed", "failed", "waived", "not applicable", "not shown"]
_CASE_LIMIT, _VIRTUAL_LIMIT = 120.0, 30.0
"""Seconds of real time after which a case counts as hanging; the second with a virtual clock."""
_RESTART_LIMIT = 300.0
"""For a case that kills the server: RabbitMQ states that what was delayed may take 190 s then."""
_TRIES = 3
"""How often a case that checks seconds is tried, while the machine stands still meanwhile."""
_SPINS = "a loop that sleeps for 0 s keeps a virtual clock from advancing"


@dataclass(frozen=True, slots=True)
class Waiver:
    """A case that is known to fail, and why that is accepted.

    It is printed with every report. When the case passes, the waiver is reported as a failure.
    """

    case: str
    reason: str


@dataclass(frozen=True)
class Result:
    """The result of one case: status, reason, real seconds, and what it measured."""

    case: Case
    status: Status
    text: str = ""
    seconds: float = 0.0
    measured: Mapping[str, float] = field(default_factory=dict)
    capabilities: Capabilities | None = None
    repeated: Sequence[str] = ()
    """How each earlier try failed, on a machine that stood still; see `Case.timed`."""


def run_case(case: Case, harness: Harness, waiver: Waiver | None = None) -> Result:
    """Run one case in its own event loop and return its result; the backend's errors do not raise.

    A case is *not applicable* when the backend does not declare the capabilities it needs; another
    case checks that they are refused then. It is *not shown* when the harness lacks a hook. A case
    that checks seconds of real time is tried again when the machine stood still meanwhile.
    """
    missing = [hook for hook in case.hooks if not harness.has(hook)]
    if missing:
        return Result(case, "not shown", f"the harness has no {', '.join(missing)}")
    began, repeated = time.perf_counter(), list[str]()
    while True:
        kit = Kit(harness)
        with watched() as waits, LogCapture() as captured:
            status, text = asyncio.run(_run(case, kit))
        # A driver's error may contain its URL.
        text = mask_text(text + captured.text() if status == "failed" else text)

        excused = status == "failed" and case.timed and harness.clock.real and waits.busy
        if not excused or len(repeated) == _TRIES - 1:
            break
        repeated.append(f"{waits}:\n{text}")

    if waiver is not None:
        if status == "passed":
            status, text = "failed", f"the case passes; remove its waiver ({waiver.reason})"
        elif status == "failed":
            status, text = "waived", f"{waiver.reason}\n{text}"

    seconds, capabilities = time.perf_counter() - began, getattr(kit, "capabilities", None)
    return Result(case, status, text, seconds, dict(kit.measured), capabilities, repeated)


async def _run(case: Case, kit: Kit) -> tuple[Status, str]:
    virtual = isinstance(kit.clock, VirtualClock)
    limit = _VIRTUAL_LIMIT if virtual else _CASE_LIMIT
    if "restart" in case.hooks and not virtual:
        limit = _RESTART_LIMIT
    limited = asyncio.timeout(limit)

    try:
        async with limited:
            return await _steps(case, kit)
    except NotShown as reason:
        return "not shown", str(reason)
    except ContractError as error:
        return "failed", str(error)
    except Exception as error:  # noqa: BLE001 - any error of a backend is a finding
        # A TimeoutError may be the driver's own, raised long before the case's limit.
        if not (isinstance(error, TimeoutError) and limited.expired()):
            return "failed", _unexpected(error, kit)

        look = ": ".join(filter(None, (_standing(kit, error), _SPINS if virtual else "")))
        return "failed", str(ContractError("the case ends", f"it hangs for {limit:g} s", look))
    finally:
        await kit.close()


def _unexpected(error: Exception, kit: Kit) -> str:
    """Describe an unexpected exception: root cause, where to look, what an application sees."""
    began, outer = root_cause(error), seen_by_application(error)
    look = raised_at(began, kit.made)
    if isinstance(began, RuntimeError) and raised_in(began) == VirtualClock.__module__:
        # The clock reports a loop that spins, but not where.
        look = _standing(kit, began) or look
    if isinstance(began, UnsupportedFeature):
        look = "Backend.open: the Capabilities that it returns"
    text = str(ContractError("no exception", f"{type(began).__name__}: {began}", look))
    text += f"\n  seen as: {outer}" if outer else ""
    return text + "".join(f"\n     lost: {lost!r}" for lost in kit.lost[:1])


def _standing(kit: Kit, error: BaseException) -> str:
    """Return the lines of the backend at which the awaited calls wait.

    A driver's background tasks are idle most of the time and say nothing about a call that hangs.
    They are named only when the case awaits no call of the backend.
    """
    if places := _places(kit.awaited, kit):
        return places
    return raised_at(error, kit.made, own=True) or _places(asyncio.all_tasks(), kit)


def _places(tasks: Iterable[asyncio.Future[Any]], kit: Kit) -> str:
    return ", ".join(sorted({at for task in tasks if (at := suspended_at(task, kit.made))}))


async def _steps(case: Case, kit: Kit) -> tuple[Status, str]:
    await kit.open(kit.backend)
    if reason := _not_applicable(case, kit):
        return "not applicable", reason
    await case.run(kit)
    if kit.lost:
        raise ContractError(
            "an unbroken connection", repr(kit.lost[0]), "Backend.open: when `lost` is called"
        )
    return "passed", ""


def _not_applicable(case: Case, kit: Kit) -> str:
    absent = [capability.name for capability in case.needs if not kit.capabilities.has(capability)]
    if absent:
        return f"declares no {', '.join(absent)}"
    without = [
        protocol.__name__ for protocol in case.protocols if not isinstance(kit.backend, protocol)
    ]
    return f"has no {', '.join(without)}" if without else ""


def run_contract(
    make_harness: Callable[[], Harness],
    *,
    cases: Iterable[Case] | None = None,
    waivers: Sequence[Waiver] = (),
    on_result: Callable[[Result], None] = lambda _: None,
) -> list[Result]:
    """Run cases (None: all) in turn, each with a new harness; `on_result` gets each result."""
    accepted = {waiver.case: waiver for waiver in waivers}
    results = []
    for case in all_cases() if cases is None else cases:
        result = run_case(case, make_harness(), accepted.get(case.name))
        results.append(result)
        on_result(result)
    return results
