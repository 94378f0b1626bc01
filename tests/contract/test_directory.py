"""The contract on the example of the plugin author's guide: messages as files in a folder."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import pytest

from mqcore.config.plugins import Plugins
from mqcore.contract import Harness, UrlHarness
from mqcore.contract.suite import test_contract, test_model
from mqcore.testing import VirtualClock

__all__ = ["test_contract", "test_model"]

SOURCE = Path(__file__).parents[2] / "examples" / "backend-directory" / "src"


class DirectoryHarness(UrlHarness):
    """A folder has no server that could be killed, and its files can be searched."""

    silence = 0.2

    def __init__(self, folder: Path, plugins: Plugins) -> None:
        super().__init__(f"dir://{folder}", plugins=plugins, clock=VirtualClock())
        self.folder = folder

    async def restart(self) -> None:
        pass

    async def stored(self, body: bytes) -> Mapping[str, int]:
        """Count the files with this body; every folder is a place."""
        text, found = base64.b64encode(body), Counter[str]()
        for path in self.folder.rglob("*"):
            found[str(path.parent if path.is_file() else path)] += (
                path.is_file() and text in path.read_bytes()
            )
        return found


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Harness:
    monkeypatch.syspath_prepend(SOURCE)
    monkeypatch.setenv("MQCORE_CONTRACT_EXAMPLES", "50")  # each example writes hundreds of files
    import mqcore_directory  # noqa: PLC0415 - it is no package of ours: it is found once its folder is on the path

    plugins = Plugins()
    plugins.register(mqcore_directory)
    return DirectoryHarness(tmp_path / "spool", plugins)
