"""The pages use the worked example of the plugin author's guide as if it were installed."""

from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "backend-directory" / "src"


@pytest.fixture(autouse=True)
def example_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLE)
