"""The drawn pictures are those that their scripts draw, and say what the guarantees say."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest

from mqcore.consuming.states import TRANSITIONS, DeliveryState

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


life = load(DOCS / "life_of_a_message.py")
report = load(ROOT / "benchmarks" / "report.py")


def test_the_stored_drawing_is_what_the_script_draws() -> None:
    assert life.PICTURE.read_text(encoding="utf-8") == life.draw(), (
        "run: python docs/life_of_a_message.py"
    )


def test_each_arrow_joins_two_states_and_names_a_guarantee() -> None:
    text = (DOCS / "semantics.md").read_text(encoding="utf-8")
    guarantees = set(re.findall(r"^### (G\d+) ", text, re.MULTILINE))
    for arrow in life.ARROWS:
        assert {arrow.source, arrow.target} <= set(life.STATES)
        assert arrow.guarantee in guarantees


def test_the_steps_in_a_worker_are_those_of_the_table() -> None:
    table = {
        (source.value, target.value)
        for (source, _), target in TRANSITIONS.items()
        if source.value in life.STATES and target.value in life.STATES
    }
    inside = {"buffered", "running", "settling"}
    drawn = {(arrow.source, arrow.target) for arrow in life.ARROWS}
    assert {pair for pair in drawn if set(pair) <= inside} == table
    undrawn = {state.value for state in DeliveryState} - inside
    assert undrawn == {"unanswered", "settled", "lost"}  # what becomes of it in the broker is drawn


def test_every_state_is_reached_and_only_what_is_done_is_not_left() -> None:
    targets = {arrow.target for arrow in life.ARROWS}
    sources = {arrow.source for arrow in life.ARROWS}
    assert set(life.STATES) - targets == {"publish"}
    assert set(life.STATES) - sources == {"gone"}


def test_each_arrow_begins_and_ends_at_the_edge_of_its_box() -> None:
    def touches(state: str, x: int, y: int) -> bool:
        box = life.STATES[state]
        return box.x <= x <= box.x + box.width and box.y <= y <= box.y + life.BOX

    for arrow in life.ARROWS:
        assert touches(arrow.source, *arrow.points[0]), arrow
        assert touches(arrow.target, *arrow.points[-1]), arrow


@pytest.mark.parametrize(
    "path", sorted((DOCS / "assets").glob("*.svg")), ids=lambda path: path.name
)
def test_a_picture_is_xml_without_blank_lines(path: Path) -> None:
    """A blank line would end the HTML block that holds the picture on its page."""
    text = path.read_text(encoding="utf-8")
    ET.fromstring(text)  # noqa: S314 - our own file
    assert "\n\n" not in text


def test_the_page_of_benchmarks_is_made_from_its_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "assets").mkdir()
    monkeypatch.setattr(report, "DOCS", tmp_path)
    report.write(json.loads(report.FIGURES.read_text(encoding="utf-8")))
    for path in (tmp_path / "benchmarks.md", *(tmp_path / "assets").iterdir()):
        stored = DOCS / path.relative_to(tmp_path)
        assert stored.read_text(encoding="utf-8") == path.read_text(encoding="utf-8"), (
            "run: python benchmarks/report.py"
        )
