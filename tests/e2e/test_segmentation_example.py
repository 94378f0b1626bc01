"""The main job on real input: the demo of examples/segmentation, run as a user runs it, on `memory://`."""

import shutil
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest
from PIL import Image
from support.demo import ROOT, Demo, run_demo

BROKEN = {
    "blank.png": "nothing to segment",
    "dot.png": "too small to segment",
    "empty.png": "is empty",
    "notes.jpg": "is not an image",
    "truncated.png": "image file is truncated",
}
OUTLINE = (255, 216, 0)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    own = tmp_path_factory.mktemp("images")
    shutil.copy(str(files("skimage.data") / "coins.png"), own / "mine.png")
    (own / "[red]not one.png").write_text("a text, with what would be markup in its name")
    (own / "list.txt").write_text("no image, and does not claim to be one")
    found = run_demo(tmp_path_factory.mktemp("out"), "--limit", "4", "--images", str(own))
    assert found.exit_code == 0, found.output + found.errors
    return found


def test_premium_images_are_processed_before_regular_ones(demo: Demo) -> None:
    orders: dict[str, list[int]] = {"premium": [], "regular": []}
    for row in demo.report["images"]:
        orders[row["tier"]].append(row["order"])
    assert max(orders["premium"]) < min(orders["regular"])
    assert sorted(orders["premium"] + orders["regular"]) == list(
        range(1, len(demo.report["images"]) + 1)
    )


def test_images_are_segmented_for_real(demo: Demo) -> None:
    assert [demo.image(name)["objects"] for name in ("coins.png", "cell.png", "mine.png")] == [
        24,
        1,
        24,
    ]
    with Image.open(demo.image("coins.png")["labels"]) as labels:
        assert labels.size == (384, 303)
        assert labels.getextrema() == (0, 24)


def test_a_busy_storage_costs_an_attempt_and_no_more(demo: Demo) -> None:
    busy = demo.image("busy-storage.png")
    assert (busy["attempts"], busy["objects"], busy["redriven"]) == (2, 12, False)
    assert "busy-storage.png" not in {row["image"] for row in demo.report["first_dead_letters"]}


def test_broken_images_are_dead_letters_with_their_reasons_before_and_after_the_redrive(
    demo: Demo,
) -> None:
    for moment in ("first_dead_letters", "dead_letters"):
        letters = {row["image"]: row for row in demo.report[moment]}
        for name, error in BROKEN.items():
            assert (letters[name]["reason"], letters[name]["attempts"]) == ("rejected", 1)
            assert error in letters[name]["error"]


def test_a_late_upload_exhausts_its_attempts_and_is_segmented_by_the_redrive(demo: Demo) -> None:
    letters = {row["image"]: row for row in demo.report["first_dead_letters"]}
    assert (letters["late-upload.png"]["reason"], letters["late-upload.png"]["attempts"]) == (
        "retries_exhausted",
        3,
    )
    assert demo.report["redriven"] == len(letters)
    late = demo.image("late-upload.png")
    assert (late["attempts"], late["objects"], late["redriven"]) == (1, 12, True)
    assert {row["image"] for row in demo.report["dead_letters"]} == letters.keys() - {
        "late-upload.png"
    }


def test_a_folder_is_taken_by_what_its_files_claim_to_be(demo: Demo) -> None:
    assert "[red]not one.png" in {row["image"] for row in demo.report["dead_letters"]}
    assert "list.txt" not in {row["image"] for row in demo.report["images"]}


def test_the_output_shows_progress_tables_and_names_as_they_are(demo: Demo) -> None:
    starts = [line.split()[:5] for line in demo.output.splitlines()]
    assert ["coins.png", "premium", str(demo.image("coins.png")["order"]), "24", "1"] in starts
    assert ["retry", "regular", "busy-storage.png", "attempt", "1:"] in starts
    assert "[red]not one.png" in demo.output


def test_the_contact_sheet_shows_a_tile_for_each_image(demo: Demo) -> None:
    with Image.open(demo.out / "contact-sheet.png") as sheet:
        columns, rows = sheet.width // 324, sheet.height // 277
        assert sheet.mode == "RGB"
        assert columns * rows >= len(demo.report["images"]) > columns * (rows - 1)
        colours = {
            colour: pixels for pixels, colour in sheet.getcolors(sheet.width * sheet.height) or []
        }
        assert colours[OUTLINE] > 1000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--images", "/no/such/folder"], "there is no folder /no/such/folder"),
        (["--url", "carrier-pigeon://loft"], "carrier-pigeon"),
        (["--processes", "-1"], "0 or more"),
    ],
)
def test_what_cannot_be_run_is_said_in_a_line(
    tmp_path: Path, options: list[str], said: str
) -> None:
    found = run_demo(tmp_path, *options)
    assert found.exit_code == 2
    assert said in found.errors.splitlines()[-1]
    assert "Traceback" not in found.errors


def test_the_service_runs_by_the_worker_command_and_ends_at_sigterm() -> None:
    command = [
        sys.executable,
        "-m",
        "mqcore",
        "worker",
        "examples.segmentation.app:app",
        "--url",
        "memory://",
    ]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stderr is not None
        said = next(line for line in worker.stderr if "consumer.started" in line)
        worker.terminate()
        assert worker.wait(timeout=20) == 0
    assert "segmentation.tasks" in said
