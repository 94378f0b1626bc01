"""The file of an SQLite database: what is wrong with it, whose turn it is, and whether it changed.

SQLite's own wait for a lock starves: of eight busy processes one took every turn. So mqcore's
processes queue at a lock file beside the database, which the system releases when one is killed.
"""

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread, current_thread
from weakref import WeakSet

from mqcore.spi import ConfigurationError, ConnectionLost

__all__ = ["DatabaseFile", "NoRoom"]

_PATIENCE = 10.0
"""Seconds that opening waits for its turn: another process may be stopped in the middle of its."""

_Identity = tuple[int, int] | None


class NoRoom(Exception):
    """The disk has less free space than the reserve."""


class DatabaseFile:
    """The path, its lock file, and which file was there when it was opened."""

    def __init__(self, path: Path, reserve: int) -> None:
        self.path = path
        self.log, self._lock_path = f"{path}-wal", f"{path}.lock"
        self.reserve = reserve
        self._lock: int | None = None
        self._lock_identity: _Identity = None
        self._identity: _Identity = None
        self._log_identity: _Identity = None
        _files.add(self)

    def open(self) -> None:
        """Open the lock file. Raises `ConfigurationError` for a path that cannot be a database."""
        try:
            path = self.path.resolve()  # all names of a file have one log and one lock file
            self.log, self._lock_path = f"{path}-wal", f"{path}.lock"
            self._check_path(path, path.parent)
            self.open_lock()
        except OSError as error:
            name = error.filename or self.path
            raise ConfigurationError(f"{name} cannot be used: {error.strerror}") from error
        if not self._waited(_PATIENCE):
            raise ConnectionLost(self._held_by_another(_PATIENCE))
        self.give()

    def open_lock(self) -> None:
        """Open the lock file, and create it if it is missing."""
        # Reading is enough to lock it, and another user may have made it.
        self._lock = os.open(self._lock_path, os.O_RDONLY | os.O_CREAT, 0o666)
        self._lock_identity = _identity(os.fstat(self._lock))

    def renew_lock(self) -> None:
        """Open the lock file again if it was deleted: others lock the new one."""
        lock = self._lock
        if lock is None or self._lock_identity == _identity_of(self._lock_path):
            return
        with suppress(OSError):  # without one SQLite's own wait is left
            self.open_lock()
            os.close(lock)

    @staticmethod
    def _check_path(path: Path, folder: Path) -> None:
        if path.is_dir():
            raise ConfigurationError(f"{path} is a folder; the URL has to name a file")
        if path.exists() and not path.is_file():
            raise ConfigurationError(f"{path} is a device or a pipe; the URL has to name a file")
        if not folder.is_dir():
            raise ConfigurationError(f"the folder {folder} does not exist; create it first")

        for place in (path, folder):
            if place.exists() and not os.access(place, os.W_OK):
                raise ConfigurationError(
                    f"{place} cannot be written by this user. SQLite needs to write the file and, "
                    f"for its log, the folder"
                )

    def take(self, patience: float) -> None:
        """Take the turn. Raises `sqlite3.OperationalError` when it does not come in time."""
        self.renew_lock()
        try:
            fcntl.flock(self._opened(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not self._waited(patience):
                text = self._held_by_another(patience)
                self.close()  # gives back the turn that may still come
                self.open_lock()
                raise sqlite3.OperationalError(text) from None
        _holders[self._lock_identity] = self, current_thread().name

    def give(self) -> None:
        """End the turn, if there is one."""
        if self._lock is not None:
            self._forget_holder()
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def _forget_holder(self) -> None:
        if _holders.get(self._lock_identity, (None, ""))[0] is self:
            del _holders[self._lock_identity]

    def _waited(self, patience: float) -> bool:
        """Wait for the turn in the line of all, for some seconds; return whether it came."""
        lock = os.dup(self._opened())  # its number stays the thread's own when this file is closed
        _waiting.add(lock)
        waiting = Thread(target=_take, args=(lock,), daemon=True)
        waiting.start()
        waiting.join(patience)
        return not waiting.is_alive()

    def _held_by_another(self, patience: float) -> str:
        if self._lock_identity in _holders:
            _, thread = _holders[self._lock_identity]
            return (
                f"a transaction of this process has held {self._lock_path} for {patience:g} s. It "
                f"was begun in thread {thread!r}. Commit it or roll it back first, or use its "
                "session"
            )
        return (
            f"another connection or process has held {self._lock_path} for {patience:g} s. A "
            f"process may be stopped: find it with `fuser -v {self._lock_path}`, and continue or "
            "end it"
        )

    def _opened(self) -> int:
        if self._lock is None:
            raise ConnectionLost(f"{self.path} is closed; open it first")
        return self._lock

    def close(self) -> None:
        """Close the lock file."""
        self._forget_holder()
        lock, self._lock = self._lock, None
        self._identity = self._log_identity = None
        if lock is not None:
            os.close(lock)

    def remember(self) -> None:
        """Note which file the path names now, and which log it has."""
        self._identity, self._log_identity = self.identity(), _identity_of(self.log)

    def identity(self) -> tuple[int, int] | None:
        """Return device and inode of the file, None when it is missing."""
        return _identity_of(self.path)

    def log_state(self) -> tuple[int, int] | None:
        """Return when the log was last written, and its size; None when there is none."""
        try:
            found = os.stat(self.log)  # noqa: PTH116 - twenty times a second, without a Path
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_size

    def check(self) -> None:
        """Raise `ConnectionLost` when the file or its log was deleted or replaced.

        SQLite would go on to confirm what it writes into the deleted one.
        """
        if self.identity() != self._identity:
            raise ConnectionLost(
                f"the database file {self.path} was deleted or replaced while it was open"
            )
        # SQLite itself removes the log when the last connection is closed, and never before.
        if self._log_identity not in (None, _identity_of(self.log)):
            raise ConnectionLost(f"the log {self.log} was deleted or replaced while it was open")

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the turn of this connection among all that write to the file."""
        fcntl.flock(self._opened(), fcntl.LOCK_EX)
        try:
            if self._identity is not None:
                self.check()
            yield
        finally:
            self.give()

    def check_room(self, content: Callable[[], int]) -> None:
        """Raise `NoRoom` when the disk is nearly full: acknowledgements need space as well.

        `content` returns how many bytes the file has once the log is written into it: that needs
        space too. Raises `ConnectionLost` when the file is gone, for its folder may be gone as
        well.
        """
        self.check()
        free, log = self.free(), self.log_state()
        if log is not None and free < self.reserve + log[1]:
            free -= max(content() - self.path.stat().st_size, 0)
        if free < self.reserve:
            raise NoRoom(
                f"the disk of {self.path} has {max(free, 0):,} bytes left, which is less than "
                f"reserve={self.reserve:,}. Free some space; consuming goes on meanwhile"
            )

    def free(self) -> int:
        """Return how many bytes are free on the disk."""
        found = os.statvfs(self.path.parent)
        return found.f_bavail * found.f_frsize


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _identity_of(path: str | Path) -> _Identity:
    """Return device and inode of a file, None when it is missing."""
    try:
        return _identity(os.stat(path))  # noqa: PTH116 - for each transaction, without a Path
    except FileNotFoundError:
        return None


def _take(lock: int) -> None:
    """Wait for the turn. It stays with the file that `lock` is a duplicate of, if that is open."""
    try:
        with suppress(OSError):  # the system cannot lock: SQLite's own wait is left
            fcntl.flock(lock, fcntl.LOCK_EX)
    finally:
        _waiting.discard(lock)
        os.close(lock)


_files: WeakSet[DatabaseFile] = WeakSet()
_waiting: set[int] = set()
"""The duplicates with which threads wait."""
_holders: dict[_Identity, tuple[DatabaseFile, str]] = {}
"""For each lock file: which connection of the application has its turn now, and in which thread."""


def _after_fork() -> None:
    """Close the lock files in a forked child: it would keep a turn that its parent died in."""
    _holders.clear()
    for file in list(_files):
        file.close()
    for lock in list(_waiting):
        os.close(lock)
    _waiting.clear()


os.register_at_fork(after_in_child=_after_fork)
