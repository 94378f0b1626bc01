"""Each decision has a number of its own, in its file's name as in its title."""

from __future__ import annotations

from pathlib import Path

DECISIONS = Path(__file__).parents[2] / "docs" / "adr"


def test_a_decision_is_known_by_its_number() -> None:
    titles = {
        path.name: path.read_text(encoding="utf-8").splitlines()[0]
        for path in sorted(DECISIONS.glob("[0-9]*.md"))
    }
    numbers = [int(name.partition("-")[0]) for name in titles]
    assert numbers == list(range(1, len(numbers) + 1))
    for number, title in zip(numbers, titles.values(), strict=True):
        assert title.startswith(f"# {number}. ")
