"""One health file for several workers.

Each worker writes its own, `PATH.<process id>`. The supervising process puts them together in PATH,
in the same words as a single worker's file, so that a probe need not know how many there are.
"""

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from mqcore.running.supervisor import Supervisor

__all__ = ["PID", "check_health_file", "keep_health_file"]

PID = "{pid}"
"""Stands for the process id in the name of a worker's health file."""
_EVERY, _SOON, _STALE = 2.0, 0.2, 10.0


def check_health_file(path: Path) -> str | None:
    """Say why a health file could not be written, before anything is consumed; None when it could."""
    if path.is_dir():
        return f"the health file {str(path)!r} is a folder"
    try:
        beside = path.with_name(f".{path.name}.probe")
        beside.touch()
        beside.unlink()
    except OSError as error:
        return f"the health file {str(path)!r} cannot be written: {error.strerror}"
    return None


async def keep_health_file(path: Path, supervisor: Supervisor, processes: int) -> None:
    """Write the health of all workers every 2 s until cancelled, oftener while they are not well.

    The files of workers that are gone are removed.
    """
    beside = path.with_name(f".{path.name}.all")
    try:
        while True:
            pids = supervisor.pids
            _tidy(path, pids)
            found = together([_read(path, pid) for pid in pids], processes)
            with suppress(
                OSError
            ):  # a full disk must not end the workers; the file grows old, which a probe sees
                beside.write_text(json.dumps(found))
                beside.replace(path)
            await asyncio.sleep(_EVERY if found["ok"] else _SOON)
    finally:
        _tidy(path, [])


def together(workers: Sequence[dict[str, object]], processes: int) -> dict[str, object]:
    """Return the health of all from the health of each: well when all of them are there and well."""
    connected = [worker.get("connected") is True for worker in workers]
    consuming: dict[str, bool] = {}
    for worker in workers:
        found = worker.get("consuming")
        for queue, well in found.items() if isinstance(found, dict) else ():
            consuming[queue] = consuming.get(queue, True) and well is True
    complete = len(workers) == processes
    return {
        "ok": complete and all(worker.get("ok") is True for worker in workers),
        "connected": complete and all(connected),
        "consuming": consuming,
        "processes": processes,
        "workers": list(workers),
    }


def _of(path: Path, pid: int) -> Path:
    return path.with_name(f"{path.name}.{pid}")


def _read(path: Path, pid: int) -> dict[str, object]:
    """Return what a worker wrote last; nothing when it has not yet, or has stopped doing so."""
    own = _of(path, pid)
    try:
        found = json.loads(own.read_text()) if time.time() - own.stat().st_mtime < _STALE else None
    except (OSError, ValueError):
        found = None
    return found if isinstance(found, dict) else {"ok": False, "pid": pid}


def _tidy(path: Path, pids: Sequence[int]) -> None:
    kept = {_of(path, pid).name for pid in pids}
    for own in path.parent.glob(f"{path.name}.*"):
        if own.name not in kept and own.suffix[1:].isdigit():
            own.unlink(missing_ok=True)
