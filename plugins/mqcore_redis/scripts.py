"""The scripts as the server gets them: the line with the flags, the common part, the script.

The name of a script is the digest of its text, so two versions of this library never share one.
"""

from functools import cache, lru_cache
from hashlib import sha1
from importlib.resources import files
from typing import Any, NamedTuple

import hiredis

__all__ = ["NAMES", "Call", "Script", "script"]

_FOLDER = files(__package__) / "lua"
NAMES = tuple(
    sorted(it.name.removesuffix(".lua") for it in _FOLDER.iterdir() if it.name != "common.lua")
)


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
    flags, _, text = (_FOLDER / f"{name}.lua").read_text(encoding="utf-8").partition("\n")
    common = (_FOLDER / "common.lua").read_text(encoding="utf-8")
    whole = f"{flags}\n{common}\n{text}".encode()
    return Script(whole, sha1(whole, usedforsecurity=False).hexdigest())
