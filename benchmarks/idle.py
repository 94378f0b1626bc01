"""What an idle worker on 20 queues costs: CPU of its process, and statements a second.

    python benchmarks/idle.py [--only sqlite] [--queues 20] [--seconds 20]

The worker has waited for 25 s before the measurement begins: until then it looks after what it has
written while it started.
"""

import argparse
import asyncio
import time
from tempfile import TemporaryDirectory
from typing import Any

from mqcore import App, Queue, Worker
from mqcore.contract.brokers import Brokers
from mqcore.spi import new_id
from mqcore_sql.database import Database
from mqcore_sql.postgres import PostgresDatabase
from mqcore_sql.sqlite import SqliteDatabase

SETTLING = 25.0


async def measure(url: str, queues: int, seconds: float) -> tuple[float, float]:
    """Return the share of a core, and the statements a second."""
    app, sent = App("idle"), Counter()
    for number in range(queues):
        queue: Queue[Any] = Queue(f"idle.{new_id()[:8]}.{number}", dict)

        @app.consumer(queue)
        async def handle(payload: dict[str, Any]) -> None:
            raise AssertionError

    async with app.connect(url) as broker, Worker(app, broker):
        await asyncio.sleep(SETTLING)
        began, cpu, before = time.perf_counter(), time.process_time(), sent.count
        await asyncio.sleep(seconds)
        taken = time.perf_counter() - began
        return (time.process_time() - cpu) / taken, (sent.count - before) / taken


class Counter:
    """Counts what the plugin sends to a database."""

    def __init__(self) -> None:
        self.count = 0
        for database in (SqliteDatabase, PostgresDatabase):
            for name in ("query", "change"):
                setattr(database, name, self._counting(getattr(database, name)))

    def _counting(self, method: Any) -> Any:
        def counted(database: Database, statement: str, **values: Any) -> Any:
            self.count += 1
            return method(database, statement, **values)

        return counted


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=("sqlite", "postgresql"), action="append")
    parser.add_argument("--queues", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()

    with Brokers("local") as brokers, TemporaryDirectory() as folder:
        for kind in options.only or ("sqlite", "postgresql"):
            is_file = kind == "sqlite"
            url = f"sqlite:///{folder}/mqcore.db" if is_file else brokers.server(kind).url
            share, rate = asyncio.run(measure(url, options.queues, options.seconds))
            print(f"{kind:10} {100 * share:5.2f} % of a core, {rate:5.2f} statements a second")


if __name__ == "__main__":
    main()
