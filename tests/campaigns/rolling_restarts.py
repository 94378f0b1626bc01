"""Rolling restarts under load with late answers: no message may be lost or doubled.

    python tests/campaigns/rolling_restarts.py redis-7 rabbitmq-3 rabbitmq-4+quorum --restarts 60

Workers run on the server through a proxy that passes answers on 0 to 1 s late. The oldest worker
gets SIGTERM while another one starts, again and again, and a publisher goes on all the time. A
ledger of its own says in the end what was published, what was started, and what was dead-lettered.
It prints one row a server, and ends with 1 when a row is not clean.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.rolling_campaign import Load, campaign, summary

from mqcore.contract.brokers import Brokers

QUORUM = "+quorum"


def main() -> int:
    """Run it on each server that is named, and print a row for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "servers", nargs="+", help=f"of the catalogue: redis-7, rabbitmq-4, rabbitmq-4{QUORUM}"
    )
    parser.add_argument("--restarts", type=int, default=60)
    parser.add_argument(
        "--late", type=float, default=1.0, help="most seconds that an answer is late"
    )
    parser.add_argument("--rate", type=float, default=40.0, help="messages published a second")
    parser.add_argument(
        "--pause", type=float, default=0.5, help="seconds between a start and the next SIGTERM"
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--provider", default="auto")
    options = parser.parse_args()
    load = Load(options.restarts, options.late, options.rate, options.pause, options.seed)
    clean = True

    with Brokers(options.provider) as brokers:
        for name in options.servers:
            server = brokers.server(name.removesuffix(QUORUM))
            url = f"{server.url}?durability=machine" if name.endswith(QUORUM) else server.url
            folder = Path(tempfile.mkdtemp(prefix="rolling-"))
            began = time.monotonic()
            ledger = asyncio.run(campaign(url, server.host, server.port, load, folder))
            clean = clean and ledger.clean
            took = f"{options.restarts} restarts in {time.monotonic() - began:.0f} s"
            verdict = "clean" if ledger.clean else f"NOT CLEAN, see {folder}"
            print(f"{name} ({server.title}): {took}, {summary(ledger)}; {verdict}", flush=True)

    return int(not clean)


if __name__ == "__main__":
    sys.exit(main())
