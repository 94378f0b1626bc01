"""After a read, the reader waits until the queue has its messages back."""

from __future__ import annotations

from typing import Any, cast

import pytest
from pika import spec

from mqcore_rabbitmq import browse
from mqcore_rabbitmq.link import Channel


class Answers:
    """A channel that answers with these counts of messages and consumers, one after the other."""

    def __init__(self, *answers: tuple[int, int]) -> None:
        self.left = list(answers)

    async def request(self, _: object) -> Any:
        messages, consumers = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        return spec.Queue.DeclareOk("q", messages, consumers)


@pytest.mark.parametrize(
    "answers",
    [
        pytest.param([(0, 0), (0, 0), (6, 0)], id="a slow disk: back a moment later"),
        pytest.param([(0, 1), (0, 1), (0, 0), (6, 0)], id="our own consumer is still counted"),
        pytest.param([(0, 1), (7, 1)], id="one more has come meanwhile"),
    ],
)
async def test_a_read_ends_when_all_messages_are_back(
    answers: list[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(browse, "_POLL_INTERVAL", 0.0)
    channel = Answers(*answers)

    await browse._wait_for_return(cast("Channel", channel), "q", 6)

    assert channel.left == [answers[-1]]


async def test_a_read_does_not_wait_for_all_if_another_consumer_exists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(browse, "_POLL_INTERVAL", 0.0)

    await browse._wait_for_return(cast("Channel", Answers((0, 1))), "q", 6)  # would not end else
