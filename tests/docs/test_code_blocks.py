"""Runs the code blocks of the README and the documentation, so that what they show is true.

A `python` block runs in a namespace of its own, in an empty folder, `await` at the top level
allowed. `python continue` goes on where the block before it on the page ended; such a chain is one
test. `python title="NAME.py"` is a file: it compiles here, and `test_pages_as_read.py` runs it.
`python notest: REASON` does not run. A `toml` block must parse.
"""

import ast
import asyncio
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page
    for top in (".", "docs/**", "plugins/**", "examples/**")
    for page in ROOT.glob(f"{top}/*.md")
)
KNOWN = "`python`, `python continue` after a block, `python title=FILE`, or `python notest: REASON`"
COLUMNS = 100
FILES_ARE_RUN = {
    *("README.md", "docs/index.md", "docs/tutorial.md", "docs/tasks.md"),
    "examples/course/README.md",
}
"""Pages that `test_pages_as_read.py` and `test_course.py` follow."""


class Block(NamedTuple):
    """One fenced block: its page and line, the words after its fence, and its text."""

    page: str
    line: int
    info: str
    text: str


def blocks(text: str, page: str, language: str) -> Iterator[Block]:
    """Yield the blocks of one language on a page, wherever they are nested."""
    for token in MarkdownIt().parse(text):
        if token.type == "fence" and token.map and token.info.split()[:1] == [language]:
            yield Block(
                page, token.map[0] + 1, token.info.removeprefix(language).strip(), token.content
            )


def chains(text: str, page: str) -> Iterator[list[Block]]:
    """Yield the blocks that run, each with those that continue it; refuse unknown fences."""
    chain: list[Block] = []
    for block in blocks(text, page, "python"):
        word, _, reason = block.info.partition(":")
        if word == "notest" and reason.strip():
            continue
        if re.fullmatch(r'title="[\w./]+"', block.info) and page in FILES_ARE_RUN:
            compile(block.text, page, "exec", dont_inherit=True)
            continue
        if block.info == "continue" and chain:
            chain.append(block)
            continue
        if block.info:
            raise ValueError(f"{page}:{block.line}: `python {block.info}` is not {KNOWN}")
        if chain:
            yield chain
        chain = [block]
    if chain:
        yield chain


def run(chain: list[Block], module: ModuleType) -> None:
    """Execute the blocks one after the other; tracebacks point into the page."""
    for page, line, _, text in chain:
        source = "\n" * line + text
        code = compile(
            source, str(ROOT / page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
        )
        result = eval(code, module.__dict__)  # noqa: S307 - the documentation's own code is what is tested
        if inspect.iscoroutine(result):
            asyncio.run(result)


def pages() -> list[tuple[str, str]]:
    """Return the name and the text of every page."""
    return [(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8")) for page in PAGES]


CHAINS = [chain for page, text in pages() for chain in chains(text, page)]
TOML = [block for page, text in pages() for block in blocks(text, page, "toml")]


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: f"{chain[0].page}:{chain[0].line}")
def test_python_block_runs(
    chain: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("docs_code_block")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)
    run(chain, module)


def test_toml_blocks_parse() -> None:
    for block in TOML:
        assert tomllib.loads(block.text), f"{block.page}:{block.line}"


@pytest.mark.parametrize(("page", "text"), pages(), ids=[page for page, _ in pages()])
def test_no_line_of_a_block_is_cut_off(page: str, text: str) -> None:
    """At 1280 pixels a page shows 108 columns of code."""
    for token in MarkdownIt().parse(text):
        if token.type in ("fence", "code_block") and token.map:
            for offset, line in enumerate(token.content.splitlines(), token.map[0] + 2):
                assert len(line) <= COLUMNS, f"{page}:{offset}"


def test_the_readme_shows_something_that_runs() -> None:
    assert any(chain[0].page == "README.md" for chain in CHAINS)


def test_blocks_share_a_namespace_only_where_they_say_so() -> None:
    chained = (
        "```python\nx = 1\n```\n```python continue\nimport asyncio\nx += await asyncio.sleep(0, "
        "1)\n```\n"
    )
    page = f"{chained}```python\ny = 1\n```\n"
    first, second = (ModuleType("first"), ModuleType("second"))
    for chain, module in zip(chains(page, "page.md"), (first, second), strict=True):
        run(chain, module)
    assert first.x == 2
    assert not hasattr(second, "x")


def test_a_wrong_block_fails_and_names_its_page_and_line() -> None:
    (chain,) = chains("text\n\n```python\nassert 1 == 2\n```\n", "page.md")
    with pytest.raises(AssertionError) as caught:
        run(chain, ModuleType("wrong"))
    assert (Path(str(caught.traceback[-1].path)).name, caught.traceback[-1].lineno) == (
        "page.md",
        3,
    )


@pytest.mark.parametrize(
    "fence", ["python notest", "python notest:", "python continue", "python contniue"]
)
def test_a_fence_that_hides_its_block_without_a_reason_is_refused(fence: str) -> None:
    with pytest.raises(ValueError, match=r"page\.md:1"):
        list(chains(f"```{fence}\nx = 1\n```\n", "page.md"))
