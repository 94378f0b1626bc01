"""The course, followed by a class on SQLite: its blocks, and the commands between them.

`test_code_blocks.py` runs the blocks on `memory://`, and tests/integration runs them on Redis and
RabbitMQ.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.course import BLOCKS, FOLDER, PAGE, attend
from support.terminals import ROOT

STATEMENTS = (Path(__file__).parent / "course_statements.txt").read_text(encoding="utf-8")
"""What the presentation says of message queues and Celery, statement by statement."""
HEADING = re.compile(r"^##+ (.+)\n", re.MULTILINE)
ROW = re.compile(
    r"^\| (?P<theirs>.+?) (?<!\\)\| (?P<ours>.+?) (?<!\\)\| \[.+\]\(#(?P<section>.+)\) \|$"
)


@pytest.mark.timeout(600)
def test_the_course_on_sqlite_with_its_commands(tmp_path: Path) -> None:
    assert len(attend(tmp_path, "sqlite:///course.db", BLOCKS)) > 8


def test_the_files_on_the_page_are_those_of_the_example() -> None:
    shown = {block.title: block.text for block in BLOCKS if block.language == "python"}
    for path in ("proj/app.py", "proj/tasks.py"):
        assert shown[path] == (FOLDER / path).read_text(encoding="utf-8")


def text_of(cell: str) -> str:
    """Return a cell of a table as it is read."""
    return cell.replace("\\|", "|").strip("`")


def sections(page: str) -> dict[str, str]:
    """Return the text below each heading, by the heading's anchor."""
    _, *parts = HEADING.split(page)
    words = (re.sub(r"[^\w -]", "", heading.lower()) for heading in parts[::2])
    anchors = (heading.replace(" ", "-") for heading in words)
    return dict(zip(anchors, parts[1::2], strict=True))


def test_each_statement_has_its_counterpart_on_the_page() -> None:
    page, table = (ROOT / PAGE).read_text(encoding="utf-8").split("\n## Every statement\n")
    rows = [row for line in table.splitlines() if (row := ROW.match(line))]
    assert [text_of(row["theirs"]) for row in rows] == STATEMENTS.splitlines()

    parts = sections(page)
    for row in rows:
        counterpart = text_of(row["ours"])
        if "`" in counterpart:  # words, with code between them
            counterpart = row["ours"]
        assert counterpart in parts[row["section"]], row[0]
