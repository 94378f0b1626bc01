"""The contract on the worked example of the plugin author's guide: messages as files in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from mqcore.contract import Harness, UrlHarness
from mqcore.contract.suite import test_contract, test_model
from mqcore.plugins import Plugins
from mqcore.testing import VirtualClock

__all__ = ["test_contract", "test_model"]

SOURCE = Path(__file__).parents[2] / "examples" / "backend-directory" / "src"


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Harness:
    monkeypatch.syspath_prepend(SOURCE)
    monkeypatch.setenv("MQCORE_CONTRACT_EXAMPLES", "50")  # each example writes hundreds of files
    import mqcore_directory  # noqa: PLC0415 - it is no package of ours: it is found once its folder is on the path

    plugins = Plugins()
    plugins.register(mqcore_directory)
    found = UrlHarness(f"dir://{tmp_path}/spool", plugins=plugins, clock=VirtualClock())
    found.silence = 0.2
    return found
