"""The segmentation demo, run as a user runs it."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.logs import whole_lines

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Demo:
    """What a run of the demo left."""

    exit_code: int
    output: str
    errors: str
    out: Path

    @property
    def notices(self) -> list[dict[str, Any]]:
        lines = whole_lines(self.out / "notices.jsonl")
        return [json.loads(line) for line in lines]

    def stored(self, query: str, *values: str) -> list[Any]:
        """Return the rows of a query on the service's own tables."""
        with closing(sqlite3.connect(self.out / "segmentation.db")) as database:
            return database.execute(query, values).fetchall()

    @property
    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.out / "result.json").read_text())
        return found

    def image(self, name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = [row for row in self.report["images"] if row["image"] == name]
        assert len(found) == 1
        return found[0]


def run_demo(out: Path, *options: str) -> Demo:
    """Run the demo with nothing of mqcore's own settings in the environment."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MQCORE_")
    }
    done = subprocess.run(
        [
            sys.executable,
            "-W",
            "error",
            "-m",
            "examples.segmentation.demo",
            "--out",
            str(out),
            *options,
        ],
        cwd=ROOT,
        env={**environment, "COLUMNS": "160"},
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    return Demo(done.returncode, done.stdout, done.stderr, out)
