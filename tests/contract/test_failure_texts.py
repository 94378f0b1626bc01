"""A failure says what was expected, which of the author's lines to look at, and what was logged."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from mqcore.contract import (
    Case,
    Harness,
    Kit,
    MemoryHarness,
    Report,
    all_cases,
    run_case,
    run_contract,
)
from mqcore.contract import run as running
from mqcore.contract.table import capability_table, limits_in_words
from mqcore.errors import QueueNotFound
from mqcore.queue import Queue
from mqcore.router import Router
from mqcore.spi import (
    Backend,
    Capabilities,
    ErrorKind,
    Outcome,
    Outgoing,
    QueueSpec,
    Subscription,
    SupportsBind,
)
from mqcore_memory.backend import MemoryBackend
from mqcore_memory.options import MemoryOptions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence


class BrokenHarness(MemoryHarness):
    """A memory backend of the author's own class."""

    def __init__(self, kind: type[MemoryBackend] = MemoryBackend) -> None:
        super().__init__()
        self.kind = kind

    def make_backend(self) -> Backend:
        return self.kind(self.url, MemoryOptions(clock=self.clock))


class Forgetful(MemoryBackend):
    """Publishes nothing: the method is not written yet, or is wrong."""

    error: Exception = NotImplementedError("write Forgetful.publish next")

    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        raise self.error


class Mistaken(Forgetful):
    error = TypeError("a tuple is not supported")


class Slow(MemoryBackend):
    async def subscribe(self, queue: str, *, prefetch: int, lease: float) -> Subscription:
        await asyncio.Event().wait()
        raise AssertionError


class Spinning(MemoryBackend):
    async def subscribe(self, queue: str, *, prefetch: int, lease: float) -> Subscription:
        while True:
            await self._options.clock.sleep(0)


class Impatient(MemoryBackend):
    """Raises its own timeout, while a background task waits for work."""

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        self.idle = asyncio.create_task(self.wait_for_work())
        return await super().open(lost)

    async def wait_for_work(self) -> None:
        await asyncio.Event().wait()

    async def close(self) -> None:
        self.idle.cancel()
        await super().close()

    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        raise TimeoutError("no answer from the server to PUB")

    async def subscribe(self, queue: str, *, prefetch: int, lease: float) -> Subscription:
        async with asyncio.timeout(0.01):
            return await self.answer()

    async def answer(self) -> Subscription:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        if queues[0].name == "never":
            await asyncio.get_running_loop().create_future()
        if queues[0].name == "runtime":
            raise RuntimeError("a pool is closed")
        await super().declare(queues)


def said(
    steps: Callable[[Kit], Awaitable[None]],
    kind: type[MemoryBackend] = MemoryBackend,
    harness: Harness | None = None,
) -> str:
    case = Case("own.case", "own", (), (), "One of ours.", steps)
    return run_case(case, harness or BrokenHarness(kind)).text


def line_of(function: Callable[..., Any], step: str) -> str:
    """Return the place of a line of a function, as a failure prints it."""
    code = function.__code__
    lines = Path(code.co_filename).read_text(encoding="utf-8").splitlines()
    return next(
        f"{code.co_name} ({code.co_filename}:{number})"
        for number, line in enumerate(lines, 1)
        if number > code.co_firstlineno and line.strip() == step
    )


def test_a_call_that_does_not_return_is_named_with_the_line_where_it_waits() -> None:
    async def steps(kit: Kit) -> None:
        await kit.subscribe(await kit.queue())

    text = said(steps, Slow)
    assert "expected: Slow.subscribe returns within 8 s" in text
    assert f"look at: {line_of(Slow.subscribe, 'await asyncio.Event().wait()')}" in text


def test_what_is_awaited_may_be_described_in_words() -> None:
    async def steps(kit: Kit) -> None:
        await kit.within(asyncio.Event().wait(), what="the message handled")

    assert "expected: the message handled within 8 s" in said(steps)


def test_a_method_that_is_not_written_is_reported_wherever_a_case_calls_it() -> None:
    async def straight(kit: Kit) -> None:
        await kit.put(await kit.queue(), "a")

    async def any_error_will_do(kit: Kit) -> None:
        await kit.raises(Exception, kit.backend.publish([], timeout=1.0), "any error")

    async def behind_core(kit: Kit) -> None:
        await kit.raises(
            QueueNotFound, (await kit.broker()).publish("nowhere", b""), "QueueNotFound"
        )

    texts = [said(steps, Forgetful) for steps in (straight, any_error_will_do, behind_core)]
    for text in texts:
        assert "came: NotImplementedError: write Forgetful.publish next" in text
        assert f"look at: {line_of(Forgetful.publish, 'raise self.error')}" in text
    assert "seen as: PublishUnknown: message" in texts[2]
    assert "may or may not be stored" in texts[2]


