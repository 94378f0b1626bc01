"""The contract on the adapter for drivers that block, over the store of `memory://`."""

from __future__ import annotations

import pytest

from mqcore.config.plugins import Plugins
from mqcore.contract import Harness, UrlHarness
from mqcore.contract.suite import test_contract
from mqcore.testing import VirtualClock
from tests.support import blocking_memory

__all__ = ["test_contract"]


class BlockingHarness(UrlHarness):
    """All instances share one store."""

    def __init__(self, plugins: Plugins) -> None:
        super().__init__("blocking://contract", plugins=plugins, clock=VirtualClock())

    async def restart(self) -> None:
        pass


@pytest.fixture
def harness() -> Harness:
    plugins = Plugins([])
    plugins.register(blocking_memory)
    return BlockingHarness(plugins)
