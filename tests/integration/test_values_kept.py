"""G17: what a publish accepts is read as it was given, through routers, batches and replies."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic import BaseModel, Field, SecretStr
from support.faulty import Faults

from mqcore import Broker, Queue, RemoteError, RetryPolicy, Router, ValidationError

SECRET = "hunter2"


class Account(BaseModel):
    name: str = "ann"
    password: SecretStr = SecretStr("")


class Admin(Account):
    rights: int = 7


class Renamed(BaseModel):
    number: int = Field(default=0, serialization_alias="No")


accounts = Queue("accounts", Account)
renamed = Queue("renamed", Renamed)
router = Router("people", Account).bind(accounts, "#")
Publish = Callable[[Broker, Any], Awaitable[Any]]
WAYS: dict[str, Publish] = {
    "publish": lambda broker, value: broker.publish(accounts, value),
    "publish_many": lambda broker, value: broker.publish_many(accounts, [Account(), value]),
    "a router": lambda broker, value: broker.publish(router, value, key="x"),
    "a batch to a router": lambda broker, value: broker.publish_many(router, [value], key="x"),
    "a producer": lambda broker, value: broker.producer(accounts).publish(value),
    "a request": lambda broker, value: broker.request(accounts, value),
    "a bare name": lambda broker, value: broker.publish("accounts", [value]),
}


@pytest.mark.parametrize("publish", WAYS.values(), ids=WAYS)
async def test_a_value_that_would_arrive_as_another_is_not_sent_on_any_way(
    faulty: Broker, faults: Faults, publish: Publish
) -> None:
    with pytest.raises(
        ValidationError, match=r"password: a SecretStr is written as asterisks"
    ) as caught:
        await publish(faulty, Account(password=SecretStr(SECRET)))
    assert SECRET not in str(caught.value)
    assert faults.calls["publish"] == 0


@pytest.mark.parametrize("publish", [WAYS[name] for name in list(WAYS)[:-1]], ids=list(WAYS)[:-1])
async def test_a_subclass_is_not_sent_in_place_of_the_queues_type(
    faulty: Broker, faults: Faults, publish: Publish
) -> None:
    with pytest.raises(ValidationError, match=r"the consumer gets Account in place of Admin"):
        await publish(faulty, Admin())
    assert faults.calls["publish"] == 0


@pytest.mark.parametrize(
    "value", [Renamed(number=5), Account(password=SecretStr(SECRET)), [SecretStr(SECRET)]], ids=repr
)
@pytest.mark.parametrize("blocking", [False, True])
async def test_a_reply_that_would_arrive_as_another_is_a_failure_with_place_and_reason(
    broker: Broker, serve: Any, value: Any, blocking: Any
) -> None:
    async def handler(_: Renamed) -> Any:
        return value

    def blocking_handler(_: Renamed) -> Any:
        return value

    async with serve(renamed, blocking_handler if blocking else handler, retry=RetryPolicy(1)):
        with pytest.raises(RemoteError) as caught:
            await broker.request(renamed, Renamed())
    assert caught.value.type == "mqcore.errors.ValidationError"
    assert "is written as" in caught.value.text
    assert SECRET not in caught.value.text
