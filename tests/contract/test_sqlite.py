"""The contract on a file, `sqlite:///…`, under a virtual clock."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.sqlite_file import SqliteHarness

from mqcore.contract import Harness
from mqcore.contract.suite import test_contract, test_model
from mqcore.testing import VirtualClock

__all__ = ["test_contract", "test_model"]


@pytest.fixture
def harness(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Harness:
    monkeypatch.setenv("MQCORE_CONTRACT_EXAMPLES", "50")  # each example commits hundreds of times
    return SqliteHarness(tmp_path / "spool.db", VirtualClock())
