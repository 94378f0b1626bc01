"""The option types: an application can name them, build them, and pass them on with `**`.

See `publishing.py` for how these files are read.
"""

from datetime import timedelta
from typing import Unpack, assert_type

from mqcore import (
    AlterOptions,
    App,
    BatchOptions,
    Broker,
    ConnectOptions,
    ConsumerOptions,
    DeadLetter,
    DeadLetterFilter,
    PublishOptions,
    Queue,
    QueueOptions,
    Receipt,
    Received,
    Redriven,
    RetryPolicy,
    Worker,
    WorkerOptions,
)

orders = Queue("orders", str)
app = App("shop")


async def of_a_publish(broker: Broker, **options: Unpack[PublishOptions]) -> None:
    urgent: PublishOptions = {**options, "priority": 8, "ttl": timedelta(minutes=5)}
    assert_type(await broker.publish(orders, "a", **urgent), Receipt)

    wrong: PublishOptions = {"piority": 8}  # type: ignore[typeddict-unknown-key]  # a typo
    await broker.publish(orders, "a", **wrong)


def of_a_queue() -> None:
    short: QueueOptions = {"ttl": 60, "max_length": 100, "overflow": "reject"}
    assert_type(Queue("orders", str, **short), Queue[str])

    wrong: QueueOptions = {"overflow": "drop"}  # type: ignore[typeddict-item]  # not a mode
    Queue("orders", str, **wrong)


def of_a_connection() -> None:
    strict: ConnectOptions = {"durability": "machine", "queues": [orders]}
    assert_type(Broker.connect("memory://", **strict), Broker)
    assert_type(app.connect(**strict), Broker)


def of_a_consumer() -> None:
    slow: ConsumerOptions = {"timeout": None, "retry": RetryPolicy(max_attempts=5)}

    @app.consumer(orders, **slow)
    async def handle(text: str) -> None: ...

    patient: BatchOptions = {"linger": 1.0}

    @app.consumer(Queue("lines", str), batch=10, **patient)
    async def handle_all(lines: list[Received[str]]) -> None: ...

    wrong: BatchOptions = {"process": True}  # type: ignore[typeddict-unknown-key]  # not for batches
    assert wrong


def of_a_worker(broker: Broker) -> None:
    small: WorkerOptions = {"concurrency": 1, "grace": 5}
    assert_type(Worker(app, broker, **small), Worker)

    wrong: WorkerOptions = {"grace": "soon"}  # type: ignore[typeddict-item]  # seconds
    assert wrong


async def of_an_operator(broker: Broker) -> None:
    longer: AlterOptions = {"ttl": None, "retention": timedelta(days=7)}
    await broker.alter(orders, **longer)

    recent: DeadLetterFilter = {"reason": "timeout", "after": 1_700_000_000.0}
    letters = broker.dead_letters(orders)
    assert_type(await letters.list(10, **recent), list[DeadLetter])
    assert_type(await letters.redrive(**recent), Redriven)
    assert_type(await letters.purge(**recent), int)
