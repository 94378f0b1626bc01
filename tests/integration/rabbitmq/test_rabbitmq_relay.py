"""A relay on RabbitMQ, which routes by itself and does not know the ids that it has stored."""

from __future__ import annotations

import uuid

from mqcore import Broker, Queue, Router, Settings
from mqcore.broker import session_of
from mqcore.messages.message import Message
from mqcore.publishing.destination import Forwarding
from mqcore.publishing.parcel import Parcel, enclose
from mqcore.publishing.relay import Relay, relay_specs
from mqcore.spi import Outgoing, Route
from mqcore.testing import memory_url

WAITING = "mq.waiting"


async def test_what_one_queue_of_a_router_refuses_is_not_sent_again_and_again(
    rabbitmq_url: str,
) -> None:
    name = f"relay-{uuid.uuid4().hex[:8]}"
    router = Router(f"{name}.events", bytes, kind="fanout")
    roomy, full = Queue(f"{name}.roomy", bytes), Queue(f"{name}.full", bytes, max_length=1)
    router.bind(roomy)
    router.bind(full)
    async with (
        Broker.connect(rabbitmq_url, settings=Settings(), routers=[router]) as broker,
        Broker.connect(memory_url(), settings=Settings()) as store,
    ):
        await broker.publish(full, b"first")
        source = session_of(store).connection
        await source.declare(relay_specs(WAITING))
        now = store.clock.now()
        outs = [
            Outgoing(Route(router.name), Message(id="routed", body=b"routed")),
            Outgoing(roomy.name, Message(id="plain", body=b"plain")),
        ]
        await source.publish([enclose(Parcel(out, now), WAITING) for out in outs], 5.0)
        await Relay(source, WAITING, Forwarding(session_of(broker).connection)).drain()

        (letter,) = await store.dead_letters(WAITING).list()
        assert letter.reason == "rejected"
        assert "a queue of its router refused it" in letter.error
        ids = [entry.message.id for entry in await broker.peek(roomy)]
        assert ids.count("routed") <= 1
        assert ids.count("plain") == 1
