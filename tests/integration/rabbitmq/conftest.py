"""An open instance of the driver, classic queues."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mqcore.spi import new_id
from mqcore_rabbitmq import RabbitBackend, RabbitOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
async def backend(rabbitmq_url: str) -> AsyncIterator[RabbitBackend]:
    backend = RabbitBackend(rabbitmq_url, RabbitOptions())
    await backend.open(lambda _: None)
    yield backend
    await backend.close()


@pytest.fixture
def name() -> str:
    return f"t.{new_id()[:12]}"
