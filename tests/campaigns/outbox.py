"""Transactions under random kills: exactly what was committed must arrive.

    python tests/campaigns/outbox.py sqlite postgresql-15 --brokers same redis-7 rabbitmq-3

Writers commit transactions with one to three messages each, and roll a third of them back. Writers,
workers and relays are killed and started again all the time. The application's own table says what
was committed. It prints one row for each pair of database and broker, and ends with 1 when a row is
not clean.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.databases import AppDatabase
from support.outbox_campaign import Load, campaign

from mqcore.contract.brokers import Brokers
from mqcore.messages.message import new_id


def main() -> int:
    """Run it on each pair, and print a row for each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("databases", nargs="+", help="sqlite, or of the catalogue: postgresql-15")
    parser.add_argument(
        "--brokers",
        nargs="+",
        default=["same"],
        help="same, or of the catalogue: redis-7, rabbitmq-3",
    )
    parser.add_argument("--transactions", type=int, default=10_000)
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two kills")
    parser.add_argument("--limit", type=float, default=900.0, help="seconds for each pair")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--provider", default="auto")
    options = parser.parse_args()
    load = Load(options.transactions, options.kills, options.pause, options.limit, options.seed)
    clean = True

    with Brokers(options.provider) as brokers:
        for product in options.databases:
            for name in options.brokers:
                folder = Path(tempfile.mkdtemp(prefix="outbox-"))
                if product == "sqlite":
                    database = AppDatabase("sqlite", str(folder / "app.db"))
                else:
                    place = brokers.server(product).url.partition("://")[2]
                    database = AppDatabase("postgresql", place, f"t{new_id()[:8]}")
                url = database.url if name == "same" else brokers.server(name).url
                outbox = None if name == "same" else database.url
                outcome = asyncio.run(campaign(database, url, outbox, load, folder))
                clean = clean and outcome.is_clean
                verdict = "clean" if outcome.is_clean else f"NOT CLEAN, see {folder}"
                print(f"{product}, broker {name}: {outcome}; {verdict}", flush=True)

    return int(not clean)


if __name__ == "__main__":
    sys.exit(main())
