"""A broker that is away for a minute under load: an application with a fallback notices nothing.

    python tests/campaigns/outage.py redis-7 rabbitmq-3 --away 60 --rate 500

The application publishes at the rate all the time, with a spool in a file. The server is killed and
comes back. What has a receipt must arrive, and the spool must be empty within 30 s of the return.
It prints one row a server, and ends with 1 when something was lost, overtaken or raised.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.outage import outage, summary

from mqcore.contract.brokers import Brokers

WITHIN = 30.0


def main() -> int:
    """Run it on each server that is named, and print a row for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("servers", nargs="+", help="of the catalogue: redis-7, rabbitmq-3")
    parser.add_argument("--away", type=float, default=60.0, help="seconds")
    parser.add_argument("--rate", type=float, default=500.0, help="publishes a second")
    parser.add_argument("--provider", default="auto")
    options = parser.parse_args()
    is_clean = True

    with Brokers(options.provider) as brokers:
        for name in options.servers:
            server = brokers.server(name)
            with tempfile.TemporaryDirectory() as folder:
                spool = f"sqlite:///{folder}/spool.db"
                result = asyncio.run(
                    outage(server.url, server, spool, rate=options.rate, away=options.away)
                )
            in_time = result.empty_after is not None and result.empty_after <= WITHIN
            clean = in_time and not (result.lost or result.errors or result.overtaken)
            is_clean = is_clean and clean
            verdict = "clean" if clean else f"NOT CLEAN {result.errors[:3]}"
            print(f"{name} ({server.title}): {summary(result)}; {verdict}", flush=True)

    return int(not is_clean)


if __name__ == "__main__":
    sys.exit(main())
