"""The memory backend: URLs, clocks, threads and loops, and the cost of waiting."""

import asyncio
import itertools
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pluggy
import pytest
from pydantic import ValidationError

import mqcore_memory
from mqcore.spi import (
    STORED,
    Ack,
    Backend,
    ConfigurationError,
    Delivery,
    Message,
    Options,
    Outgoing,
    QueueSpec,
    Subscription,
    SystemClock,
)
from mqcore.testing import VirtualClock, memory_url
from mqcore_memory import MemoryBackend, MemoryOptions
from mqcore_memory.backend import MemorySubscription
from mqcore_memory.store import MemoryStore


async def opened(url: str, **options: object) -> MemoryBackend:
    backend = MemoryBackend(url, MemoryOptions.model_validate(options))
    await backend.open(lambda error: pytest.fail(f"memory cannot be lost: {error}"))
    return backend


async def publish(backend: Backend, *names: str) -> None:
    batch = [Outgoing("q", Message(id=name, body=b"")) for name in names]
    assert await backend.publish(batch, timeout=1.0) == [STORED] * len(names)


# Registration, options, URLs


def test_it_registers_by_its_hook() -> None:
    manager = pluggy.PluginManager("mqcore")
    manager.register(mqcore_memory)
    assert mqcore_memory.mqcore_register_backends() == [MemoryBackend]
    assert (MemoryBackend.scheme, MemoryBackend.local, MemoryBackend.Options) == (
        "memory",
        True,
        MemoryOptions,
    )


def test_options_are_read_from_text_and_refused_when_unknown_or_absurd() -> None:
    options = MemoryOptions.model_validate(
        {"dedup_window": "60", "dedup_size": "5", "max_delay": "3.5"}
    )
    assert (options.dedup_window, options.dedup_size, options.max_delay) == (60.0, 5, 3.5)
    for wrong in ({"windw": 1}, {"dedup_window": 0}, {"dedup_size": -1}, {"max_delay": 1e12}):
        with pytest.raises(ValidationError):
            MemoryOptions.model_validate(wrong)


def test_options_of_another_backend_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="MemoryOptions"):
        MemoryBackend("memory://", Options())


async def test_the_limits_are_those_of_the_options() -> None:
    backend = await opened(memory_url(), dedup_window=60.0, dedup_size=5, max_delay=3.5)
    limits = {
        name.value: dict(support.limits)
        for name, support in (await backend.open(print)).supports.items()
    }
    assert limits["dedup"] == {"window": 60.0, "size": 5}
    assert limits["delay"]["max"] == 3.5
    await backend.close()


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("memory://", "memory://default", True),
        ("memory://", "memory://?dedup_size=1000000", True),
        ("memory://Shop/a", "memory://Shop/a/", True),
        ("memory://Shop", "memory://shop", False),
        ("memory://shop/a", "memory://shop/b", False),
    ],
)
async def test_the_url_names_the_store(one: str, other: str, same: bool) -> None:  # noqa: FBT001 - a parameter of the cases
    first, second = await opened(one), await opened(other)
    assert (first._store is second._store) == same
    await first.close()
    await second.close()


async def test_a_url_with_a_password_is_refused_and_the_password_not_shown() -> None:
    with pytest.raises(ConfigurationError, match="no users") as caught:
        MemoryBackend("memory://me:secret@shop", MemoryOptions())
    assert "secret" not in str(caught.value)


async def test_a_store_outlives_its_backends() -> None:
    url = memory_url()
    first = await opened(url)
    await first.declare([QueueSpec(name="q")])
    await publish(first, "a")
    await first.close()
    second = await opened(url)
    assert [entry.message.id for entry in await second.browse("q", 10)] == ["a"]
    await second.close()


# Clocks


