"""The contract on dir://, in a new folder for each case and under a virtual clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mqcore_directory.backend import DirectoryBackend, DirectoryOptions

from mqcore.contract import Harness
from mqcore.contract.suite import test_contract
from mqcore.testing import VirtualClock

if TYPE_CHECKING:
    from pathlib import Path

    from mqcore.spi import Backend

__all__ = ["test_contract"]


class DirectoryHarness(Harness):
    """A folder. It has no server that could be restarted and no network that could be cut."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = VirtualClock()

    def make_backend(self) -> Backend:
        """Return another user of the same folder."""
        return DirectoryBackend(f"dir://{self.folder}", DirectoryOptions(clock=self.clock))


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    """Return the harness of one case."""
    return DirectoryHarness(tmp_path / "spool")
