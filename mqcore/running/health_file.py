"""The health file of a worker, which a probe reads (G14)."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

from mqcore.log import log

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

__all__ = ["write_health"]


def write_health(path: Path, health: Any, now: float) -> None:
    """Write the health file in one step, so that a reader never sees half of it.

    `health` is a `mqcore.session.Health`. The file's time shows whether the worker is alive.
    """
    report = {"ok": health.ok, **asdict(health), "pid": os.getpid(), "at": now}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")

    try:
        temporary.write_text(json.dumps(report))
        temporary.replace(path)
    except OSError as error:
        log().warning("the health file %s cannot be written: %s", path, error)
