"""Which queues of the broker make one of ours, and what is compared when one is declared again."""

from __future__ import annotations

import pytest

from mqcore.spi import Durability, QueueSpec, TopologyMismatch
from mqcore_rabbitmq.layout import Layout, Server, compare

OLD, NEW = Server("RabbitMQ", "3.10.8"), Server("RabbitMQ", "4.0.5")


def test_a_classic_queue_is_one_that_sorts() -> None:
    layout = Layout.of(QueueSpec(name="orders"), quorum=False, bands=11)
    assert layout.queues == ("orders",)
    assert layout.band(9) == "orders"
    assert layout.arguments("orders", OLD) == {"x-queue-type": "classic", "x-max-priority": 10}


def test_a_quorum_queue_is_one_for_each_level_and_plain_clients_find_the_default() -> None:
    layout = Layout.of(QueueSpec(name="orders"), quorum=True, bands=11)
    assert layout.queues[0] == layout.band(5) == "orders"
    assert set(layout.queues[1:]) == {f"orders.p{level}" for level in range(11) if level != 5}
    assert layout.descending == tuple(
        "orders" if it == 5 else f"orders.p{it}" for it in reversed(range(11))
    )
    for server in (OLD, NEW):
        assert layout.arguments("orders.p9", server)["x-queue-type"] == "quorum"
        assert layout.arguments("orders", server)["x-delivery-limit"] > 1_000_000


def test_three_bands_put_the_eleven_levels_into_three_queues() -> None:
    layout = Layout.of(QueueSpec(name="orders"), quorum=True, bands=3)
    assert [layout.band(level) for level in range(11)] == ["orders.p0"] * 4 + ["orders"] * 3 + [
        "orders.p10"
    ] * 4


@pytest.mark.parametrize("role", ["dead_letter", "quarantine", "temporary"])
def test_what_is_no_work_queue_is_one_queue(role: str) -> None:
    layout = Layout.of(QueueSpec(name="q", role=role), quorum=True, bands=11)  # type: ignore[arg-type]  # one of its words
    assert layout.queues == ("q",)
    assert layout.quorum == (role != "temporary")


def test_a_bounded_queue_has_a_private_one_for_what_may_not_be_refused() -> None:
    layout = Layout.of(QueueSpec(name="q", max_length=5), quorum=False, bands=11)
    assert layout.queues == ("q", "q.due")
    assert (layout.target(9, refusable=True), layout.target(9, refusable=False)) == ("q", "q.due")
    assert layout.arguments("q", OLD) | {
        "x-max-length": 5,
        "x-overflow": "reject-publish",
    } == layout.arguments("q", OLD)
    assert "x-max-length" not in layout.arguments("q.due", OLD)


def test_durability_chooses_the_type() -> None:
    asked = QueueSpec(name="q", durability=Durability.MACHINE)
    assert Layout.of(asked, quorum=False, bands=11).quorum
    assert not Layout.of(
        QueueSpec(name="q", durability=Durability.PROCESS), quorum=False, bands=11
    ).quorum


def test_the_registry_reads_what_it_wrote() -> None:
    spec = QueueSpec(
        name="q.dlq", role="dead_letter", ttl=2.5, max_length=7, dead_letter="x", retention=60.0
    )
    for layout in (
        Layout.of(spec, quorum=False, bands=11),
        Layout.of(QueueSpec(name="w"), quorum=True, bands=3),
    ):
        assert Layout.read(layout.record()) == layout


def test_a_mismatch_names_both_values() -> None:
    have, want = (
        Layout.of(QueueSpec(name="orders", ttl=ttl), quorum=False, bands=11) for ttl in (5.0, 6.0)
    )
    with pytest.raises(TopologyMismatch, match=r"'orders' exists with ttl=5\.0, .* ttl=6\.0"):
        compare(have, want)


def test_a_more_durable_queue_serves_and_a_less_durable_does_not() -> None:
    classic, quorum = (
        Layout.of(QueueSpec(name="q"), quorum=quorum, bands=11) for quorum in (False, True)
    )
    compare(quorum, classic)
    with pytest.raises(TopologyMismatch, match="classic queue"):
        compare(classic, quorum)


@pytest.mark.parametrize(
    ("version", "number"), [("3.10.8", (3, 10)), ("4.0", (4, 0)), ("5", (5, 0)), ("odd", (0, 0))]
)
def test_versions_are_read(version: str, number: tuple[int, int]) -> None:
    assert Server("RabbitMQ", version).number == number