def test_an_error_of_core_points_to_where_its_cause_was_raised() -> None:
    async def steps(kit: Kit) -> None:
        await kit.raises(
            QueueNotFound,
            (await kit.broker()).publish("nowhere", b""),
            "QueueNotFound",
            "Backend.publish",
        )

    assert f"look at: Backend.publish, {line_of(Forgetful.publish, 'raise self.error')}" in said(
        steps, Mistaken
    )


def test_a_timeout_of_the_driver_is_reported_unchanged() -> None:
    async def steps(kit: Kit) -> None:
        await kit.put(await kit.queue(), "a")

    text = said(steps, Impatient)
    assert "came: TimeoutError: no answer from the server to PUB" in text
    assert "it hangs" not in text
    place = line_of(Impatient.publish, 'raise TimeoutError("no answer from the server to PUB")')
    assert text.partition("look at: ")[2] == place


def test_a_timeout_of_the_driver_names_the_await_that_took_too_long() -> None:
    async def steps(kit: Kit) -> None:
        await kit.subscribe(await kit.queue())

    text = said(steps, Impatient)
    assert "came: TimeoutError: " in text
    place = line_of(Impatient.answer, "await asyncio.get_running_loop().create_future()")
    assert text.partition("look at: ")[2] == place


def test_a_case_that_hangs_names_the_call_that_it_awaits_and_no_idle_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def steps(kit: Kit) -> None:
        await kit.within(kit.backend.declare([QueueSpec(name="never")]), float("inf"))

    monkeypatch.setattr(running, "_VIRTUAL_LIMIT", 0.2)
    text = said(steps, Impatient)
    assert "it hangs for 0.2 s" in text
    assert line_of(Impatient.declare, "await asyncio.get_running_loop().create_future()") in text
    assert "wait_for_work" not in text


def test_a_case_that_hangs_in_its_own_call_names_that_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def steps(kit: Kit) -> None:
        await kit.backend.declare([QueueSpec(name="never")])

    monkeypatch.setattr(running, "_VIRTUAL_LIMIT", 0.2)
    text = said(steps, Impatient)
    assert line_of(Impatient.declare, "await asyncio.get_running_loop().create_future()") in text
    assert "wait_for_work" not in text


def test_a_runtime_error_of_the_driver_points_to_where_it_was_raised() -> None:
    async def steps(kit: Kit) -> None:
        await kit.backend.declare([QueueSpec(name="runtime")])

    text = said(steps, Impatient)
    assert "came: RuntimeError: a pool is closed" in text
    assert text.partition("look at: ")[2] == line_of(
        Impatient.declare, 'raise RuntimeError("a pool is closed")'
    )


class Losing(MemoryBackend):
    """Loses its connection when a queue is declared, and cannot publish from then on."""

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        self.lost = lost
        return await super().open(lost)

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        await super().declare(queues)
        self.lost(ConnectionResetError("the peer was restarted"))

    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        raise ConnectionError("not connected")


def test_an_error_that_is_its_own_cause_is_reported() -> None:
    async def steps(kit: Kit) -> None:
        error = ConnectionError("round and round")
        raise error from error

    assert "came: ConnectionError: round and round" in said(steps)


def test_a_loss_is_reported_with_the_failure_after_it() -> None:
    async def steps(kit: Kit) -> None:
        await kit.put(await kit.queue(), "a")

    text = said(steps, Losing)
    assert "came: ConnectionError: not connected" in text
    assert text.endswith("\n     lost: ConnectionResetError('the peer was restarted')")


def test_a_wrong_kind_is_reported_with_the_exception() -> None:
    async def steps(kit: Kit) -> None:
        kit.kind(
            await kit.raises(TypeError, kit.put("nowhere", "a"), "TypeError"), ErrorKind.NOT_FOUND
        )

    text = said(steps, Mistaken)
    assert "expected: an exception of the kind NOT_FOUND" in text
    assert "came: PERMANENT: TypeError('a tuple is not supported')" in text


