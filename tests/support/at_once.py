"""Processes that connect to an empty database in the same moment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

__all__ = ["connect_at_once"]

PROGRAM = Path(__file__).with_name("sql_connect.py")
PATIENCE = 60.0


def connect_at_once(url: str, number: int) -> list[str]:
    """Let so many processes connect, declare and publish; return what went wrong in each."""
    started = [
        subprocess.Popen(
            [sys.executable, str(PROGRAM), url, f"from-{index}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(number)
    ]
    try:
        for process in started:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in started:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        texts = [process.communicate(timeout=PATIENCE)[1] for process in started]
        return [
            f"{process.returncode}: {text}"
            for process, text in zip(started, texts, strict=True)
            if process.returncode or text
        ]
    finally:
        for process in started:
            process.kill()
            process.communicate()
