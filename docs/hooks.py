"""MkDocs' hooks: the parts of the site that are generated during its build.

- The tables of capabilities: of `memory://` from a contract run, of backends with a server from the
  reports in `docs/backends/reports/`.
- The tables of options, from the annotations and docstrings of their classes.
- The page of all commands, from their `--help`.
- The list of decisions, and the pages that are elsewhere in the repository.

These are warnings, and warnings end the build: a public name that the reference does not show, a
case of the contract that fails, a report of a run that did not pass, an option without a
description, and a page that the navigation does not have.
"""  # noqa: INP001 - a hook that MkDocs loads by its path

import json
import logging
import posixpath
import re
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from inspect import get_annotations
from pathlib import Path, PurePosixPath
from pkgutil import walk_packages
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from typer.testing import CliRunner

from mqcore.cli.app import application
from mqcore.contract import MemoryHarness, Report, run_contract
from mqcore.contract.table import capability_table
from mqcore.events import EVENTS

LOG = logging.getLogger("mkdocs.plugins.hooks")
ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/course/README.md": "examples/course.md",
    "examples/segmentation/README.md": "examples/segmentation.md",
    "examples/rooms/README.md": "examples/rooms.md",
    "examples/backend-directory/README.md": "examples/backend-directory.md",
    "examples/backend-beanstalk/README.md": "examples/backend-beanstalk.md",
}
"""Pages that are elsewhere in the repository, and where they are on the site."""
PACKAGES = (
    "mqcore",
    "mqcore.sync",
    "mqcore.testing",
    "mqcore.middleware",
    "mqcore.contract",
    "mqcore.contract.brokers",
    "mqcore.spi",
)
"""The public modules."""
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^(\s*```)python (?:continue|notest:.*)$", re.MULTILINE)
_PICTURE = re.compile(r"^!\[[^\]]*\]\((?:\.\./)*assets/([\w-]+\.svg)\)$", re.MULTILINE)
"""A picture on a line of its own. It becomes a part of the page, so that it takes its colors."""
_CAPABILITIES = "<!-- the capabilities, as the contract run of this build found them -->"
_OPTIONS = re.compile(r"^<!-- options of ([\w.]+) -->$", re.MULTILINE)
"""The place of a table of options: of a TypedDict, a settings model or a backend's options."""
_ENTRY = re.compile(r"((?:(?:, | and |, and )?`\w+(?:=\w+)?`)+(?: \(\w+\))?): ")
_NOT_SET = {"clock"}
"""Fields that mqcore fills in itself."""
_TYPES = {
    "str": "text",
    "int": "number",
    "float": "number",
    "bool": "true or false",
    "float | timedelta": "seconds or `timedelta`",
    "Mapping[str, str]": "text by text",
    "dict[str, str]": "text by text",
    "tuple[str, Ellipsis]": "list of text",
    "Path": "path",
    "str | Path": "path",
    "str | Literal[False]": "text or `false`",
    "BrokerUrl": "URL",
    "Sequence[str]": "list of text",
    "NotNegative": "seconds",
    "Seconds": "seconds",
}
_EVENTS = "<!-- the events -->"
_SIDE_BY_SIDE = "<!-- what every backend can do, out of its contract report -->"
REPORTS = ROOT / "docs" / "backends" / "reports"
"""JSON reports, from `pytest --mqcore-contract-reports` or `mqcore contract run --report`."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the decisions into the navigation: one page for each."""
    decisions = sorted(path.name for path in (ROOT / "docs" / "adr").glob("[0-9]*.md"))
    for section in config.nav or []:
        if "Decisions" in section:
            section["Decisions"] = [*section["Decisions"], *(f"adr/{name}" for name in decisions)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and check that the reference has every public name."""
    pages = {
        "adr/index.md": _decisions(),
        "reference/cli.md": _commands(),
        "backends/memory-report.md": _report().markdown(),
    }
    for place, target in OUTSIDE.items():
        if target != "index.md":
            pages[target] = _moved((ROOT / place).read_text(encoding="utf-8"), place, target)
    for target, text in pages.items():
        files.append(File.generated(config, target, content=text))
    if not _report().ok:
        LOG.warning("the contract fails on memory://: %s", ", ".join(_failed()))
    for path, report in _reports().items():
        if report.get("verdict") != "passed":
            LOG.warning("%s: the verdict of this run is %s", path.name, report.get("verdict"))
    for name in _forgotten():
        LOG.warning("%s is public and has no place in docs/reference", name)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put generated parts into their places, and remove the tests' words from fences."""
    del config, files
    if _CAPABILITIES in markdown:
        markdown = markdown.replace(_CAPABILITIES, capability_table([_report().data()]))
    if _SIDE_BY_SIDE in markdown:
        markdown = markdown.replace(
            _SIDE_BY_SIDE, capability_table([_report().data(), *_reports().values()])
        )
    markdown = (
        _moved(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)
        if "](../" in markdown
        else markdown
    )
    markdown = _OPTIONS.sub(lambda place: option_table(place[1]), markdown)
    markdown = markdown.replace(_EVENTS, _event_table())
    markdown = _PICTURE.sub(_drawn, markdown)
    return _FENCE.sub(r"\1python", markdown)


def _drawn(picture: re.Match[str]) -> str:
    """Return the picture itself in place of a link to it."""
    svg = (ROOT / "docs" / "assets" / picture[1]).read_text(encoding="utf-8")
    return f'<figure class="picture">\n{svg.strip()}\n</figure>'


def option_table(path: str) -> str:
    """Return a table of the options of one class: from its annotations and its docstring.

    The docstring describes each option as `` `name`: text ``. An option without a description is a
    warning, and warnings end the build.
    """
    kind = _class(path)
    described = _described(kind)
    fields = getattr(kind, "model_fields", None)
    rows = ["| option | value | meaning |", "|---|---|---|"]

    for option, annotation in _annotations(kind).items():
        if fields is not None and option in _NOT_SET:
            continue
        if option not in described:
            LOG.warning("%s.%s is not described in the docstring of its class", path, option)
        meaning = described.get(option, "")
        default = fields[option].default if fields is not None else None
        if isinstance(default, str | int | float) and default != "":
            meaning += f" Default: `{_value(default)}`."
        rows.append(
            f"| `{option}` | {_type_words(annotation)} | {meaning} |".replace(" |  |", " | |")
        )

    return "\n".join(rows)


def _event_table() -> str:
    """Return a table of all events, with the fields of each."""
    rows = ["| event | meaning | fields |", "|---|---|---|"]
    for name, text in EVENTS.items():
        meaning, _, fields = text.partition("; fields: ")
        rows.append(f"| `{name}` | {meaning} | {fields} |".replace(" |  |", " | |"))
    return "\n".join(rows)


def _class(path: str) -> Any:
    """Return the class of a dotted path; a public name may be in a module below."""
    module, _, name = path.rpartition(".")
    package = import_module(module)
    if hasattr(package, name):
        return getattr(package, name)
    for found in walk_packages(package.__path__, f"{module}."):
        if not found.name.endswith("__main__"):
            kind = vars(import_module(found.name)).get(name)
            if kind is not None and kind.__module__ == found.name:
                return kind
    raise LookupError(f"there is no class {path}")


def _described(kind: Any) -> dict[str, str]:
    """Return the description of each option in the docstrings of a class and its bases."""
    bases = [*getattr(kind, "__orig_bases__", ()), *getattr(kind, "__mro__", ())[1:]]
    described = {}
    for base in reversed([kind, *bases]):
        described |= _entries(getattr(base, "__doc__", None) or "")
    return described


def _entries(docstring: str) -> dict[str, str]:
    text = " ".join(docstring.split())
    parts = _ENTRY.split(text)[1:]
    entries = {}
    for names, meaning in zip(parts[::2], parts[1::2], strict=True):
        words = re.sub(r"[;,]?( and)?$", "", meaning.strip()).strip()
        words = f"{words[0].upper()}{words[1:].rstrip('.')}."
        for name, value in re.findall(r"`(\w+)(=\w+)?`", names):
            entries[name] = f"`{value[1:]}`: {words}" if value else words
    return entries


def _annotations(kind: Any) -> dict[str, str]:
    """Return the annotation of each option as it is written."""
    found = {}
    for name, annotation in get_annotations(kind).items() if _is_typed_dict(kind) else ():
        found[name] = getattr(annotation, "__forward_arg__", None) or _written(annotation)
    for name, field in getattr(kind, "model_fields", {}).items():
        found[name] = _written(field.annotation).removesuffix(" | None")  # None: not set
    return found


def _is_typed_dict(kind: Any) -> bool:
    return hasattr(kind, "__total__")


def _written(annotation: Any) -> str:
    """Return a type as code would write it, without modules and constraints."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _written(parts[0])
    if origin in (Union, UnionType):
        return " | ".join(_written(part) for part in parts)
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, parts))}]"
    if parts:
        return f"{origin.__name__}[{', '.join(map(_written, parts))}]"
    return "None" if annotation is NoneType else getattr(annotation, "__name__", str(annotation))


def _type_words(annotation: str) -> str:
    """Return the words for a type: `seconds`, `text`, the values of a Literal, or itself."""
    parts = [part.strip() for part in re.split(r"\|(?![^\[]*\])", annotation)]
    none = " or None" if "None" in parts else ""
    main = " | ".join(part for part in parts if part != "None")
    if literal := re.fullmatch(r"Literal\[(.*)\]", main):
        values = [value.strip().replace("'", '"') for value in literal[1].split(",")]
        return ", ".join(f"`{value}`" for value in values) + none
    words = _TYPES.get(main) or "`" + main.replace("|", "\\|") + "`"
    return words + none


def _value(value: object) -> object:
    """Return a default as its reader writes it in TOML or in an URL."""
    if isinstance(value, bool):
        return str(value).lower()
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _moved(text: str, place: str, target: str) -> str:
    """Return a page with links that fit its place on the site.

    A link to a file that the site does not have becomes plain text.
    """

    def link(found: re.Match[str]) -> str:
        words, goal = found.groups()
        path, _, anchor = goal.partition("#")
        if not path or ":" in path:
            return found[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(place), path))
        if (ROOT / path).is_dir():
            path = f"{path}/README.md" if f"{path}/README.md" in OUTSIDE else f"{path}/index.md"
        inside = PurePosixPath(path).is_relative_to("docs")
        goal = path.removeprefix("docs/") if inside else OUTSIDE.get(path, "")
        if not goal:
            return words
        relative = posixpath.relpath(goal, posixpath.dirname(target) or ".")
        return f"[{words}]({relative}{'#' * bool(anchor)}{anchor})"

    return _LINK.sub(link, text)


@cache
def _report() -> Report:
    """Run the whole contract on `memory://`, once in a build."""
    results = run_contract(MemoryHarness)
    capabilities = next(
        result.capabilities for result in results if result.capabilities is not None
    )
    return Report(results, capabilities, capabilities.server, whole=True)


def _failed() -> list[str]:
    return [result.case.name for result in _report().results if result.status == "failed"]


def _reports() -> dict[Path, dict[str, Any]]:
    """Return what the runs on backends with a server have left, by file."""
    return {
        path: json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(REPORTS.glob("*.json"))
    }


def _decisions() -> str:
    about = (
        "What was decided, why, and which alternatives were rejected. Pages are not rewritten; a "
        "later one may replace an earlier one."
    )
    lines = ["# Decisions", "", about, ""]
    for path in sorted((ROOT / "docs" / "adr").glob("[0-9]*.md")):
        title = path.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")
        lines.append(f"- [{title}]({path.name})")
    return "\n".join(lines) + "\n"


def _forgotten() -> Iterator[str]:
    """Yield the public names that the reference neither shows nor, in the seam's page, names."""
    pages = {
        path.stem: path.read_text(encoding="utf-8")
        for path in (ROOT / "docs" / "reference").glob("*.md")
    }
    shown = {
        name for text in pages.values() for name in re.findall(r"^::: (\S+)", text, re.MULTILINE)
    }
    for module in PACKAGES:
        for name in import_module(module).__all__:
            if f"{module}.{name}" not in shown and not (
                module == "mqcore.spi" and f"`{name}`" in pages["spi"]
            ):
                yield f"{module}.{name}"


def _commands() -> str:
    """Return a page of all commands, each with what its `--help` says."""
    app = application(plugins=False)
    lines = [
        "# The command line",
        "",
        "The output of `mqcore --help`, and of `--help` of each command.",
        "",
    ]
    for words in _each(typer.main.get_command(app), ()):
        shown = CliRunner().invoke(
            app, [*words, "--help"], prog_name="mqcore", env={"COLUMNS": "84", "TERM": "dumb"}
        )
        text = "\n".join(line.rstrip() for line in shown.output.splitlines()).strip("\n")
        lines += [f"## `{' '.join(('mqcore', *words))}`", "", "```text", text, "```", ""]
    return "\n".join(lines)


def _each(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """Yield the words of each command, a group before what is in it."""
    yield words
    for name, one in getattr(command, "commands", {}).items():
        yield from _each(one, (*words, name))
