"""Writes celery_names.json: Celery's public names, which docs/from-celery.md has to list.

    pip install celery
    python tests/support/celery_names.py    # prints what has changed, and writes the file

A test compares the file with the page; where Celery is installed, also with Celery.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_suffix(".json")


def collect() -> dict[str, Any]:
    """Return the names of the installed Celery, by the sections of the page."""
    import celery  # noqa: PLC0415 - not needed to read the file
    from celery import canvas, exceptions, result, schedules, signals, states  # noqa: PLC0415
    from celery.app.defaults import NAMESPACES, flatten  # noqa: PLC0415
    from celery.app.task import Context, Task  # noqa: PLC0415
    from celery.bin.celery import celery as command  # noqa: PLC0415
    from celery.worker.control import Panel  # noqa: PLC0415

    kinds = (canvas.Signature, canvas.group, canvas.chain, canvas.chord, canvas.chunks)
    options = [
        option for parameter in command.commands["worker"].params for option in parameter.opts
    ]
    return {
        "version": celery.__version__,
        "The package": public(celery) | set(celery.__all__) - hidden(celery.__all__),
        "The application": public(celery.Celery),
        "Tasks": public(Task),
        "The request of a task": public(Context),
        "Signatures and workflows": set(canvas.__all__)
        | {name for kind in kinds for name in public(kind) if name not in dir(dict)},
        "Results": public(result.AsyncResult) | public(result.GroupResult),
        "Schedules": set(schedules.__all__)
        | {"BaseSchedule"}
        | public(schedules.schedule)
        | public(schedules.crontab)
        | public(schedules.solar),
        "States": set(states.__all__),
        "Exceptions": set(exceptions.__all__),
        "Signals": set(signals.__all__),
        "Commands": set(command.commands),
        "Options of the worker": {option for option in options if option.startswith("--")},
        "Remote control": set(Panel.meta),
        "Settings": {name for name, _ in flatten(NAMESPACES)},
    }


def public(thing: object) -> set[str]:
    """Return the names that do not begin with an underscore."""
    return set(dir(thing)) - hidden(dir(thing))


def hidden(names: Any) -> set[str]:
    """Return the names that begin with an underscore."""
    return {name for name in names if name.startswith("_")}


def stored() -> dict[str, Any]:
    """Return what the file has, lists as sets."""
    found = json.loads(FILE.read_text(encoding="utf-8"))
    return {name: set(value) if isinstance(value, list) else value for name, value in found.items()}


def main() -> None:
    """Write the file."""
    names, before = collect(), stored() if FILE.exists() else {}
    for section, value in names.items():
        if isinstance(value, set):
            old = before.get(section, set())
            change = f"{section}: new {sorted(value - old)}, gone {sorted(old - value)}"
            sys.stdout.write(f"{change}\n")
            names[section] = sorted(value)
    FILE.write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
