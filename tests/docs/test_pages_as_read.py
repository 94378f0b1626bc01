"""The README's ten lines and the tutorial, followed as a reader would: files and commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.terminals import ROOT, Block, Reader, agrees, blocks, lines

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(600)
TUTORIAL = list(blocks("docs/tutorial.md"))
SPLIT = next(
    number
    for number, line in enumerate(
        (ROOT / "docs/tutorial.md").read_text(encoding="utf-8").splitlines(), 1
    )
    if line.startswith("## 5. ")
)
"""Where the page goes on with Redis, in several terminals."""


@pytest.fixture
def readers() -> Iterator[list[Reader]]:
    made: list[Reader] = []
    yield made
    for reader in made:
        reader.close()


def test_the_ten_lines_of_the_readme(tmp_path: Path, readers: list[Reader]) -> None:
    first = list(blocks("README.md"))[:2]
    assert sum(bool(line.strip()) for line in first[0].text.splitlines()) == 10
    readers.append(reader := Reader("README.md", tmp_path))
    reader.follow(first)
    assert reader.typed == ["python hello.py"]


def test_the_home_page_shows_the_same_ten_lines() -> None:
    assert next(blocks("docs/index.md")).text == next(blocks("README.md")).text


def test_the_ten_lines_run_on_redis_as_they_are(
    tmp_path: Path, readers: list[Reader], redis_url: str
) -> None:
    program, _ = list(blocks("README.md"))[:2]
    run = Block(1, "console", "", f"$ MQCORE_URL={redis_url} python hello.py\ntea is on its way\n")
    readers.append(reader := Reader("README.md", tmp_path))
    reader.follow([program, run])


def test_the_tutorial_in_one_process(tmp_path: Path, readers: list[Reader]) -> None:
    readers.append(reader := Reader("docs/tutorial.md", tmp_path))
    reader.follow([block for block in TUTORIAL if block.line < SPLIT])
    assert len(reader.typed) >= 3


def test_the_tutorial_on_redis_in_two_terminals(
    tmp_path: Path, readers: list[Reader], redis_url: str
) -> None:
    readers.append(
        reader := Reader("docs/tutorial.md", tmp_path, {"redis://localhost/0": redis_url})
    )
    before = [block for block in TUTORIAL if block.line < SPLIT and block.language != "console"]
    reader.follow([*before, *(block for block in TUTORIAL if block.line > SPLIT)])
    assert len(reader.typed) >= 6


def test_a_task_in_two_terminals(tmp_path: Path, readers: list[Reader]) -> None:
    readers.append(reader := Reader("docs/tasks.md", tmp_path))
    reader.follow([block for block in blocks("docs/tasks.md") if block.title])
    assert len(reader.typed) == 3


def test_what_differs_from_run_to_run_is_equal_and_nothing_else() -> None:
    shown = lines(f"{'0' * 32} is stored\n…\nend 7.5s")
    assert agrees(shown, lines(f"{'a' * 32} is stored\none\ntwo\nend  12.1s"))
    assert not agrees(shown, lines(f"{'a' * 32} is lost\nend 1s"))
    assert not agrees(["one"], ["one", "two"])
    assert not agrees(["one", "two"], ["one"])
