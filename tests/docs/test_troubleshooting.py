"""Each error text of mqcore that *Troubleshooting* quotes is in the code."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
OURS = PAGE.partition("## By error text")[2].partition("From the servers themselves")[0]
TEXTS = re.findall(r"^\| `([^`]+)` \|", OURS, re.MULTILINE)
COMMANDS = sorted(set(re.findall(r"`(mqcore [a-z][^`]*)`", PAGE)))


@cache
def templates() -> tuple[str, ...]:
    """Return all texts of the shipped code, with `…` where an f-string has a value."""
    found = set()
    for path in (*(ROOT / "mqcore").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = (
                    part.value if isinstance(part, ast.Constant) else "…" for part in node.values
                )
                found.add(" ".join("".join(map(str, parts)).split()))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(" ".join(node.value.split()))
    return tuple(found)


def is_in_the_code(quoted: str) -> bool:
    pieces = [re.escape(piece.strip()) for piece in quoted.split("…") if piece.strip()]
    pattern = re.compile(".*".join(pieces))
    return any(pattern.search(text) for text in templates())


def test_the_page_quotes_texts() -> None:
    assert len(TEXTS) > 15


@pytest.mark.parametrize("quoted", TEXTS)
def test_a_quoted_error_is_in_the_code(quoted: str) -> None:
    assert is_in_the_code(quoted)


def test_a_text_that_no_code_has_is_noticed() -> None:
    assert not is_in_the_code("the flux capacitor … is not charged")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_quoted_command_exists(command: str) -> None:
    from typer.main import get_command  # noqa: PLC0415 - as above

    from mqcore.cli.app import application  # noqa: PLC0415 - only here, as the site's hook does

    group = get_command(application(plugins=True))
    for word in command.split()[1:]:
        if not hasattr(group, "commands"):
            break
        assert word in group.commands, command
        group = group.commands[word]
