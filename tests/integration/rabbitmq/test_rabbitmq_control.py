"""Commands to workers on RabbitMQ. With quorum queues only workers that are named get them."""

from __future__ import annotations

import pytest
from support.controlled import check_all, check_chosen

from mqcore import Broker, Settings, UnsupportedFeature
from mqcore.control.client import Control


async def test_all_workers_and_chosen_ones_answer(rabbitmq_url: str) -> None:
    await check_all(rabbitmq_url)
    await check_chosen(rabbitmq_url)


async def test_with_quorum_queues_chosen_workers_answer(rabbitmq_url: str) -> None:
    url = f"{rabbitmq_url}?durability=machine"
    await check_chosen(url)
    async with Broker.connect(url, settings=Settings()) as broker, Control(broker) as control:
        with pytest.raises(UnsupportedFeature, match="with quorum queues"):
            await control.send("ping")
