"""Real brokers for tests: started for one run, killed and restarted at will, gone afterwards.

    def test_orders(redis_url: str) -> None: ...

is all that an application's test needs; the fixtures are in `mqcore.contract.brokers.fixtures`. The
fixture asks `Brokers` for a server by name (`redis`, `rabbitmq-4`, …). `Brokers` looks the name up
in the catalogue, tries the providers that `--mqcore-brokers` allows, and returns a `Server` that
accepts connections at its `url`. The server is stopped when the run ends.

`ServerHarness` gives the contract kit the same server, so that cases of crashes and of silence can
be shown. `ProcessServer` is any other server that one command starts.
"""

from mqcore.contract.brokers.brokers import Brokers
from mqcore.contract.brokers.catalogue import KINDS, Kind, find
from mqcore.contract.brokers.harness import ServerHarness
from mqcore.contract.brokers.process_server import ProcessServer
from mqcore.contract.brokers.server import BrokerUnavailable, Server

__all__ = [
    "KINDS",
    "BrokerUnavailable",
    "Brokers",
    "Kind",
    "ProcessServer",
    "Server",
    "ServerHarness",
    "find",
]
