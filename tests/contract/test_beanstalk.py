"""The contract on the second worked example of the plugin author's guide: beanstalkd, started by `ProcessServer`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mqcore.contract import Harness
from mqcore.contract.brokers import ProcessServer, ServerHarness
from mqcore.contract.suite import test_contract, test_model
from mqcore.plugins import Plugins

__all__ = ["test_contract", "test_model"]

pytestmark = pytest.mark.timeout(600)
EXAMPLE = Path(__file__).parents[2] / "examples" / "backend-beanstalk"
COMMAND = ("beanstalkd", "-l", "127.0.0.1", "-p", "{port}", "-b", "{folder}", "-f", "0", "-z", "4194304")


@pytest.fixture(scope="module")
def harness(process_server: Callable[..., ProcessServer]) -> Harness:
    sys.path.insert(0, str(EXAMPLE / "src"))
    import mqcore_beanstalk  # noqa: PLC0415 - it is no package of ours: it is found once its folder is on the path
    from mqcore_beanstalk.protocol import version  # noqa: PLC0415 - as above

    plugins = Plugins()
    plugins.register(mqcore_beanstalk)
    url = "beanstalk://127.0.0.1:{port}"
    found = ServerHarness(process_server(COMMAND, ready=version, url=url), plugins=plugins)
    found.at_once = 4
    return found