async def test_a_store_that_is_open_keeps_its_clock() -> None:
    url = memory_url()
    virtual = VirtualClock()
    first = await opened(url, clock=virtual)
    for other in (VirtualClock(), SystemClock()):
        with pytest.raises(ConfigurationError, match="under another clock"):
            await opened(url, clock=other)
    second = await opened(url, clock=virtual)
    await first.close()
    with pytest.raises(ConfigurationError, match="under another clock"):
        await opened(url, clock=VirtualClock())
    await second.close()


async def test_two_real_clocks_are_one() -> None:
    url = memory_url()
    first, second = await opened(url, clock=SystemClock()), await opened(url, clock=SystemClock())
    assert first._store is second._store
    await first.close()
    await second.close()


async def test_a_new_clock_finds_an_empty_store_when_nobody_has_the_old_one_open() -> None:
    url, first_clock = memory_url(), VirtualClock()
    first = await opened(url, clock=first_clock)
    await first.declare([QueueSpec(name="q")])
    await first.close()
    again = await opened(url, clock=first_clock)
    assert [counts.name for counts in await again.count()] == ["q"]
    await again.close()
    second = await opened(url, clock=VirtualClock())
    assert await second.count() == []
    await second.close()


async def test_two_ideas_of_the_dedup_window_are_refused() -> None:
    url = memory_url()
    first = await opened(url, dedup_window=5.0)
    with pytest.raises(ConfigurationError, match="dedup_window=5"):
        await opened(url)
    await first.close()


# What waiting costs


