"""Real brokers for tests: started for one run, killed and restarted at will, gone afterwards.

    def test_orders(redis_url: str) -> None: ...

is all that an application's test needs; the fixtures are in `mqcore.contract.brokers.fixtures`.
What happens then: the fixture asks `Brokers` for a server by name (`redis`, `rabbitmq-4`, …); it
looks the name up in the catalogue, tries the providers that `--mqcore-brokers` allows, and returns
a `Server` that accepts connections at its `url`. When the run ends it is stopped, whatever the
tests did to it. `ServerHarness` gives the contract kit the same server, so that its cases of
crashes and of silence can be shown. `ProcessServer` is a server that is not in the catalogue:
whatever one command starts.
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
