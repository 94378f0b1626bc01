"""The pages use two examples as if they were installed or in the working directory."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from support.course import forget_project

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def examples_on_the_path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(EXAMPLES / "backend-directory" / "src")
    monkeypatch.syspath_prepend(EXAMPLES / "course")
    forget_project()
    yield
    forget_project()


@pytest.fixture(autouse=True)
def django_not_configured() -> Iterator[None]:
    """A page configures Django, which can be done once in a process."""
    _forget_django()
    yield
    _forget_django()


def _forget_django() -> None:
    if "django.conf" not in sys.modules:
        return
    from django.conf import empty, settings  # noqa: PLC0415 - an extra
    from django.db import connections  # noqa: PLC0415 - an extra

    settings._wrapped = empty
    connections._settings = None
    with suppress(AttributeError):
        del connections.settings
    if "mqcore.tasks.django" not in sys.modules:
        return
    from asgiref.local import Local  # noqa: PLC0415 - an extra

    from mqcore.tasks.django.compat import task_backends  # noqa: PLC0415 - an extra
    from mqcore.tasks.django.runtime import close_runtimes  # noqa: PLC0415 - an extra

    close_runtimes()
    task_backends._settings, task_backends._connections = None, Local()
    task_backends.__dict__.pop("settings", None)
