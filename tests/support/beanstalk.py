"""beanstalkd and its backend, the second example of the plugin author's guide."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mqcore.config.plugins import Plugins
from mqcore.contract import Harness
from mqcore.contract.brokers import ProcessServer, ServerHarness

__all__ = ["harness"]

SOURCE = Path(__file__).parents[2] / "examples" / "backend-beanstalk" / "src"


@pytest.fixture(scope="module")
def harness(process_server: Callable[..., ProcessServer]) -> Iterator[Harness]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SOURCE)
        # An example takes some seconds: delays and leases are whole seconds there.
        patch.setenv("MQCORE_CONTRACT_EXAMPLES", "4")
        import mqcore_beanstalk  # noqa: PLC0415 - it is no package of ours: it is found once its folder is on the path
        from mqcore_beanstalk.testing import COMMAND, stored, version  # noqa: PLC0415 - as above

        plugins = Plugins()
        plugins.register(mqcore_beanstalk)
        server = process_server(
            COMMAND, ready=version, url="beanstalk://127.0.0.1:{port}", stored=stored
        )
        found = ServerHarness(server, plugins=plugins)
        found.at_once = 8
        yield found
