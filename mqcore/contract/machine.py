"""How long this machine let its programs wait, while a case ran in real time.

A case that checks seconds shows nothing where the machine itself stood still for most of them. Such
a failure is tried again, and reported with the first text; on an idle machine nothing is.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Waits", "watched"]

_BEAT = 0.02
"""Seconds between two beats of the thread that measures."""
_STOOD_STILL = 0.1
"""Seconds by which a beat is late on a machine, or in a process, that stood still."""
_WAITED = 0.3
"""Seconds in which programs of this machine waited for a processor, memory or a disk."""
_PRESSURE = Path("/proc/pressure")
"""Where Linux counts them, since boot; see its documentation of pressure stall information."""


@dataclass
class Waits:
    """What was measured: the latest beat of this process, and the waits of the whole machine."""

    latest: float = 0.0
    machine: float = 0.0

    @property
    def busy(self) -> bool:
        """Whether a bound of a second or less could be missed through no fault of a backend."""
        return self.latest >= _STOOD_STILL or self.machine >= _WAITED

    def __str__(self) -> str:
        """Say it in words."""
        return (
            f"this process stood still for {self.latest:.2f} s, and the machine let programs wait "
            f"{self.machine:.2f} s for a processor, memory or a disk"
        )


@contextmanager
def watched() -> Iterator[Waits]:
    """Measure while the block runs. What it gives is complete when the block has ended."""
    waits, ended, before = Waits(), threading.Event(), _waited()
    beats = threading.Thread(target=_beat, args=(waits, ended), name="mqcore-beat", daemon=True)
    beats.start()
    try:
        yield waits
    finally:
        ended.set()
        beats.join()
        waits.machine = _waited() - before


def _beat(waits: Waits, ended: threading.Event) -> None:
    over = False
    while not over:
        due = time.monotonic() + _BEAT
        over = ended.wait(_BEAT)
        waits.latest = max(waits.latest, time.monotonic() - due)


def _waited() -> float:
    """Return the seconds since boot in which some program waited; 0 where nothing counts them."""
    total = 0
    for resource in ("cpu", "io", "memory"):
        with suppress(OSError, ValueError):  # another system, or a kernel without this
            some = (_PRESSURE / resource).read_text().partition("\n")[0]
            total += int(some.rpartition("total=")[2])
    return total / 1e6
