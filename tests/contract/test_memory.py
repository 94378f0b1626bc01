"""The contract on `memory://`, the reference."""

from __future__ import annotations

import pytest

from mqcore.contract import Harness, MemoryHarness
from mqcore.contract.suite import test_contract

__all__ = ["test_contract"]


@pytest.fixture
def harness() -> Harness:
    return MemoryHarness()
