"""The contract on `memory://`, the reference."""

from __future__ import annotations

import pytest

from mqcore.contract import Harness, MemoryHarness
from mqcore.contract.suite import test_contract, test_model

__all__ = ["test_contract", "test_model"]


@pytest.fixture
def harness() -> Harness:
    return MemoryHarness()
