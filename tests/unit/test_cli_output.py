"""The output of commands: bytes, times, URLs, and the health of several workers."""

from __future__ import annotations

import io
import logging
import re
import sys
import time

import pytest

from mqcore.cli.health import together
from mqcore.cli.logs import logging_set_up
from mqcore.cli.output import (
    ago,
    amount,
    data_of_body,
    escaped,
    iso,
    one_line,
    print_table,
    shown_body,
    span,
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"),
        (59.94, "59.9s"),
        (60, "1m00s"),
        (187, "3m07s"),
        (3600, "1h00m"),
        (86_399, "23h59m"),
        (777_600, "9d00h"),
    ],
)
def test_a_span_is_told_in_two_units(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_a_moment_is_told_in_utc_and_as_an_age() -> None:
    assert iso(1_735_689_600.25) == "2025-01-01T00:00:00.250Z"
    assert (iso(None), ago(None)) == (None, None)
    assert ago(time.time() + 60) == "0.0s"  # another machine's clock is ahead of ours
    assert amount(1, "message") == "1 message"
    assert amount(2000, "message") == "2,000 messages"


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        (b"plain", "plain"),
        ("über €".encode(), "über €"),
        (b"\x1b[2J\r\x07", r"\x1b[2J\r\x07"),
        (b"a\nb\tc", r"a\nb\tc"),
        (b"\xff\xfe", r"\xff\xfe"),
        ("\u202e\u2028".encode(), r"\u202e\u2028"),
        (b"x" * 21, "x" * 19 + "…"),
        ("€".encode() * 20, "€" * 20),
        ("😀".encode() * 21, "😀" * 19 + "…"),
    ],
)
def test_a_body_in_a_table_is_one_harmless_line(body: bytes, shown: str) -> None:
    assert shown_body(body, most=20) == shown


def test_a_whole_body_keeps_its_lines() -> None:
    assert shown_body(b"a\n\tb\x1b\n" * 100) == "a\n\tb\\x1b\n" * 100
    assert data_of_body(b"\xff") == {"body": "/w==", "body_encoding": "base64"}
    assert data_of_body("€".encode()) == {"body": "€", "body_encoding": "utf-8"}


@pytest.mark.parametrize(
    "text",
    [
        "cannot reach redis://user:canary@host:6379/0, try later",
        "'amqp://user:canary@host'",
        "(postgresql://u:can@ary@host/db?password=canary)",
        "two: redis://:canary@a and redis://:canary@b",
        "x" * 1990 + " redis://user:canary@host",
    ],
)
def test_no_line_has_the_secrets_of_a_url(text: str) -> None:
    line = one_line(text)
    assert "canary" not in line
    assert "ary@" not in line


def test_a_line_is_one_line() -> None:
    assert one_line("a\n  b\t\x1b[31mc") == r"a b \x1b[31mc"
    assert len(one_line("x" * 9999)) == 2000
    assert escaped("\r\n", lines=True) == "\\r\n"


def test_a_table_in_a_pipe_is_columns_without_end() -> None:
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        print_table(
            ("id", "n", "body"),
            [("i" * 300, 1234, "[bold]x"), ("j", None, "\x1b")],
            empty="nothing",
        )
        print_table(("id",), [], empty="nothing")
    assert out.getvalue().splitlines() == [
        f"{'ID':300}  N      BODY",
        f"{'i' * 300}  1,234  [bold]x",
        f"{'j':300}  -      \\x1b",
        "nothing",
    ]


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_table_on_a_terminal_cuts_only_its_last_column_and_takes_no_markup(columns: int) -> None:
    out, id = io.StringIO(), "0123456789abcdef" * 2
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", out)
        patch.setattr(out, "isatty", lambda: True, raising=False)
        patch.setenv("COLUMNS", str(columns))
        patch.setenv("TERM", "xterm")
        print_table(
            ("id", "n", "body"), [(id, 1234, "[bold]x[/bold]" + "y" * 300), ("j", 5, "")], empty=""
        )
    head, _, first, second, *_ = (
        line for line in re.sub(r"\x1b\[\d*m", "", out.getvalue()).splitlines() if line.strip()
    )
    assert head.split() == ["id", "n", "body"]
    assert first.split()[:2] == [id, "1,234"]
    assert first.split()[2].startswith("[bold]x[/bold]y")
    assert first.rstrip().endswith("…")
    assert second.split() == ["j", "5"]
    assert len(first.rstrip()) <= max(columns, 70)


WELL = {"ok": True, "connected": True, "consuming": {"orders": True}}


@pytest.mark.parametrize(
    ("workers", "ok", "connected", "consuming"),
    [
        ([WELL, WELL], True, True, {"orders": True}),
        ([WELL], False, False, {"orders": True}),
        ([WELL, {"ok": False, "pid": 7}], False, False, {"orders": True}),
        (
            [WELL, {**WELL, "ok": False, "consuming": {"orders": False}}],
            False,
            True,
            {"orders": False},
        ),
        ([], False, False, {}),
    ],
)
def test_several_workers_are_well_when_each_is(
    workers: list[dict[str, object]], *, ok: bool, connected: bool, consuming: dict[str, bool]
) -> None:
    found = together(workers, 2)
    assert (found["ok"], found["connected"], found["consuming"]) == (ok, connected, consuming)


def test_a_log_line_of_ours_is_one_line_and_the_applications_keep_their_tracebacks() -> None:
    out, root = io.StringIO(), logging.getLogger()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(root, "handlers", [])
        patch.setattr(sys, "stderr", out)
        with logging_set_up(None):
            for name in ("mqcore", "shop"):
                try:
                    raise OSError("no way to redis://u:canary@host")  # noqa: TRY301 - it is what is logged
                except OSError:
                    logging.getLogger(name).exception("it failed\x1b")
        assert root.handlers == []
    ours, theirs, *trace = out.getvalue().splitlines()
    assert ours.endswith(
        r"ERROR mqcore it failed\x1b: OSError: no way to redis://u:***@host"
        + ours[ours.index(" (") :]
    )
    assert theirs.endswith("ERROR shop it failed\x1b")
    assert trace[0].startswith("Traceback")


def test_an_application_that_configured_logging_keeps_its_way() -> None:
    root, own = logging.getLogger(), logging.NullHandler()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(root, "handlers", [own])
        with logging_set_up(None):
            assert root.handlers == [own]
        with logging_set_up(io.StringIO()):
            assert own not in root.handlers
        assert root.handlers == [own]
