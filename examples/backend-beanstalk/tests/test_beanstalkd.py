"""The contract on beanstalk://, on a beanstalkd that these tests start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mqcore_beanstalk.testing import COMMAND, stored, version

from mqcore.contract.brokers import ProcessServer, ServerHarness
from mqcore.contract.suite import test_contract, test_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqcore.contract import Harness

__all__ = ["test_contract", "test_model"]


@pytest.fixture(scope="module")
def harness(process_server: Callable[..., ProcessServer]) -> Harness:
    """Return the harness of all cases, with a server of their own."""
    server = process_server(
        COMMAND, ready=version, url="beanstalk://127.0.0.1:{port}", stored=stored
    )
    harness = ServerHarness(server)
    harness.at_once = 6
    return harness
