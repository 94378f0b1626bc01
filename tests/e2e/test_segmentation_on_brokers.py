"""The segmentation demo on real brokers: each image ends the same way, with worker processes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.demo import run_demo

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(200)

BROKEN = {"blank.png", "dot.png", "empty.png", "notes.jpg", "truncated.png"}


@pytest.mark.parametrize("processes", [0, 2])
def test_every_image_ends_as_it_does_on_memory(
    broker_url: str, tmp_path: Path, processes: int
) -> None:
    found = run_demo(tmp_path, "--url", broker_url, "--processes", str(processes), "--limit", "2")
    assert found.exit_code == 0, found.output + found.errors
    report = found.report
    assert (report["premium_first"], report["complaints"]) == (True, [])
    assert found.image("busy-storage.png")["attempts"] == 2
    late = found.image("late-upload.png")
    assert (late["attempts"], late["redriven"]) == (1, True)
    first = {row["image"]: (row["reason"], row["attempts"]) for row in report["first_dead_letters"]}
    missing = dict.fromkeys(["late-upload.png", "lost-upload.png"], ("retries_exhausted", 3))
    assert first == missing | dict.fromkeys(BROKEN, ("rejected", 1))
    assert report["redriven"] == len(first)
    assert {row["image"] for row in report["dead_letters"]} == BROKEN | {"lost-upload.png"}
    assert found.image("lost-upload.png")["status"] == "failed"
