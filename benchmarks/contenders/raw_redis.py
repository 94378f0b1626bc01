"""The raw client of Redis: redis-py on a stream, 100 messages a read, pipelined, no decoding."""

import time

import redis
from common import BODY, WINDOW, Job, run


def _group(job: Job) -> "redis.Redis":
    """Connect and make the consumer group."""
    client = redis.Redis.from_url(job.url)
    client.xgroup_create(job.queue, "bench", "0", mkstream=True)
    return client


def one_by_one(job: Job) -> None:
    """Add, and wait for each answer."""
    client = redis.Redis.from_url(job.url)
    client.ping()
    job.start()
    for _ in range(job.count):
        client.xadd(job.queue, {"body": BODY})
    job.stop()


def _fill(client: "redis.Redis", job: Job) -> None:
    for start in range(0, job.count, WINDOW):
        pipe = client.pipeline(transaction=False)
        for _ in range(min(WINDOW, job.count - start)):
            pipe.xadd(job.queue, {"body": BODY})
        pipe.execute()


def bulk(job: Job) -> None:
    """Add in pipelines."""
    client = redis.Redis.from_url(job.url)
    client.ping()
    job.start()
    _fill(client, job)
    job.stop()


def drain(job: Job) -> None:
    """Read 100 at a time; the acknowledgements go with the next read."""
    client = _group(job)
    _fill(client, job)
    job.start()
    done: list[bytes] = []

    while job.handled < job.count:
        pipe = client.pipeline(transaction=False)
        if done:
            pipe.xack(job.queue, "bench", *done)
        pipe.xreadgroup("bench", "one", {job.queue: ">"}, count=100)
        [(_, entries)] = pipe.execute()[-1]
        done = [entry for entry, _ in entries]
        for _ in entries:
            job.count_one()


def latency(job: Job) -> None:
    """From add to read in one process, over a second connection that waits."""
    reader, writer = _group(job), redis.Redis.from_url(job.url)
    job.start()

    for _ in range(job.count):
        began = time.perf_counter()
        writer.xadd(job.queue, {"body": BODY})
        [(_, entries)] = reader.xreadgroup("bench", "one", {job.queue: ">"}, count=1, block=1000)
        job.latencies.append(time.perf_counter() - began)
        reader.xack(job.queue, "bench", entries[0][0])
        time.sleep(0.005)
    job.stop()


SCENARIOS = {"one by one": one_by_one, "bulk": bulk, "drain": drain, "latency": latency}

if __name__ == "__main__":
    run(SCENARIOS)
