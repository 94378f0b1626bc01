"""Batches split into short calls, and the scripts that they run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from redis import exceptions as redis

import mqcore_redis
from mqcore.messages.message import Message
from mqcore.spi import (
    DONE,
    STALE,
    STORED,
    Ack,
    ErrorKind,
    Failed,
    Move,
    Outgoing,
    QueueNotFound,
    Release,
    Route,
    Stored,
    Unknown,
)
from mqcore_redis import RedisOptions
from mqcore_redis.batches import BYTES, MESSAGES, Batches
from mqcore_redis.keys import Keys
from mqcore_redis.options import read
from mqcore_redis.scripts import NAMES, script

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mqcore_redis.scripts import Call
    from mqcore_redis.session import Session


class Told:
    """A session that notes its calls and answers what it was told to, or success."""

    def __init__(self, *answers: Any) -> None:
        self.calls: list[Call] = []
        self.place = read("redis://h", RedisOptions(max_delay=100))
        self.keys = Keys("mq")
        self._answers = list(answers)

    def missing(self, queue: str) -> QueueNotFound:
        return QueueNotFound(f"no {queue}")

    async def gather(self, calls: Sequence[Call], deadline: float | None = None) -> list[Any]:
        self.calls += calls
        return [self._answers.pop(0) if self._answers else self._success(call) for call in calls]

    @staticmethod
    def _success(call: Call) -> list[int]:
        if call.name == "publish":
            return [1] * ((len(call.args) - 3) // 3)
        return [1] * sum(word in ("A", "R", "M") for word in call.args)


def batches(session: Told, *, spread: bool = False) -> Batches:
    session.keys = Keys("mq", spread=spread)
    return Batches(cast("Session", session))


def out(to: str, name: str = "a", body: bytes = b"", **fields: Any) -> Outgoing:
    return Outgoing(to, Message(id=name, body=body), **fields)


async def test_a_batch_is_cut_by_number_and_by_bytes() -> None:
    session = Told()
    many = [out("q", str(number)) for number in range(2 * MESSAGES + 1)]
    assert await batches(session).publish(many, 5) == [STORED] * len(many)
    assert [len(call.args) // 3 - 1 for call in session.calls] == [MESSAGES, MESSAGES, 1]
    session = Told()
    large = [out("q", str(number), b"x" * (BYTES // 3)) for number in range(5)]
    assert await batches(session).publish(large, 5) == [STORED] * 5
    assert all(
        sum(len(it) for it in call.args if isinstance(it, bytes)) <= BYTES for call in session.calls
    )
    assert len(session.calls) == 3


async def test_what_is_larger_than_a_call_goes_alone() -> None:
    session = Told()
    batch = [out("q", "small"), out("q", "large", b"x" * 2 * BYTES), out("q", "next")]
    assert await batches(session).publish(batch, 5) == [STORED] * 3
    assert [len(call.args) // 3 - 1 for call in session.calls] == [1, 1, 1]


async def test_an_outcome_for_each_item_in_its_order() -> None:
    session = Told(
        [1, 0, 2],
        -1,
        redis.OutOfMemoryError("full", status_code="OOM"),
        None,
        redis.ResponseError("ERR odd"),
    )
    batch = [out("a"), out("gone"), out("a"), out("full"), out("a"), out("late"), out("odd")]
    batch += [out("a", delay=101.0), Outgoing(Route("r"), batch[0].message)]
    one, gone, two, full, three, late, odd, far, routed = await batches(session).publish(batch, 5)
    assert (one, three) == (STORED, Stored(duplicate=True))
    kinds = [
        outcome.kind for outcome in (gone, two, full, far, routed) if isinstance(outcome, Failed)
    ]
    assert kinds == [
        ErrorKind.NOT_FOUND,
        ErrorKind.FULL,
        ErrorKind.FULL,
        ErrorKind.PERMANENT,
        ErrorKind.PERMANENT,
    ]
    assert isinstance(gone, Failed)
    assert "gone" in gone.text
    assert [type(outcome) for outcome in (late, odd)] == [Unknown, Unknown]
    assert isinstance(two, Failed)
    assert "a" in two.text


async def test_the_keys_of_a_dead_letter_queue_come_when_they_are_asked_for() -> None:
    session = Told(b"letters")
    one = batches(session)
    assert await one.publish([out("q")], 5) == [STORED]
    assert await one.publish([out("q")], 5) == [STORED]
    assert [len(call.keys) for call in session.calls] == [11, 22, 22]
    assert session.calls[1].keys[11] == "mq:{letters}:q"


async def test_settlements_are_cut_and_keep_their_order() -> None:
    session = Told()
    receipts = [b"t|1|%d" % number for number in range(MESSAGES + 2)]
    moved = Message(id="m", body=b"x" * BYTES, hop=1)
    batch: list[Any] = [Ack(receipt) for receipt in receipts[:-2]]
    batch += [
        Release(receipts[-2]),
        Move(receipts[-1], Outgoing("r", moved)),
        Move(b"t|1|9", Outgoing("r", moved)),
    ]
    assert await batches(session).settle("q", batch, 5) == [DONE] * len(batch)
    assert [call.args[2] for call in session.calls] == ["A", "R", "M", "M"]
    assert [len(call.keys) for call in session.calls] == [11, 11, 22, 22]


async def test_endings_are_read_in_order() -> None:
    moved = Outgoing("gone", Message(id="m", body=b"", hop=1))
    (one, two, three) = await batches(Told([1, 0, -1])).settle(
        "q", [Ack(b"a"), Release(b"b"), Move(b"c", moved)], 5
    )
    assert (one, two) == (DONE, STALE)
    assert isinstance(three, Failed)
    assert three.kind is ErrorKind.NOT_FOUND
    (late,) = await batches(Told(None)).settle("q", [Ack(b"a")], 5)
    assert isinstance(late, Unknown)
    far = Move(b"c", Outgoing("q", moved.message, delay=1000))
    (refused,) = await batches(Told()).settle("q", [far], 5)
    assert isinstance(refused, Failed)
    assert refused.kind is ErrorKind.PERMANENT


async def test_across_slots_the_successor_is_stored_before_its_source_goes() -> None:
    receipt = b"t|5|05000000000000077"
    move = Move(receipt, Outgoing("other", Message(id="m", body=b"", hop=1)))
    session = Told([30_000_000])
    assert await batches(session, spread=True).settle("q", [move], 5) == [DONE]
    assert [call.name for call in session.calls] == ["renew", "publish", "settle"]
    assert session.calls[1].args[4].endswith(",77")
    assert session.calls[2].args[2:] == ("A", receipt)
    session = Told([0])
    assert await batches(session, spread=True).settle("q", [move], 5) == [STALE]
    assert len(session.calls) == 1
    session = Told(None)
    (unknown,) = await batches(session, spread=True).settle("q", [move], 5)
    assert isinstance(unknown, Unknown)
    assert len(session.calls) == 1
    session = Told([30_000_000], -1)
    (failed,) = await batches(session, spread=True).settle("q", [move], 5)
    assert isinstance(failed, Failed)
    assert len(session.calls) == 2


# Scripts


def test_every_script_file_is_loaded_and_its_flags_come_first() -> None:
    folder = Path(mqcore_redis.__file__).parent / "lua"
    assert {path.stem for path in folder.glob("*.lua")} == {*NAMES, "common"}
    for name in NAMES:
        found = script(name)
        assert found.text.count(b"#!lua") == found.text.startswith(b"#!lua")
        assert len(found.digest) == 40


@pytest.mark.parametrize("name", sorted({*NAMES} - {"publish", "declare", "bind", "probe"}))
def test_what_lets_go_works_on_a_full_server(name: str) -> None:
    assert script(name).text.startswith(b"#!lua flags=allow-oom\n")


def test_what_fills_a_server_is_refused_on_a_full_one() -> None:
    assert script("publish").text.startswith(b"#!lua\n")


@pytest.mark.parametrize("name", ["declare", "bind"])
def test_of_what_is_declared_only_what_is_new_is_refused_on_a_full_server(name: str) -> None:
    """A script with flags is refused as a whole, one without at the first command of memory."""
    assert not script(name).text.startswith(b"#!")


def test_scripts_and_driver_agree_on_how_much_a_call_carries() -> None:
    common = (Path(mqcore_redis.__file__).parent / "lua" / "common.lua").read_text(encoding="utf-8")
    assert f"\nlocal BYTES = {BYTES}\n" in common
