"""A small disk of its own: ext4 in a file, on a loop device. It needs root and a free device."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

__all__ = ["DiskUnavailable", "LoopDisk"]

_TOOLS = ("mkfs.ext4", "mount", "umount")
_PATH = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
_TOOL = 60.0


class DiskUnavailable(Exception):
    """This machine gives no loop device: why."""


class LoopDisk:
    """A file with a file system, mounted in a folder beside it while the block runs.

    `commit` is how many seconds the file system keeps what no program has asked to be on the disk.
    """

    def __init__(self, folder: Path, megabytes: int, *, commit: int = 5) -> None:
        self.image, self.folder = folder / "disk.img", folder / "disk"
        self._megabytes, self._commit = megabytes, commit

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise DiskUnavailable("loop devices need root")
        if missing := [name for name in _TOOLS if shutil.which(name, path=_PATH) is None]:
            raise DiskUnavailable(f"{', '.join(missing)}: not installed")

        self.folder.mkdir(parents=True)
        with self.image.open("wb") as file:
            file.truncate(self._megabytes * 1024 * 1024)
        _run("mkfs.ext4", "-q", "-m", "0", str(self.image))
        _mount(self.image, self.folder, self._commit)
        return self

    def __exit__(self, *_: object) -> None:
        _unmount(self.folder)

    @contextmanager
    def after_a_power_cut(self) -> Iterator[Path]:
        """Yield a folder with what is on the disk at this moment, as after a power cut.

        What is still in memory alone is not there. The writers have to be stopped meanwhile.
        """
        copy, folder = self.image.with_name("cut.img"), self.folder.with_name("cut")
        # reads what the device holds: the file system has not written the rest into it
        _run("cp", "--sparse=always", str(self.image), str(copy))
        folder.mkdir()
        try:
            _mount(copy, folder, self._commit)
            try:
                yield folder
            finally:
                _unmount(folder)
        finally:
            folder.rmdir()
            copy.unlink()

    def fill(self) -> Path:
        """Take all space that is left; return the file that has it."""
        filler = self.folder / "filler"
        with filler.open("wb", buffering=0) as file, suppress(OSError):
            for size in (64 * 1024, 1024, 1):
                with suppress(OSError):
                    while file.write(b"\0" * size):
                        pass
        return filler


def _mount(image: Path, folder: Path, commit: int) -> None:
    _run("mount", "-o", f"loop,commit={commit}", str(image), str(folder))


def _unmount(folder: Path) -> None:
    with suppress(DiskUnavailable):
        _run("umount", str(folder))
        return
    _run("umount", "--lazy", str(folder))  # a process that is being killed still has a file open


def _run(*words: str) -> None:
    done = subprocess.run(
        words,
        env={**os.environ, "PATH": _PATH},
        capture_output=True,
        text=True,
        timeout=_TOOL,
        check=False,
    )
    if done.returncode:
        raise DiskUnavailable(f"{words[0]} ended with {done.returncode}: {done.stderr.strip()}")
