"""A real broker that is killed under load and comes back: the application notices nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from support.outage import outage, summary

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mqcore.contract.brokers.server import Server


@pytest.mark.timeout(180)
@pytest.mark.parametrize("product", ["redis", "rabbitmq"])
async def test_nothing_is_lost_or_raised_while_the_broker_is_away(
    broker_server: Callable[..., Server], product: str, tmp_path: Path
) -> None:
    """The short form of `tests/campaigns/outage.py`."""
    server = broker_server(product)
    result = await outage(
        server.url, server, f"sqlite:///{tmp_path}/spool.db", rate=200.0, away=3.0
    )
    assert result.errors == [], summary(result)
    assert result.lost == 0, summary(result)
    assert result.overtaken == 0, summary(result)
    assert result.spooled > 0
    assert result.empty_after is not None, summary(result)
