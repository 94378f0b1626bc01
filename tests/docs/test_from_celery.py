"""The table of equivalents has every public name of Celery, and what it names in mqcore exists."""

from __future__ import annotations

import inspect
import re
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from support.celery_names import collect, stored
from typer.main import get_command

import mqcore
import mqcore.middleware
import mqcore.tasks
import mqcore.tasks.sync
from mqcore.cli.app import application
from mqcore.tasks import every

PAGE = Path(__file__).parents[2] / "docs" / "from-celery.md"
TABLES = PAGE.read_text(encoding="utf-8").partition("\n## Table of equivalents\n")[2]
CODE = re.compile(r"`([^`]+)`")
NAMES = {name: value for name, value in stored().items() if isinstance(value, set)}
PLACES = ({"sync": mqcore.tasks.sync}, mqcore, mqcore.tasks, mqcore.middleware)
"""Where a name of mqcore on the page may be."""
DECORATED = {"@tasks.task": mqcore.tasks.TaskOptions}
"""Options that a typed dictionary has."""


def rows() -> dict[str, list[tuple[str, str]]]:
    """Return the two cells of each row, by the heading of its table."""
    found = {}
    for part in TABLES.split("\n### ")[1:]:
        heading, _, text = part.partition("\n")
        cells = [re.split(r"(?<!\\)\|", line)[1:3] for line in text.splitlines() if line[:1] == "|"]
        found[heading] = [(theirs.strip(), ours.strip()) for theirs, ours in cells[2:]]
    return found


ROWS = rows()
OURS = sorted({code for table in ROWS.values() for _, ours in table for code in CODE.findall(ours)})


def test_there_is_a_table_for_each_part_of_celery() -> None:
    assert list(ROWS) == list(NAMES)
    assert f"Celery {stored()['version']}" in TABLES


@pytest.mark.parametrize("section", NAMES)
def test_each_name_of_celery_has_a_row(section: str) -> None:
    listed = [
        code.partition("(")[0] for theirs, _ in ROWS[section] for code in CODE.findall(theirs)
    ]
    for name in listed:
        assert any(fnmatchcase(each, name) for each in NAMES[section]), f"Celery has no {name}"
    for name in NAMES[section]:
        assert any(fnmatchcase(name, each) for each in listed), f"{name} has no row"


def test_each_row_has_an_answer() -> None:
    assert all(ours for table in ROWS.values() for _, ours in table)


def test_what_takes_the_place_exists() -> None:
    assert [code for code in OURS if not is_there(code)] == []


def is_there(code: str) -> bool:
    """Whether a command with its option, a name, or a call with its keywords exists in mqcore."""
    if code.startswith("mqcore "):
        return command_exists(code.split()[1:])
    if found := re.match(r"(@?[\w.]+)\(([\w, =]+=)", code):
        return set(re.findall(r"(\w+)=", code)) <= parameters(found[1])
    return code in WORDS or not re.fullmatch(r"[\w.]+", code) or exists(code)


WORDS = {
    *("MQCORE_URL", "logging", "ipython", "tracemalloc", "url", "none"),
    *("retries_exhausted", "crashed", "timeout", "module.function", "s"),
    *("await", "send", "max_attempts"),
    *("mqcore.toml", "name", "store", "include"),
}
"""What is no name of mqcore's."""


def resolved(path: str) -> Any:
    first, *rest = path.split(".")
    for place in PLACES:
        names = place if isinstance(place, dict) else vars(place)
        if first in names:
            thing = names[first]
            break
    else:
        raise LookupError(f"mqcore has no {first}")
    for name in rest:
        if not hasattr(thing, name) and is_attribute(thing, name):
            return None
        thing = getattr(thing, name)
    return thing


def is_attribute(kind: Any, name: str) -> bool:
    """Whether instances have it: an annotation, or assigned when they are made."""
    return any(
        name in getattr(base, "__annotations__", {})
        or (inspect.isclass(base) and f"self.{name} = " in inspect.getsource(base))
        for base in kind.__mro__[:-1]
    ) or name in getattr(kind, "__annotations__", {})


def exists(path: str) -> bool:
    try:
        resolved(path.removeprefix("mqcore."))
    except (AttributeError, LookupError):
        return False
    return True


def parameters(place: str) -> set[str]:
    if place in DECORATED:
        return set(DECORATED[place].__annotations__)
    thing = every if place == "every" else resolved(place)
    found = set(inspect.signature(thing).parameters)
    if "options" in found:
        options = inspect.signature(thing).parameters["options"].annotation
        kind = re.search(r"\[(\w+)\]", str(options))
        assert kind is not None
        module = inspect.getmodule(thing)
        found |= set(vars(module)[kind[1]].__annotations__)
    return found


@cache
def commands() -> Any:
    return get_command(application(plugins=True))


def command_exists(words: list[str]) -> bool:
    command = commands()
    for word in words:
        if word.startswith("--"):
            return any(
                word in (*parameter.opts, *parameter.secondary_opts) for parameter in command.params
            )
        if word not in getattr(command, "commands", {}):
            return False
        command = command.commands[word]
    return True


def test_what_is_not_there_is_noticed() -> None:
    assert not exists("Job.revoke")
    assert not command_exists(["tasks", "explode"])
    assert not command_exists(["worker", "--pool"])
    assert "countdown" not in parameters("Task.using")


def test_the_names_are_those_of_the_installed_celery() -> None:
    pytest.importorskip("celery")
    assert collect() == stored(), "run: python tests/support/celery_names.py"
