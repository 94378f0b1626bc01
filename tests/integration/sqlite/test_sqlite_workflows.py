"""The workflows of `mqcore.tasks`, each test of them once more with the store in an SQLite file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mqcore import App
from mqcore.tasks import Tasks
from tests.integration.tasks import test_workflows
from tests.integration.tasks.conftest import Shop

if TYPE_CHECKING:
    from pathlib import Path

    from mqcore.testing import VirtualClock

pytestmark = pytest.mark.timeout(120)

globals().update(
    {name: it for name, it in vars(test_workflows).items() if name.startswith(("test_", "sums"))}
)


class ShopInAFile(Shop):
    """An application whose tasks are in a file, which a power cut may damage."""

    def __init__(self, clock: VirtualClock, path: Path) -> None:
        super().__init__(clock)
        self.tasks = Tasks("shop", store=f"sqlite:///{path}?synchronous=off")
        self.app = App("shop", tasks=[self.tasks])


@pytest.fixture
def shop(clock: VirtualClock, tmp_path: Path) -> Shop:
    return ShopInAFile(clock, tmp_path / "tasks.db")
