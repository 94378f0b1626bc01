"""One health file for several workers.

Each worker writes its own file, `PATH.<process id>`. The supervising process combines them in PATH,
in the format of a single worker's file, so a probe need not know how many workers there are.
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
"""The placeholder for the process id in the name of a worker's health file."""
_EVERY, _SOON, _STALE = 2.0, 0.2, 10.0


def check_health_file(path: Path) -> str | None:
    """Return why a health file cannot be written, or None. Called before anything is consumed."""
    if path.is_dir():
        return f"the health file {str(path)!r} is a folder"
    try:
        probe = path.with_name(f".{path.name}.probe")
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f"the health file {str(path)!r} cannot be written: {error.strerror}"
    return None


async def keep_health_file(path: Path, supervisor: Supervisor, processes: int) -> None:
    """Write the health of all workers every 2 s until cancelled; more often while one is not well.

    The files of workers that have ended are removed.
    """
    temporary = path.with_name(f".{path.name}.all")

    try:
        while True:
            pids = supervisor.pids
            _tidy(path, pids)
            health = together([_read(path, pid) for pid in pids], processes)
            # A full disk must not end the workers. A probe sees that the file is old.
            with suppress(OSError):
                temporary.write_text(json.dumps(health))
                temporary.replace(path)
            await asyncio.sleep(_EVERY if health["ok"] else _SOON)
    finally:
        _tidy(path, [])


def together(workers: Sequence[dict[str, object]], processes: int) -> dict[str, object]:
    """Return the health of all workers: ok when all of them exist and are ok."""
    connected = [worker.get("connected") is True for worker in workers]
    consuming: dict[str, bool] = {}
    for worker in workers:
        queues = worker.get("consuming")
        for queue, well in queues.items() if isinstance(queues, dict) else ():
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
    """Return what a worker wrote last; not ok when its file is missing or old."""
    own = _of(path, pid)
    try:
        is_fresh = time.time() - own.stat().st_mtime < _STALE
        health = json.loads(own.read_text()) if is_fresh else None
    except (OSError, ValueError):
        health = None
    return health if isinstance(health, dict) else {"ok": False, "pid": pid}


def _tidy(path: Path, pids: Sequence[int]) -> None:
    kept = {_of(path, pid).name for pid in pids}
    for own in path.parent.glob(f"{path.name}.*"):
        if own.name not in kept and own.suffix[1:].isdigit():
            own.unlink(missing_ok=True)
