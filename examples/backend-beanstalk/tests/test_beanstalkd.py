"""The contract on beanstalk://, on a beanstalkd that these tests start."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from mqcore_beanstalk.protocol import version

from mqcore.contract.brokers import ProcessServer, ServerHarness
from mqcore.contract.suite import test_contract, test_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqcore.contract import Harness

__all__ = ["test_contract", "test_model"]

COMMAND = [
    "beanstalkd",
    *("-l", "127.0.0.1", "-p", "{port}"),
    *(
        "-b",
        "{folder}",
        "-f",
        "0",
    ),  # its log goes into the folder that survives a restart, with an fsync for each write
    *(
        "-z",
        "4194304",
    ),  # bytes of a job: a payload of mqcore has 1 MiB at most, and its headers come on top
]


@pytest.fixture(scope="module")
def harness(process_server: Callable[..., ProcessServer]) -> Harness:
    """Return the harness of all cases, with a server of their own."""
    harness = ServerHarness(
        process_server(COMMAND, ready=version, url="beanstalk://127.0.0.1:{port}")
    )
    harness.at_once = 6
    return harness
