"""The scripts as the server gets them: the line with the flags, the common parts, the script.

The name of a script is the digest of its text, so two versions of this library never share one.
"""

from functools import cache, lru_cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, NamedTuple

import hiredis

__all__ = ["NAMES", "TASK_NAMES", "Call", "Script", "script"]

_FOLDER = files(__package__) / "lua"
NAMES = tuple(
    sorted(
        it.name.removesuffix(".lua")
        for it in _FOLDER.iterdir()
        if it.name.endswith(".lua") and it.name != "common.lua"
    )
)
"""The scripts of the backend."""
TASK_NAMES = (
    *("tasks/send", "tasks/change", "tasks/read", "tasks/entries"),
    *("tasks/suspects", "tasks/heartbeat", "tasks/purge"),
)
"""The scripts of the task store, without the one that only tests call."""


class Call(NamedTuple):
    """A script to run, its keys and its arguments."""

    name: str
    keys: tuple[str, ...]
    args: tuple[Any, ...]

    def command(self, *, as_text: bool = False) -> tuple[Any, ...]:
        """Return the command that runs the script by its digest, or by its text."""
        found = script(self.name)
        start = ("EVAL", found.text) if as_text else ("EVALSHA", found.digest)
        return (*start, len(self.keys), *self.keys, *self.args)

    def packed(self) -> bytes:
        """Return the command that runs the script by its digest, as it is sent."""
        args = hiredis.pack_command(self.args).partition(b"\n")[2]
        size = 3 + len(self.keys) + len(self.args)
        return b"*%d\r\n%b%b" % (size, _start(self.name, self.keys), args)


@lru_cache(maxsize=1000)
def _start(name: str, keys: tuple[str, ...]) -> bytes:
    """Return what all calls of one script on the same queues have in common."""
    packed: bytes = hiredis.pack_command(Call(name, keys, ()).command())
    return packed.partition(b"\n")[2]


class Script(NamedTuple):
    """A script's text and its digest."""

    text: bytes
    digest: str


@cache
def script(name: str) -> Script:
    """Return one of the scripts."""
    flags, _, text = _read(name).partition("\n")
    whole = "\n".join([flags, *_common(name), text]).encode()
    return Script(whole, sha1(whole, usedforsecurity=False).hexdigest())


def _common(name: str) -> tuple[str, ...]:
    """Return what goes before a script.

    The transitions are inside a function of their own. Lua looks for a variable that a function
    takes from around it in a list of all of them, and this list is shorter there: with only one
    level a call that changed nothing took half as long again.
    """
    if not name.startswith("tasks/"):
        return (_read("common"),)
    rows = _read("tasks/rows")
    if name not in {"tasks/send", "tasks/change"}:
        return (rows,)
    inside = (_read("tasks/limits"), _read("tasks/walk"), _read("tasks/changes"))
    return (rows, "local function apply()", *inside, "return apply()\nend")


def _read(name: str) -> str:
    return (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
