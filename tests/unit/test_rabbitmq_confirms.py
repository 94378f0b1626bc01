"""Confirms, returns and acknowledgements, on a channel that records what it sends."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from pika import spec
from pika.exceptions import ChannelClosedByBroker, ShortStringTooLong

from mqcore.spi import STORED, ConnectionLost, ErrorKind, Failed, Unknown
from mqcore_rabbitmq.confirms import ConfirmChannel, PlannedMessage
from mqcore_rabbitmq.frames import Properties
from mqcore_rabbitmq.unsettled import HeldMessage, Unsettled, read_receipt


class FakeChannel:
    serial = 7

    def __init__(self) -> None:
        self.closed: BaseException | None = None
        self.on_closed: list[Callable[[BaseException], None]] = []
        self.sent: list[Any] = []
        self.asked: list[asyncio.Future[Any]] = []
        self.published: list[str] = []

    @property
    def closed_reason(self) -> BaseException | None:
        return self.closed

    def publish(self, exchange: str, key: str, properties: Properties, body: bytes) -> None:
        self.published.append(f"{exchange}/{key}")

    def send(self, method: Any) -> None:
        self.sent.append(method)

    def flush(self) -> None:
        pass

    def request(self, _: Any) -> asyncio.Future[Any]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return self.asked[-1]

    def confirm(
        self, confirmed: Callable[..., None], returned: Callable[..., None]
    ) -> asyncio.Future[Any]:
        self.confirmed, self.returned = confirmed, returned
        return asyncio.get_running_loop().create_future()

    def says(self, kind: type, tag: int, *, multiple: bool = False) -> None:
        self.confirmed(tag, multiple, kind is spec.Basic.Ack)

    def returns(self, name: str, key: str = "q", exchange: str = "") -> None:
        method = SimpleNamespace(exchange=exchange, routing_key=key)
        self.returned(method, Properties(message_id=name), b"")


def sending(name: str, key: str = "q", *, exchange: str = "", refusal: str = "") -> PlannedMessage:
    return PlannedMessage(exchange, key, Properties(message_id=name), b"", key, refusal)


async def started(
    channel: FakeChannel, *batch: PlannedMessage, timeout: float = 5.0
) -> asyncio.Task[list[Any]]:
    task = asyncio.create_task(ConfirmChannel(channel).publish(batch, timeout))  # type: ignore[arg-type]  # the fake
    await asyncio.sleep(0)
    return task


async def test_each_item_gets_its_own_outcome() -> None:
    channel = FakeChannel()
    task = await started(
        channel, sending("a"), sending("b", "nowhere"), sending("c", refusal="full"), sending("d")
    )
    channel.returns("b", "nowhere")
    channel.says(spec.Basic.Ack, 2, multiple=True)
    channel.says(spec.Basic.Nack, 3)
    channel.says(spec.Basic.Ack, 4)
    a, b, c, d = await task
    assert (a, d) == (STORED, STORED)
    assert (b.kind, "'nowhere'" in b.text) == (ErrorKind.NOT_FOUND, True)
    assert (c.kind, "max_length" in c.text) == (ErrorKind.FULL, True)


async def test_a_return_is_the_first_that_fits_and_only_that() -> None:
    channel = FakeChannel()
    task = await started(channel, sending("a", "x"), sending("a", "y"), sending("a", "y"))
    channel.returns("a", "y")
    channel.says(spec.Basic.Ack, 3, multiple=True)
    assert [type(outcome) for outcome in await task] == [type(STORED), Failed, type(STORED)]


async def test_a_returned_route_names_the_key_that_no_binding_takes() -> None:
    channel = FakeChannel()
    task = await started(channel, sending("a", "order.plced", exchange="shop", refusal="route"))
    channel.returns("a", "order.plced", "shop")
    channel.says(spec.Basic.Ack, 1)
    [outcome] = await task
    assert isinstance(outcome, Failed)
    assert outcome.kind is ErrorKind.NOT_FOUND
    assert "takes key 'order.plced'" in outcome.text


async def test_a_refused_route_is_unknown() -> None:
    channel = FakeChannel()
    task = await started(channel, sending("a", exchange="shop", refusal="route"))
    channel.says(spec.Basic.Nack, 1)
    assert [type(outcome) for outcome in await task] == [Unknown]


async def test_what_has_no_answer_by_its_deadline_is_unknown_and_may_still_be_confirmed() -> None:
    channel = FakeChannel()
    confirms = ConfirmChannel(channel)  # type: ignore[arg-type]  # the fake
    long = asyncio.create_task(confirms.publish([sending("long")], 5.0))
    short = asyncio.create_task(confirms.publish([sending("one"), sending("two")], 0.05))
    await asyncio.sleep(0)
    channel.says(spec.Basic.Ack, 2)
    one, two = await short
    assert (one, type(two)) == (STORED, Unknown)
    channel.says(spec.Basic.Ack, 3)
    channel.says(spec.Basic.Ack, 1)
    assert await long == [STORED]


async def test_a_closed_channel_makes_the_rest_unknown() -> None:
    channel = FakeChannel()
    task = await started(channel, sending("a"), sending("b"))
    channel.says(spec.Basic.Ack, 1)
    channel.closed = ConnectionError("gone")
    channel.on_closed[0](channel.closed)
    assert [type(outcome) for outcome in await task] == [type(STORED), Unknown]
    with pytest.raises(ConnectionLost):
        await ConfirmChannel(channel).publish([sending("c")], 1.0)  # type: ignore[arg-type]  # the fake


def gone_exchange() -> ChannelClosedByBroker:
    return ChannelClosedByBroker(404, "NOT_FOUND - no exchange 'gone' in vhost '/'")


async def test_a_missing_exchange_stores_nothing_of_a_batch_that_was_not_read() -> None:
    channel = FakeChannel()
    batch = [
        sending("a", exchange="one"),
        sending("b", exchange="gone"),
        sending("c", exchange="one"),
    ]
    task = await started(channel, *batch)
    channel.asked[0].set_result(None)
    channel.on_closed[0](gone_exchange())
    kinds = [outcome.kind for outcome in await task]
    assert kinds == [ErrorKind.TRANSIENT, ErrorKind.NOT_FOUND, ErrorKind.TRANSIENT]


async def test_an_exchange_that_goes_after_the_broker_has_seen_it_leaves_the_rest_unknown() -> None:
    channel = FakeChannel()
    task = await started(channel, sending("a", exchange="gone"), sending("b", exchange="gone"))
    channel.asked[0].set_result(None)
    channel.on_closed[0](gone_exchange())
    assert [type(outcome) for outcome in await task] == [Unknown, Unknown]


def filled(channel: FakeChannel, tags: int) -> Unsettled:
    found = Unsettled(channel, b"gen1")  # type: ignore[arg-type]  # the fake
    for tag in range(1, tags + 1):
        found.add(HeldMessage("q", spec.Basic.Deliver(delivery_tag=tag), Properties(), b""))
        found.receipt(found.held[tag])
    return found


async def test_a_slow_first_holds_back_one_credit_and_not_all() -> None:
    channel = FakeChannel()
    unsettled = filled(channel, 6)
    for tag in (5, 2, 3):
        unsettled.ack(unsettled.held[tag])
    await asyncio.sleep(0)
    assert [(ack.delivery_tag, ack.multiple) for ack in channel.sent] == [
        (2, False),
        (3, False),
        (5, False),
    ]
    channel.sent.clear()
    for tag in (1, 4):
        unsettled.ack(unsettled.held[tag])
    await asyncio.sleep(0)
    assert [(ack.delivery_tag, ack.multiple) for ack in channel.sent] == [(4, True)]
    assert unsettled.out == 1


async def test_acks_of_one_turn_go_together_and_never_past_an_open_one() -> None:
    channel = FakeChannel()
    unsettled = filled(channel, 5)
    for tag in (1, 2, 4):
        unsettled.ack(unsettled.held[tag])
    await asyncio.sleep(0)
    assert [(ack.delivery_tag, ack.multiple) for ack in channel.sent] == [(2, True), (4, False)]


async def test_a_receipt_is_small_and_of_one_generation() -> None:
    unsettled = filled(FakeChannel(), 1)
    receipt = unsettled.receipt(unsettled.held[1])
    assert len(receipt) <= 64
    assert read_receipt(receipt, b"gen1") == (7, 1)
    assert read_receipt(receipt, b"gen2") == read_receipt(b"forged", b"gen1") == (0, 0)


async def test_what_is_open_is_never_acknowledged_with_the_others() -> None:
    """An ack that is too wide would remove a source whose successor is not stored."""
    channel = FakeChannel()
    unsettled = filled(channel, 8)
    for tag in (8, 3, 1, 6, 2):
        unsettled.ack(unsettled.held[tag])
        await asyncio.sleep(0)
    covered = set[int]()
    for ack in channel.sent:
        covered |= set(range(1, ack.delivery_tag + 1)) if ack.multiple else {ack.delivery_tag}
    assert covered == {1, 2, 3, 6, 8}


async def test_acknowledgements_are_written_before_the_rest_is_dropped() -> None:
    """A cancelled consumer must not acknowledge open messages of other bands."""
    channel = FakeChannel()
    unsettled = filled(channel, 5)
    for tag in (2, 4):
        unsettled.ack(unsettled.held[tag])
    unsettled.drop_all()
    await asyncio.sleep(0)
    assert [(ack.delivery_tag, ack.multiple) for ack in channel.sent] == [(2, False), (4, False)]


async def test_what_cannot_be_written_takes_no_number() -> None:
    channel = FakeChannel()
    written = channel.publish

    def publish(exchange: str, key: str, properties: Properties, body: bytes) -> None:
        if properties.message_id == "bad":
            raise ShortStringTooLong("x")
        written(exchange, key, properties, body)

    channel.publish = publish  # type: ignore[method-assign]  # as pika, which refuses to write it
    confirms = ConfirmChannel(channel)  # type: ignore[arg-type]  # a channel that only writes down
    call = asyncio.ensure_future(confirms.publish([sending("a"), sending("bad"), sending("b")], 5))
    await asyncio.sleep(0)
    after = asyncio.ensure_future(confirms.publish([sending("c")], 0.05))
    await asyncio.sleep(0)
    channel.says(spec.Basic.Ack, 2, multiple=True)
    first, second, third = await call
    assert (first, third) == (STORED, STORED)
    assert isinstance(second, Failed)
    assert second.kind is ErrorKind.PERMANENT
    assert isinstance((await after)[0], Unknown)


async def test_a_fault_while_writing_leaves_the_batch_unknown_and_closes_the_channel() -> None:
    """Parts of it may be sent (G1), and the number of the next message is unknown."""
    channel = FakeChannel()
    written, abandoned = channel.publish, asyncio.Event()

    def publish(exchange: str, key: str, properties: Properties, body: bytes) -> None:
        written(exchange, key, properties, body)
        if properties.message_id == "b":
            raise RuntimeError("the event loop is closed")

    channel.publish = publish  # type: ignore[method-assign]  # it writes, and fails then
    channel.abandon = abandoned.set  # type: ignore[attr-defined]  # what the real channel has
    confirms = ConfirmChannel(channel)  # type: ignore[arg-type]  # a channel that only writes down
    call = asyncio.ensure_future(confirms.publish([sending("a"), sending("b"), sending("c")], 5))
    await asyncio.sleep(0)
    channel.says(spec.Basic.Ack, 1)
    outcomes = await call

    assert [type(outcome) for outcome in outcomes] == [type(STORED), Unknown, Unknown]
    assert abandoned.is_set()
    assert channel.published == ["/q", "/q"], "what comes after it is not written"