def test_logged_warnings_are_part_of_a_failure_and_on_no_stream(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async def steps(kit: Kit) -> None:
        logging.getLogger("mqcore").warning("the publish failed")
        await asyncio.to_thread(logging.getLogger("mqcore").warning, "another case's")
        kit.same(1, 2, "two")

    assert said(steps).splitlines()[-1] == "  logged: mqcore: the publish failed"
    assert capfd.readouterr().err == ""


def test_a_backend_that_spins_in_virtual_time_is_ended_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def steps(kit: Kit) -> None:
        await kit.subscribe(await kit.queue())

    monkeypatch.setattr(running, "_VIRTUAL_LIMIT", 0.2)
    text = said(steps, Spinning)
    assert "it hangs for 0.2 s" in text
    assert line_of(Spinning.subscribe, "await self._options.clock.sleep(0)") in text
    assert "virtual clock" in text


class Modest(MemoryBackend):
    """Declares nothing, as a backend does at first."""

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        told = await super().open(lost)
        return Capabilities(told.backend, told.server, told.durability, {})


def test_no_case_uses_a_capability_that_is_not_declared() -> None:
    asked = {"core", "delivery", "foreign", "routing", "retry", "dead-letter"}
    cases = [case for case in all_cases() if case.profile in asked]
    results = run_contract(lambda: BrokenHarness(Modest), cases=cases)
    refused = [result.case.name for result in results if "UnsupportedFeature" in result.text]
    assert refused == []


async def test_the_end_of_a_case_deletes_its_routers() -> None:
    harness = BrokenHarness()
    kit = Kit(harness)
    keeper = harness.make_backend()
    await keeper.open(lambda _: None)
    await kit.open(kit.backend)
    broker = await kit.broker()
    await kit.within(broker.declare(Router(kit.name(), kind="fanout").bind(Queue("kept"))))
    assert isinstance(keeper, SupportsBind)
    assert len(await keeper.bindings()) == 1
    await kit.close()
    assert await keeper.bindings() == []
    await keeper.close()


# The report


def test_a_report_lists_every_case_and_limits_with_units() -> None:
    cases = [case for case in all_cases() if case.name.startswith("core.a_re")]
    results = run_contract(MemoryHarness, cases=cases)
    capabilities = results[0].capabilities
    assert capabilities is not None
    report = Report(results, capabilities, capabilities.server, whole=False)
    page = report.markdown()
    for case in cases:
        assert f"| {case.name.partition('.')[2]} | {' '.join(case.guarantees)} | passed |" in page
    assert "| DELAY | native | granularity 5 ms, max 3,650 d |" in page
    assert "| EXPIRY | native | sweep yes |" in page


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"granularity": 0.25, "max": 90.0}, "granularity 250 ms, max 1.5 min"),
        ({"window": 600.0, "size": 1_000_000}, "window 10 min, size 1,000,000"),
        ({"release_in_place": False, "after_delay": "end"}, "release_in_place no, after_delay end"),
        ({}, ""),
    ],
    ids=str,
)
def test_limits_are_printed_with_units(limits: dict[str, Any], words: str) -> None:
    assert limits_in_words(limits) == words


def test_reports_are_columns_of_one_table() -> None:
    one: dict[str, Any] = {
        "backend": "one",
        "server": "One 1.0",
        "durability": "memory",
        "verdict": "passed",
        "counts": {"passed": 3},
        "capabilities": {"DELAY": {"level": "native", "limits": {"granularity": 0.1}}},
    }
    other = {**one, "backend": "other", "server": "a|b", "capabilities": {}}
    rows = capability_table([one, other]).splitlines()
    assert rows[0] == "|  | one<br>One 1.0 | other<br>a\\|b |"
    assert rows[2] == "| DELAY | native: granularity 100 ms | none |"
    assert rows[-2:] == [
        "| durability | memory | memory |",
        "| the run | passed: 3 passed | passed: 3 passed |",
    ]


def test_servers_that_can_do_the_same_share_a_column() -> None:
    seven: dict[str, Any] = {
        "backend": "redis",
        "server": "Redis 7.0",
        "durability": "machine",
        "verdict": "passed",
        "counts": {"passed": 3},
        "capabilities": {},
    }
    eight, less = (
        {**seven, "server": "Redis 8.0"},
        {**seven, "server": "Redis 6.0", "durability": "memory"},
    )
    rows = capability_table([seven, less, eight]).splitlines()
    assert rows[0] == "|  | redis<br>Redis 7.0, Redis 8.0 | redis<br>Redis 6.0 |"
    assert rows[-1] == "| the run | passed: 3 passed | passed: 3 passed |"
