"""The main job on real input: the demo of examples/segmentation, run as a user runs it, on `memory://`."""

import os
import shutil
import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
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

pytestmark = pytest.mark.timeout(200)


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


def test_an_upload_that_never_arrives_is_redriven_three_times_and_has_failed_for_good(
    demo: Demo,
) -> None:
    (letter,) = (row for row in demo.report["dead_letters"] if row["image"] == "lost-upload.png")
    assert (letter["reason"], letter["attempts"]) == ("retries_exhausted", 3)
    assert demo.output.count("redrive 3 of 3: dead letters: 1") == 1
    (task,) = demo.stored(
        "SELECT message_queue_id, status, retry_count FROM segmentation_tasks "
        "WHERE name = 'lost-upload.png'"
    )
    assert task[1:] == ("failed", 12)
    failures = demo.stored(
        "SELECT attempt, final FROM segmentation_failures "
        "WHERE message_queue_id = ? ORDER BY number",
        task[0],
    )
    assert failures == [(1, 0), (2, 0), (3, 1)] * 4


def test_the_tables_say_what_the_messages_say(demo: Demo) -> None:
    stored = {
        name: (status, objects, took)
        for name, status, objects, took in demo.stored(
            "SELECT name, status, objects, processing_time_ms FROM segmentation_tasks"
        )
    }
    assert stored.keys() == {row["image"] for row in demo.report["images"]}
    for row in demo.report["images"]:
        status, objects, took = stored[row["image"]]
        assert (status, objects) == (
            "failed" if row["objects"] is None else "completed",
            row["objects"],
        )
        assert (took is None) == (objects is None)
    assert demo.stored("SELECT count(*) FROM mq_inbox") == [
        (sum(row["objects"] is not None for row in demo.report["images"]),)
    ], "what was completed is known as handled"


def test_each_user_is_told_once(demo: Demo) -> None:
    told = {notice["name"]: notice["status"] for notice in demo.notices}
    assert len(demo.notices) == len(told) == len(demo.report["images"])
    assert (told["late-upload.png"], told["lost-upload.png"]) == ("completed", "failed")


def test_the_demo_runs_on_a_file_with_two_worker_processes(tmp_path: Path) -> None:
    found = run_demo(tmp_path, "--url", f"sqlite:///{tmp_path / 'demo.db'}", "--limit", "2")
    assert found.exit_code == 0, found.output + found.errors
    assert (found.report["premium_first"], found.report["complaints"]) == (True, [])
    with closing(sqlite3.connect(tmp_path / "demo.db")) as database:
        handled = database.execute(
            "SELECT count(*) FROM segmentation_tasks WHERE status = 'completed'"
        ).fetchall()
    assert handled == [(4,)], "the queues and the service's tables are in one file"


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs a local redis-server")
def test_tasks_wait_in_the_fallback_until_the_broker_is_there(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--url", f"redis://127.0.0.1:{port}/0", "--limit", "0"]
    options += ["--fallback", f"sqlite:///{tmp_path / 'spool.db'}"]
    words = [sys.executable, "-m", "examples.segmentation.demo", "--out", str(tmp_path), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}

    with subprocess.Popen(words, cwd=ROOT, text=True, **pipes) as demo:
        assert demo.stdout is not None
        said = ""
        while "wait in the fallback" not in said:
            line = demo.stdout.readline()
            assert line, said
            said += line
        assert "the broker is away: 8 tasks wait in the fallback" in said

        command = ["redis-server", "--port", str(port), "--dir", str(tmp_path), "--save", ""]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
            try:
                said += demo.communicate(timeout=150)[0]
            finally:
                server.terminate()
    assert demo.returncode == 0, said
    assert "wrong:" not in said


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


def test_the_service_runs_by_the_worker_command_and_ends_at_sigterm(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "mqcore",
        "worker",
        "examples.segmentation.app:app",
        "--url",
        "memory://",
    ]
    own = {**os.environ, "SEGMENTATION_DATABASE": f"sqlite:///{tmp_path / 'own.db'}"}
    with subprocess.Popen(command, cwd=ROOT, env=own, stderr=subprocess.PIPE, text=True) as worker:
        assert worker.stderr is not None
        said = next(line for line in worker.stderr if "consumer.started" in line)
        worker.terminate()
        assert worker.wait(timeout=20) == 0
    assert "segmentation.tasks" in said
