"""Workers killed in turn under load: nothing is lost or blamed for another (G2, G4, G5)."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.kill_campaign import Load, campaign, summary

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
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two kills")
    parser.add_argument("--rate", type=float, default=8.0, help="messages published a second")
    parser.add_argument(
        "--longest", type=float, default=0.8, help="most seconds that a message takes"
    )
    parser.add_argument("--poisons", type=int, default=0, help="messages that kill their process")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--provider", default="auto")
    options = parser.parse_args()
    load = Load(
        options.kills, options.every, options.rate, options.longest, options.poisons, options.seed
    )
    clean = True

    with Brokers(options.provider) as brokers:
        for name in options.servers:
            server = brokers.server(name.removesuffix(QUORUM))
            url = f"{server.url}?durability=machine" if name.endswith(QUORUM) else server.url
            folder = Path(tempfile.mkdtemp(prefix="kills-"))
            began = time.monotonic()
            ledger = asyncio.run(campaign(url, load, folder))
            clean = clean and ledger.clean
            took = f"{len(ledger.kills)} kills in {time.monotonic() - began:.0f} s"
            verdict = "clean" if ledger.clean else f"NOT CLEAN, see {folder}"
            print(f"{name} ({server.title}): {took}, {summary(ledger)}; {verdict}", flush=True)

    return int(not clean)


if __name__ == "__main__":
    sys.exit(main())
