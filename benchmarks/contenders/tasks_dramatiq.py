"""Tasks of Dramatiq with Redis as broker and result backend."""

import os
import time

import dramatiq
from contenders.task_client import serve
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

URL = os.environ["BENCH_REDIS"]
broker = RedisBroker(url=URL)
broker.add_middleware(Results(backend=RedisBackend(url=URL)))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)
def add(x: int, y: int) -> int:
    """Add."""
    return x + y


def work() -> None:
    """Run a worker until it is terminated."""
    worker = dramatiq.Worker(broker, worker_threads=8)
    worker.start()
    while True:
        time.sleep(1)


def send_and_read(count: int) -> int:
    """Send tasks, then read their results."""
    sent = [add.send(number, 1) for number in range(count)]
    return sum(message.get_result(block=True, timeout=120_000) for message in sent)


def no_chord(_size: int) -> int:
    """There are none: `group` has callbacks, but no results for them."""
    raise NotImplementedError


if __name__ == "__main__":
    serve(work, send_and_read, no_chord)
