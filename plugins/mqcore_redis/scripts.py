"""The scripts as the server gets them: the line with the flags, the common part, the script.

The name of a script is the digest of its text, so two versions of this library never share one.
"""

from functools import cache
from hashlib import sha1
from importlib.resources import files
from typing import NamedTuple

__all__ = ["NAMES", "Script", "script"]

_FOLDER = files(__package__) / "lua"
NAMES = tuple(
    sorted(it.name.removesuffix(".lua") for it in _FOLDER.iterdir() if it.name != "common.lua")
)


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
