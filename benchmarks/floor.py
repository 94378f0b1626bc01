"""The floor that CI holds: what a message costs in mqcore beside the raw client, in one process.

    python benchmarks/floor.py

A row is the ratio of CPU times, so other load on the machine hardly counts; of all rounds, which
are interleaved, the best of either side. A limit is 1.7 to 1.9 times what was measured when it was
set: noise stays below it, and a cost that doubles does not.
"""

import asyncio
import inspect
import sys
import uuid
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "contenders"))

import ours
import raw_amqp
import raw_memory
import raw_redis
from common import Job, Scenario

from mqcore.contract.brokers import Brokers, BrokerUnavailable

ROUNDS = 7
RAW = {
    "memory": raw_memory.SCENARIOS,
    "redis": raw_redis.SCENARIOS,
    "rabbitmq": raw_amqp.SCENARIOS,
}
MESSAGES = {"one by one": 500, "bulk": 4000, "drain": 4000}
LIMITS = {
    ("memory", "one by one"): 23.0,
    ("memory", "bulk"): 8.0,
    ("memory", "drain"): 20.0,
    ("redis", "bulk"): 3.5,
    ("redis", "drain"): 27.0,
    ("rabbitmq", "bulk"): 3.4,
    ("rabbitmq", "drain"): 7.0,
}
"""How many times the raw client's CPU time a message may cost. `benchmarks/peers.py` measures.

Publishing one by one over a socket is not here: its CPU time is mostly that of switching between
processes, and doubles on a busy machine.
"""


def cost(scenario: Scenario, url: str, count: int) -> float:
    """Return the CPU time of a message, in microseconds."""
    job = Job(url, f"floor-{uuid.uuid4().hex[:12]}", count)
    running = scenario(job)
    if inspect.iscoroutine(running):
        asyncio.run(running)
    return job.cpu / count * 1e6


def compare(kind: str, scenario: str, url: str) -> tuple[float, float]:
    """Return what a message costs in mqcore and with the raw client."""
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS):
        for costs, contender in zip(found, (ours.SCENARIOS, RAW[kind]), strict=True):
            costs.append(cost(contender[scenario], url, MESSAGES[scenario]))
    return min(found[0]), min(found[1])


def main() -> int:
    """Print a line for each row; 1 when one is above its limit."""
    above = 0
    with Brokers("local") as brokers:
        for (kind, scenario), limit in LIMITS.items():
            try:
                url = "memory://" if kind == "memory" else brokers.server(kind).url
            except BrokerUnavailable as error:
                print(f"{kind}: {scenario}: not measured: {error}")
                continue

            mine, raw = compare(kind, scenario, url)
            above += mine > limit * raw
            verdict = "" if mine <= limit * raw else "   TOO SLOW"
            print(
                f"{kind:9} {scenario:11} {mine:7.1f} us a message, raw {raw:6.1f} us: "
                f"{mine / raw:5.1f} times, limit {limit:g}{verdict}",
                flush=True,
            )
    return int(above > 0)


if __name__ == "__main__":
    sys.exit(main())
