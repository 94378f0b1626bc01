"""Workers are replaced in turn under load with late answers: a deployment (G3, G13).

The campaign in tests/campaigns does the same for longer, and prints what it has counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.rolling_campaign import Load, campaign, summary

if TYPE_CHECKING:
    from pathlib import Path

    from mqcore.contract.brokers import Server

pytestmark = pytest.mark.timeout(300)


async def test_a_rolling_restart_doubles_and_loses_nothing(
    server: Server, url: str, tmp_path: Path
) -> None:
    ledger = await campaign(url, server.host, server.port, Load(restarts=6, rate=30.0), tmp_path)
    assert ledger.clean, summary(ledger)
