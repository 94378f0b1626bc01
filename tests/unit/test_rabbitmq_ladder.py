"""The arithmetic of delays: never shorter than asked, near enough, and few hops."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqcore_rabbitmq.ladder import COUNT, LONGEST, UNIT, exit_to, ladder_for, rounded, rungs, way
from mqcore_rabbitmq.layout import Server


@given(st.floats(min_value=0.001, max_value=LONGEST))
def test_a_delay_is_never_shortened_and_hardly_lengthened(delay: float) -> None:
    waits = rounded(delay) * UNIT
    assert waits >= delay - 1e-6
    assert (
        waits - delay <= max(2 * UNIT, delay * 0.008)
        if delay < 60
        else waits - delay <= delay * 0.01
    )


@given(st.floats(min_value=0.001, max_value=LONGEST))
def test_the_way_waits_as_long_as_it_says(delay: float) -> None:
    key = way(delay, "orders.placed")
    bits = key.split(".")[:COUNT]
    assert key.removeprefix(".".join(bits)) == ".orders.placed"
    assert sum(2 ** (COUNT - 1 - at) for at, bit in enumerate(bits) if bit == "1") == rounded(delay)
    highest = [
        it.queue
        for it in rungs("mq.delay")
        if it.NAME == "Queue.Bind"
        and it.exchange == "mq.delay.in"
        and key.startswith(it.routing_key[:-1])
    ]
    assert highest == [f"mq.delay.{COUNT - 1 - bits.index('1'):02}"]


@pytest.mark.parametrize(("delay", "hops"), [(1.0, 1), (2.0, 1), (60.0, 4), (300.0, 4)])
def test_round_delays_take_few_hops(delay: float, hops: int) -> None:
    assert way(delay, "q").split(".")[:COUNT].count("1") == hops


def test_the_longest_delay_fits_the_ladder() -> None:
    assert rounded(LONGEST) < 2**COUNT


@pytest.mark.parametrize("length", [1, 201, 202, 206])
def test_the_key_says_what_the_exit_is_bound_to_however_long_the_name(length: int) -> None:
    for name in ("q" * length, "ü" * (length // 2)):
        key = way(1.0, name)
        assert len(key.encode()) <= 255
        assert key.split(".", COUNT)[COUNT] == exit_to(name).routing_key.split(".", COUNT)[COUNT]


@pytest.mark.parametrize(
    ("version", "level", "prefix"),
    [
        ("3.10.8", 9, "mq.delay"),
        ("4.0.5", 4, "mq.delay"),
        ("4.0.5", 5, "mq.delay.high"),
        ("4.2.1", 10, "mq.delay.high"),
        ("4.3.0", 7, "mq.delay.p7"),
        ("4.0.5", None, "mq.delay"),
    ],
)
def test_messages_whose_priority_a_level_would_sort_by_do_not_share_one(
    version: str, level: int | None, prefix: str
) -> None:
    assert ladder_for(Server("RabbitMQ", version), level) == prefix


def test_a_ladder_is_declared_from_its_exchanges_to_a_queue_that_is_never_used() -> None:
    requests = rungs("mq.delay")
    queues = [it.queue for it in requests if it.NAME == "Queue.Declare"]
    assert queues == [
        "mq.lost",
        *(f"mq.delay.{level:02}" for level in range(COUNT)),
        "mq.delay.end",
    ]
    assert requests[-1].queue == "mq.delay.end"
    assert sum(it.NAME == "Exchange.Declare" for it in requests) == COUNT + 3
