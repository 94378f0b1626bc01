"""Commands to workers on RabbitMQ, with classic and with quorum queues."""

from __future__ import annotations

import pytest
from support.controlled import check_all, check_chosen


@pytest.mark.parametrize("durability", ["process", "machine"])
async def test_all_workers_and_chosen_ones_answer(rabbitmq_url: str, durability: str) -> None:
    url = f"{rabbitmq_url}?durability={durability}"
    await check_all(url)
    await check_chosen(url)