async def test_idle_consumers_do_nothing_all_day(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = VirtualClock()
    backend = await opened(memory_url(), clock=clock)
    await backend.declare([QueueSpec(name="q")])
    consumers = [await backend.subscribe("q", prefetch=1, lease=30.0) for _ in range(50)]

    async def work(consumer: Subscription) -> None:
        while deliveries := await consumer.receive(1, 1e9):
            await consumer.settle([Ack(delivery.receipt) for delivery in deliveries], timeout=1.0)

    waiting = [asyncio.create_task(work(consumer)) for consumer in consumers]
    await clock.settle()
    claims: list[float] = []
    claim = MemoryStore.claim

    def counted(*args: object, **options: object) -> list[Delivery]:
        claims.append(clock.monotonic())
        return claim(*args, **options)  # type: ignore[arg-type]  # passed on as it came

    monkeypatch.setattr(MemoryStore, "claim", counted)
    await clock.advance(86_400)
    assert claims == [], "nobody had a reason to look"
    await backend.publish([Outgoing("q", Message(id="a", body=b""), 10.0)], timeout=1.0)
    await clock.advance(5)
    await backend.publish([Outgoing("q", Message(id="b", body=b""))], timeout=1.0)
    await clock.advance(86_400)
    (counts,) = await backend.count(["q"])
    assert (counts.ready, counts.leased, counts.delayed, counts.settled) == (0, 0, 0, 2)
    assert len(claims) < 12, (
        f"two messages, one of them delayed, made 50 consumers claim {len(claims)} times"
    )
    await backend.close()
    await asyncio.gather(*waiting)


async def test_a_receive_without_an_end_waits_without_a_timer() -> None:
    clock = VirtualClock()
    backend = await opened(memory_url(), clock=clock)
    await backend.declare([QueueSpec(name="q")])
    consumer = await backend.subscribe("q", prefetch=1, lease=30.0)
    waiting = asyncio.create_task(consumer.receive(1, float("inf")))
    await clock.settle()
    assert clock._timers == []
    await publish(backend, "a")
    assert [it.message.id for it in await waiting] == ["a"]
    await backend.close()


async def test_a_consumer_that_always_finds_something_lets_others_run() -> None:
    backend = await opened(memory_url())
    await backend.declare([QueueSpec(name="q")])
    await publish(backend, "0")
    enough = asyncio.Event()

    async def feed_itself() -> None:
        consumer = await backend.subscribe("q", prefetch=1, lease=30.0)
        for turn in itertools.count(1):
            (delivery,) = await consumer.receive(1, 30.0)
            await consumer.settle([Ack(delivery.receipt)], timeout=1.0)
            await publish(backend, f"{turn}")
            if turn >= 10:
                enough.set()

    endless = asyncio.create_task(feed_itself())
    await enough.wait()
    endless.cancel()
    await asyncio.gather(endless, return_exceptions=True)
    await backend.close()


# Threads and loops


def in_own_loop(url: str, names: list[str], start: threading.Barrier) -> None:
    async def main() -> None:
        backend = await opened(url)
        start.wait()
        for name in names:
            await publish(backend, name)
        await backend.close()

    asyncio.run(main())


def consume_in_own_loop(url: str, start: threading.Barrier) -> list[str]:
    async def main() -> list[str]:
        backend = await opened(url)
        consumer = await backend.subscribe("q", prefetch=1, lease=600.0)
        seen: list[str] = []
        start.wait()
        while "stop" not in seen:
            (delivery,) = await consumer.receive(1, 30.0)
            seen.append(delivery.message.id.split("/")[0])
            await consumer.settle([Ack(delivery.receipt)], timeout=1.0)
        await backend.close()
        return seen

    return asyncio.run(main())


async def test_consumers_in_other_threads_are_woken_and_share_every_message_once() -> None:
    url = memory_url()
    backend = await opened(url)
    await backend.declare([QueueSpec(name="q")])
    start = threading.Barrier(5)
    names = [[f"{producer}-{n}" for n in range(300)] for producer in range(2)]
    with ThreadPoolExecutor(5) as pool:
        loop = asyncio.get_running_loop()
        consumers = [loop.run_in_executor(pool, consume_in_own_loop, url, start) for _ in range(3)]
        await asyncio.gather(
            *(loop.run_in_executor(pool, in_own_loop, url, part, start) for part in names)
        )
        for number in range(3):
            stop = Message(id=f"stop/{number}", body=b"", priority=0)
            assert await backend.publish([Outgoing("q", stop)], timeout=1.0) == [STORED]
        seen = await asyncio.gather(*consumers)
    found = Counter(name for part in seen for name in part)
    assert found == Counter([name for part in names for name in part] + ["stop"] * 3)
    await backend.close()


async def test_a_waiting_consumer_is_woken_from_another_thread() -> None:
    url = memory_url()
    backend = await opened(url)
    await backend.declare([QueueSpec(name="q")])
    consumer = await backend.subscribe("q", prefetch=10, lease=30.0)
    for turn in range(50):
        waiting = asyncio.create_task(consumer.receive(1, 30.0))
        await asyncio.sleep(0)
        await asyncio.to_thread(in_own_loop, url, [f"{turn}"], threading.Barrier(1))
        (delivery,) = await waiting
        assert delivery.message.id == f"{turn}"
        await consumer.settle([Ack(delivery.receipt)], timeout=1.0)
    await backend.close()


def test_a_consumer_whose_loop_died_holds_up_nobody() -> None:
    url = memory_url()

    async def abandon() -> MemoryBackend:
        backend = await opened(url)
        await backend.declare([QueueSpec(name="q")])
        consumer = await backend.subscribe("q", prefetch=10, lease=30.0)
        assert isinstance(consumer, MemorySubscription)
        assert backend._store.claim("q", consumer._holder, 1, 0.0, wait=True) == [], (
            "it waits, and its loop ends"
        )
        return backend

    async def go_on() -> list[str]:
        backend = await opened(url)
        consumer: Subscription = await backend.subscribe("q", prefetch=10, lease=30.0)
        waiting = asyncio.create_task(consumer.receive(1, 30.0))
        await asyncio.sleep(0)
        await publish(backend, "a")
        got = [it.message.id for it in await waiting]
        await backend.close()
        return got

    dead = asyncio.run(abandon())
    assert asyncio.run(go_on()) == ["a"]
    asyncio.run(dead.close())
