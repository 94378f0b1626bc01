"""The pages use the worked example of the plugin author's guide as if it were installed."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "backend-directory" / "src"


@pytest.fixture(autouse=True)
def example_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)


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
