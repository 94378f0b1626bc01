"""A broker that is opened in the wrong way says which is the right one."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from mqcore import Broker, ConfigurationError, Queue, ValidationError
from mqcore.testing import memory_url


class Photo(BaseModel):
    name: str


async def test_awaiting_a_broker_says_how_to_open_it() -> None:
    broker: Any = Broker.connect(memory_url())
    with pytest.raises(ConfigurationError, match=r"async with Broker\.connect"):
        await broker


def test_a_plain_with_names_the_blocking_broker() -> None:
    broker: Any = Broker.connect(memory_url())
    with pytest.raises(ConfigurationError, match=r"mqcore\.sync\.Broker"), broker:
        pass


@pytest.mark.parametrize("value", [{"name": "cat.jpg"}, {"name": 1}])
async def test_a_dict_in_place_of_a_model_is_told_as_that(value: dict[str, Any]) -> None:
    async with Broker.connect(memory_url()) as broker:
        photos: Queue[Any] = Queue("photos", Photo)
        with pytest.raises(ValidationError, match=r"a Photo, not a dict: give Photo\(\*\*"):
            await broker.publish(photos, value)
