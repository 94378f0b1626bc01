"""PostgreSQL and its backend, for tests: the plugin of this checkout, whatever is installed."""

from __future__ import annotations

import pytest

from mqcore.config.plugins import Plugins
from mqcore.contract import Harness
from mqcore.contract.brokers import Server, ServerHarness

__all__ = ["harness_for", "plugins"]


def plugins() -> Plugins:
    """Return the plugin; the test is skipped where psycopg is missing."""
    pytest.importorskip("psycopg", reason="pip install 'mqcore[sql]'")
    from mqcore_sql import postgres_backend  # noqa: PLC0415 - it needs psycopg

    found = Plugins([])
    found.register(postgres_backend)
    return found


def harness_for(server: Server) -> Harness:
    """Return the contract kit's harness for a server."""
    harness = ServerHarness(server, plugins=plugins())
    harness.at_once = 4
    return harness
