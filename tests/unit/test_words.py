"""Phrases that must not come back: in docstrings, texts and comments of the code, and in the docs.

They are easy to write and hard to read, above all for readers whose first language is not English.
Each pattern says what to write instead.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]

INSTEAD = {
    # "there is no queue" and "is no longer open" are plain English; "it is no Order" is not
    r"(?<!\bthere )\b(is|are|was|were) no (?!longer\b|more\b|fewer\b|less\b|later\b)\w": "is not a",
    r"\bthere (is|are) not\b(?! (a|an|any|enough|yet|only)\b)": "does not exist",
    r"\bwhoever\b": "name the caller, or: every caller that",
    r"\bnobody\b": "no consumer, no caller, or the passive",
    r"\banew\b": "again",
    r"\bfor ever\b": "indefinitely, without an end",
    r"\btold\b": "reported, described, informed",
    r"\blet(s|ting)? go\b": "release, remove, end",
    r"\b(is|are|was) said\b": "reported, stated",
    r"\bin vain\b": "without success",
    r"\bone's own\b": "its own, a private",
    r"\b(bury|buries|buried)\b": "dead-letter",
    r"\bbe had\b": "be available, be found",
    r"\bmend(s|ed|ing)?\b": "fix, repair",
}

ANY_PHRASE = re.compile("|".join(f"(?:{pattern})" for pattern in INSTEAD), re.IGNORECASE)
"""Most lines have none of them, and one look tells that."""
NOT_YET: set[str] = set()
"""Files and folders whose texts have not been rewritten yet. Take yours out when they are."""

CODE = [
    *(ROOT / "mqcore").rglob("*.py"),
    *(ROOT / "plugins").rglob("*.py"),
    *(ROOT / "mqcore/contract/template").rglob("*.tmpl"),
]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(path for path in (ROOT / "docs").rglob("*.md") if "adr" not in path.parts),
]


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Yield the texts of a Python file with their lines: comments, docstrings and other strings."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for offset, line in enumerate(node.value.split("\n")):
                yield node.lineno + offset, line

    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string


def prose(page: str) -> Iterator[tuple[int, str]]:
    """Yield the lines of a Markdown page with their numbers, without blocks of code."""
    is_code = False

    for number, line in enumerate(page.split("\n"), 1):
        if line.lstrip().startswith(("```", "~~~")):
            is_code = not is_code
        elif not is_code:
            yield number, line


def found_in(lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str, str]]:
    """Yield line, phrase and what to write instead."""
    for number, line in lines:
        if not ANY_PHRASE.search(line):
            continue
        for pattern, instead in INSTEAD.items():
            if match := re.search(pattern, line, re.IGNORECASE):
                yield number, match[0], instead


def is_done(path: Path) -> bool:
    """Whether the texts of a file have been rewritten."""
    name = path.relative_to(ROOT).as_posix()
    return not any(name == entry or name.startswith(f"{entry}/") for entry in NOT_YET)


def findings() -> Iterator[str]:
    """Yield every phrase in the files that are done."""
    for path in filter(is_done, [*CODE, *PAGES]):
        source = path.read_text(encoding="utf-8")
        lines = texts(source) if path.suffix == ".py" else prose(source)
        for number, phrase, instead in found_in(lines):
            yield f"{path.relative_to(ROOT)}:{number}: {phrase!r}; write: {instead}"


def test_no_phrase_has_come_back() -> None:
    assert not (found := sorted(findings())), "\n".join(found)


@pytest.mark.parametrize(
    "text",
    [
        "the payload is no Order",
        "a name that there is not.",
        "Whoever handles it",
        "nobody knows",
        "it is opened anew",
        "held for ever",
        "as it was told",
        "it lets go of the queue",
        "where it is said",
        "it was asked in vain",
        "a queue of one's own",
        "the message is buried",
        "what cannot be had",
        "what no attempt could mend",
    ],
)
def test_a_phrase_is_found(text: str) -> None:
    assert [phrase for _, phrase, _ in found_in(iter([(1, text)]))] != []


@pytest.mark.parametrize(
    "text",
    [
        "There is no queue of that name, and there are no others",
        "The lease is no longer ours, and there is not enough room",
        "is no more than `limit`",
        "letting consumers go on; recommend a broker; recommended",
        "who ever said so; aneurysm; forever is a word too",
    ],
)
def test_plain_english_passes(text: str) -> None:
    assert [phrase for _, phrase, _ in found_in(iter([(1, text)]))] == []


def test_comments_docstrings_and_strings_are_read_and_names_are_not() -> None:
    source = '"""One."""\ntold = f"two {told} three"  # four\n'
    assert sorted(text for _, text in texts(source)) == [" three", "# four", "One.", "two "]


def test_code_blocks_of_a_page_are_not_read() -> None:
    page = "one\n```python\ntwo\n```\nthree"
    assert [text for _, text in prose(page)] == ["one", "three"]
