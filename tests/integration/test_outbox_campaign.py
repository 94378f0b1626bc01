"""The short form of tests/campaigns/outbox.py: kills change nothing of what arrives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.databases import app_database

from mqcore.contract.brokers import Server

pytest.importorskip("sqlalchemy", reason="pip install 'mqcore[sqlalchemy]'")
from support.outbox_campaign import Load, campaign

LOAD = Load(transactions=60, kills=5, pause=0.5, limit=200.0, seed=1)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("product", ["sqlite", "postgresql"])
@pytest.mark.parametrize("other", ["same", "another"])
async def test_exactly_what_was_committed_arrives(
    product: str, other: str, tmp_path: Path, broker_server: Callable[[str], Server]
) -> None:
    database = app_database(product, tmp_path, broker_server)
    is_same = other == "same"
    url = database.url if is_same else f"sqlite:///{tmp_path / 'broker.db'}"
    outcome = await campaign(database, url, None if is_same else database.url, LOAD, tmp_path)
    assert outcome.is_clean, str(outcome)
    assert outcome.begun >= LOAD.transactions
    assert outcome.committed
    assert outcome.kills.total()
