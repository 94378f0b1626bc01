"""The one way in: transforms undone in order, the body decoded, failures judged."""

from dataclasses import replace
from typing import Any

import pytest

from mqcore import DecodeError, Message, ValidationError
from mqcore.config.plugins import default_plugins
from mqcore.messages.codec import Payload
from mqcore.messages.delivery import Delivery
from mqcore.rules.inbound import Inbound
from mqcore.rules.retry import Ending, HandlerResult

CODECS = default_plugins().codecs(("json",))
NUMBER = Payload(int)
SENT = Message(
    id="a", body=b"7", content_type="application/json", reply_to="mq.reply.x", priority=9
)


def test_transforms_are_undone_in_the_order_given() -> None:
    def first(message: Message) -> Message:
        return replace(message, body=message.body + b"1")

    def second(message: Message) -> Message:
        return replace(message, body=message.body + b"2")

    assert Inbound(CODECS, [first, second]).undo(SENT).body == b"712"


def test_only_what_is_read_may_change() -> None:
    """The rest says how the stored message is settled and answered."""

    def changes(_: Message) -> Message:
        return Message(
            id="b",
            body=b"8",
            content_type="text/plain",
            encoding="gzip",
            headers={"a": "b"},
            attempt=5,
            hop=3,
        )

    read = {"body": b"8", "content_type": "text/plain", "encoding": "gzip", "headers": {"a": "b"}}
    assert Inbound(CODECS, [changes]).undo(SENT) == replace(SENT, **read)  # type: ignore[arg-type]  # by name


def test_without_transforms_the_delivery_is_the_same_object() -> None:
    delivery = Delivery(SENT, b"receipt")
    assert Inbound(CODECS).opened(delivery) is delivery


@pytest.mark.parametrize(
    ("returned", "text"),
    [(None, "AttributeError"), (replace(SENT, headers=5), "TypeError")],  # type: ignore[arg-type]  # the mistake
)
def test_a_transform_that_returns_nonsense_is_undecodable(returned: Any, text: str) -> None:
    def broken(_: Message) -> Any:
        return returned

    result = Inbound(CODECS, [broken]).opened(Delivery(SENT, b""))
    assert isinstance(result, HandlerResult)
    assert result.ending is Ending.UNDECODABLE
    assert result.failure is not None
    assert f"broken failed: {text}: " in result.failure.text


@pytest.mark.parametrize(
    ("body", "ending"), [(b"{", Ending.UNDECODABLE), (b'"seven"', Ending.INVALID)]
)
def test_what_cannot_be_read_is_judged(body: bytes, ending: Ending) -> None:
    result = Inbound(CODECS).decoded(NUMBER, replace(SENT, body=body))
    assert isinstance(result, HandlerResult)
    assert result.ending is ending


def test_errors_are_raised_to_who_waits_for_a_reply() -> None:
    inbound = Inbound(CODECS)
    assert inbound.value(NUMBER, SENT) == 7
    with pytest.raises(DecodeError):
        inbound.value(NUMBER, replace(SENT, body=b"{"))
    with pytest.raises(ValidationError):
        inbound.value(NUMBER, replace(SENT, body=b'"seven"'))
