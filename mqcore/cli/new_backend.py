"""`mqcore new-backend NAME`: writes a package for a new backend.

Its contract run says what to write next.

The files are those of `mqcore/contract/template/`, with `@name@`, `@package@`, `@Class@` and
`@version@` replaced.
"""

import keyword
import re
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer

from mqcore.config.plugins import default_plugins
from mqcore.errors import ConfigurationError

__all__ = ["new_backend", "write_package"]

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST = 40
_SUFFIX = ".tmpl"


def new_backend(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="The scheme of its URLs, for instance acme.", show_default=False
        ),
    ],
    *,
    directory: Annotated[
        Path, typer.Option(metavar="DIR", help="Where to create the folder mqcore-NAME.")
    ] = Path(),
) -> None:
    """Write a package for a new backend. Its contract run fails, and says what to write next."""
    if not _NAME.fullmatch(name) or len(name) > _LONGEST or keyword.iskeyword(name):
        raise ConfigurationError(
            f"{name!r:.60} cannot be a URL scheme and a package: use lower-case letters, digits "
            "and single hyphens, and begin with a letter"
        )

    taken = {entry.scheme: entry.distribution for entry in default_plugins().installed()}
    if name in taken:
        raise ConfigurationError(
            f"the scheme {name!r} is taken by {taken[name]}; choose another name"
        )

    target = write_package(name, directory)
    print(f"{target} is written. Next:")
    print(f"  cd {target} && pip install -e '.[test]'")
    print("  mqcore backends                 lists it")
    print(
        f"  mqcore contract run {name}://      says what to write next, in "
        f"src/{_words(name)['package']}/backend.py"
    )


def write_package(name: str, directory: Path) -> Path:
    """Write the package for scheme `name` into a new folder in `directory`, and return that folder.

    Raises `ConfigurationError` when the folder exists or cannot be written.
    """
    target, words = directory / f"mqcore-{name}", _words(name)

    try:
        target.mkdir(parents=True)
        for place, text in _templates(files("mqcore.contract") / "template", PurePosixPath()):
            path = target / _filled(str(place), words).removesuffix(_SUFFIX)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(_filled(text, words), encoding="utf-8")
    except FileExistsError:
        raise ConfigurationError(
            f"{str(target)!r:.300} exists already; choose another --directory"
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"{str(target)!r:.300} cannot be written: {error.strerror}"
        ) from error

    return target


def _words(name: str) -> Mapping[str, str]:
    return {
        "name": name,
        "package": f"mqcore_{name.replace('-', '_')}",
        "Class": "".join(part.capitalize() for part in name.split("-")),
        "version": version("mqcore"),
    }


def _filled(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text


def _templates(folder: Traversable, at: PurePosixPath) -> Iterator[tuple[PurePosixPath, str]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _templates(entry, at / entry.name)
        elif entry.name.endswith(_SUFFIX):
            yield at / entry.name, entry.read_text(encoding="utf-8")
