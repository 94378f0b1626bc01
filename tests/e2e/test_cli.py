"""Messages, queues, dead letters and routes: each command in this process, on a memory broker."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.commands import JSON, SHOP, audit, on, raw, write

from mqcore import App, Broker, Queue, RetryPolicy, Router, Worker
from mqcore.cli import main

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from support.commands import Refused, Run

pytestmark = pytest.mark.usefixtures("own_folder")


# publish


def test_publish_shows_the_receipt(run: Run, filled: str) -> None:
    said = run(
        "publish",
        "orders",
        '{"n": 4}',
        "--id",
        "mine",
        "--priority",
        "8",
        "--header",
        "a=b=c",
        "--url",
        filled,
    )
    assert (said.code, said.out) == (0, "mine is stored in orders\n")
    again = run("publish", "orders", '{"n": 4}', "--id", "mine", "--url", filled, "--json")
    assert again.data == {"id": "mine", "queues": ["orders"], "duplicate": True}
    stored = {
        entry["id"]: entry for entry in run("peek", "orders", "--json", "--url", filled).data
    }["mine"]
    assert (stored["priority"], stored["headers"], stored["body"]) == (8, {"a": "b=c"}, '{"n":4}')


@pytest.mark.parametrize(
    ("kind", "payload", "body", "content_type"),
    [
        ("json", '"a word"', b'"a word"', "application/json"),
        ("json", " [1, 2.5, null]", b"[1,2.5,null]", "application/json"),
        ("text", "häh?", "häh?".encode(), "text/plain"),
        ("bytes", "{", b"{", "application/octet-stream"),
    ],
)
def test_the_payload_is_sent_as_its_content_type(
    run: Run, filled: str, kind: str, payload: str, body: bytes, content_type: str
) -> None:
    assert run("publish", "audit", payload, "--content-type", kind, "--url", filled).code == 0
    entry = on(filled, lambda broker: broker.peek("audit"))[0]
    assert (entry.message.body, entry.message.content_type) == (body, content_type)


def test_the_payload_comes_from_a_file_or_standard_input(
    run: Run, filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("body").write_bytes(b"\xff\xfe")
    run("publish", "audit", "@body", "--content-type", "bytes", "--url", filled)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"n": 7}')))
    run("publish", "audit", "-", "--url", filled)
    assert [entry.message.body for entry in on(filled, lambda broker: broker.peek("audit"))] == [
        b"\xff\xfe",
        b'{"n":7}',
    ]


def test_publish_delays_and_expires(run: Run, filled: str) -> None:
    said = run("publish", "audit", "1", "--delay", "50", "--ttl", "99.5", "--url", filled)
    assert said.code == 0
    entry = run("peek", "audit", "--json", "--url", filled).data[0]
    assert entry["state"] == "delayed"
    assert 49 < entry["due_in"] <= 50


def test_publish_to_a_router_asks_the_broker_for_its_kind(run: Run, filled: str) -> None:
    said = run("publish", "shop", '{"n": 1}', "--key", "order.placed", "--json", "--url", filled)
    assert said.data["queues"] == ["orders", "audit"]

    async def fan(broker: Broker) -> None:
        await broker.declare(Router("all", JSON, kind="fanout").bind(audit))

    on(filled, fan)
    assert run("publish", "all", "{}", "--router", "--json", "--url", filled).data["queues"] == [
        "audit"
    ]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("nowhere", "1"), "'nowhere'"),
        (("orders", "{n: 1}"), "not JSON"),
        (("orders", "[1, NaN]"), "not JSON"),
        (("orders", "[" * 3000), "recursion"),
        (("orders", "\udcff", "--content-type", "text"), "UTF-8"),
        (("orders", "1", "--content-type", "pickle"), "--content-type"),
        (("orders", "1", "--priority", "11"), "priority 11"),
        (("orders", "1", "--priority", "high"), "--priority"),
        (("orders", "1", "--ttl", "-1"), "ttl=-1"),
        (("orders", "1", "--ttl", "nan"), "ttl=nan"),
        (("orders", "1", "--delay", "-1"), "delay=-1"),
        (("orders", "1", "--delay", "9", "--ttl", "5"), "expired"),
        (("orders", "1", "--id", "white space"), "id"),
        (("orders", "1", "--header", "nameless"), "NAME=VALUE"),
        (("orders", "1", "--header", "a=1", "--header", "a=2"), "twice"),
        (("orders", "1", "--header", "mq-hop=7"), "reserved"),
        (("orders", "1", "--key", "order.placed"), "no router 'orders'"),
        (("orders", "1", "surplus"), "surplus"),
        (("orders", "@missing.json"), "missing.json"),
        (("orders", "@."), "cannot be read"),
        (("orders", '"' + "x" * 2_000_000 + '"'), "2,000,002 bytes"),
        (("orders",), "PAYLOAD"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_publish_refuses_what_cannot_be_sent(
    refused: Refused, run: Run, filled: str, words: tuple[str, ...], why: str
) -> None:
    assert why in refused("publish", *words, "--url", filled)
    assert len(run("peek", "orders", "--json", "--url", filled).data) == 3


def test_a_message_that_no_binding_takes_is_a_failure(refused: Refused, filled: str) -> None:
    assert "no binding of router 'shop'" in refused(
        "publish", "shop", "1", "--key", "nope", "--url", filled, code=1
    )


# peek


def test_peek_shows_messages_in_the_order_of_delivery_and_takes_none(run: Run, filled: str) -> None:
    first, second = (run("peek", "orders", "--url", filled) for _ in range(2))
    assert [row[:4] for row in first.rows] == [
        ["urgent", "ready", "9", "1"],
        ["first", "ready", "5", "1"],
        ["tomorrow", "delayed", "5", "1"],
    ]
    assert first.rows[2][5] == "23h59m"
    assert [row[0] for row in second.rows] == [row[0] for row in first.rows]


def test_peek_escapes_and_cuts_what_a_table_shows_and_gives_programs_all(
    run: Run, filled: str
) -> None:
    shown = run("peek", "raw", "--url", filled).out
    assert r"\x1b[31m[bold]\xff\x00\nxxx" in shown
    assert shown.rstrip().endswith("x…")
    data = run("peek", "raw", "--json", "--url", filled).data[0]
    assert data["body_encoding"] == "base64"
    assert len(data["body"]) > 200


def test_peek_reads_page_by_page_up_to_its_limit(run: Run, url: str) -> None:
    async def many(broker: Broker) -> None:
        await broker.publish_many(raw, [b""] * 450)

    on(url, many)
    assert len(run("peek", "raw", "--limit", "2", "--json", "--url", url).data) == 2
    everything = run("peek", "raw", "--limit", "1000", "--json", "--url", url).data
    assert len({entry["id"] for entry in everything}) == 450


def test_peek_into_an_empty_queue_says_so(run: Run, filled: str) -> None:
    assert run("peek", "audit", "--url", filled).out == "queue 'audit' has no waiting messages\n"
    assert run("peek", "audit", "--json", "--url", filled).data == []


def test_an_id_is_never_cut(run: Run, filled: str) -> None:
    longest = "i" * 128
    run("publish", "audit", "1", "--id", longest, "--url", filled)
    assert run("peek", "audit", "--url", filled).rows[0][0] == longest


# queues


def test_queues_counts_what_each_holds(run: Run, buried: str) -> None:
    said = run("queues", "--interval", "0", "--url", buried)
    assert said.out.splitlines()[0].split() == [
        "QUEUE",
        "READY",
        "IN",
        "FLIGHT",
        "DELAYED",
        "DEAD",
        "PUBLISH/S",
        "SETTLE/S",
    ]
    assert said.rows == [
        ["audit", "0", "0", "0", "0", "-", "-"],
        ["orders", "2", "0", "1", "3", "-", "-"],
        ["raw", "1", "0", "0", "0", "-", "-"],
    ]
    assert run("queues", "list", "--interval", "0", "--json", "--url", buried).data[1] == {
        "queue": "orders",
        "role": "work",
        "ready": 2,
        "in_flight": 0,
        "delayed": 1,
        "dead": 3,
        "dead_letter": "orders.dlq",
        "published_per_second": None,
        "settled_per_second": None,
    }


def test_a_dead_letter_queue_whose_queue_is_gone_has_a_line_of_its_own(
    run: Run, buried: str
) -> None:
    run("queues", "delete", "orders", "--yes", "--url", buried)
    assert ["orders.dlq", "3", "0", "0", "-", "-", "-"] in run(
        "queues", "--interval", "0", "--url", buried
    ).rows


@pytest.fixture
def busy(url: str) -> Iterator[str]:
    """A broker to which a thread publishes all the time, some hundred messages a second."""
    stop = threading.Event()

    async def publish(broker: Broker) -> None:
        await broker.declare(raw)
        begun.set()
        while not stop.is_set():
            await broker.publish(raw, b"")
            await asyncio.sleep(0.001)

    begun = threading.Event()
    thread = threading.Thread(target=on, args=(url, publish))
    thread.start()
    begun.wait()
    yield url
    stop.set()
    thread.join()


def test_queues_measures_rates(run: Run, busy: str) -> None:
    line = run("queues", "--interval", "0.1", "--json", "--url", busy).data[0]
    assert line["published_per_second"] > 10
    assert line["settled_per_second"] == 0


class InterruptedStream(io.TextIOWrapper):
    """A standard output whose reader presses Ctrl-C after some lines."""

    lines = 0

    def write(self, text: str) -> int:
        self.lines += text.count("\n")
        if self.lines >= 3:
            self.lines = -1000
            signal.raise_signal(signal.SIGINT)
        return super().write(text)


def watched(monkeypatch: pytest.MonkeyPatch, url: str, *words: str, terminal: bool = False) -> str:
    """Watch the queues until Ctrl-C, and return what was shown."""
    stream = InterruptedStream(io.BytesIO(), write_through=True)
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["queues", "--watch", "--interval", "0.01", *words, "--url", url]) == 0
    stream.seek(0)
    return stream.read()


def test_queues_without_rates_are_watched_at_a_pace(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    def looks(_: object, interval: float) -> AsyncIterator[list[object]]:
        waits.append(interval)
        raise KeyboardInterrupt

    monkeypatch.setattr("mqcore.cli.queues.samples", looks)
    assert main(["queues", "--watch", "--interval", "0", "--url", filled]) == 0
    assert waits == [1.0]


def test_queues_watches_until_interrupted(filled: str, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = [json.loads(line) for line in watched(monkeypatch, filled, "--json").splitlines()]
    assert len(looks) >= 3
    assert [line["queue"] for line in looks[-1]] == ["audit", "orders", "raw"]
    assert looks[-1][0]["published_per_second"] == 0


@pytest.mark.parametrize("terminal", [True, False])
def test_queues_watches_on_a_terminal_and_in_a_pipe(
    filled: str, monkeypatch: pytest.MonkeyPatch, *, terminal: bool
) -> None:
    text = watched(monkeypatch, filled, terminal=terminal)
    assert "orders" in text
    assert ("\x1b[" in text) is terminal


def test_queues_delete(run: Run, refused: Refused, filled: str) -> None:
    assert "holds 1 message" in refused("queues", "delete", "raw", "--url", filled)
    assert "--yes" in refused("queues", "delete", "raw", "--url", filled)
    assert "is not deleted" in refused(
        "queues", "delete", "raw", "--if-empty", "--yes", "--url", filled, code=1
    )
    assert run("queues", "delete", "raw", "--yes", "--json", "--url", filled).data == {
        "queue": "raw",
        "deleted": True,
    }
    assert run("queues", "delete", "audit", "--if-empty", "--yes", "--url", filled).code == 0
    assert "'raw'" in refused("queues", "delete", "raw", "--yes", "--url", filled)
    assert [row[0] for row in run("queues", "--interval", "0", "--url", filled).rows] == [
        "audit.dlq",
        "orders",
        "raw.dlq",
    ]


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 0), ("n\n", 130, 1), ("", 130, 1)])
def test_on_a_terminal_it_asks(
    url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answer: str,
    code: int,
    left: int,
) -> None:
    on(url, lambda broker: broker.publish(raw, b""))
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer))
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert main(["queues", "delete", "raw", "--url", url]) == code
    said = capsys.readouterr()
    assert "Delete the queue" in said.err
    assert "Traceback" not in said.err
    assert (
        len([1 for counts in on(url, lambda broker: broker.counts()) if counts.name == "raw"])
        == left
    )


# dlq


def test_dlq_list_shows_why(run: Run, buried: str) -> None:
    rows = run("dlq", "list", "orders", "--url", buried).rows
    assert [row[:4] for row in rows] == [[f"dead-{n}", "rejected", "orders", "1"] for n in range(3)]
    assert rows[0][-3:] == ["no", "such", "customer"]
    assert rows[2][-2:] == [r"\x1b[31mtoo", "late"]
    assert [
        letter["id"] for letter in run("dlq", "list", "orders.dlq", "--json", "--url", buried).data
    ] == [
        "dead-0",
        "dead-1",
        "dead-2",
    ]
    assert run("dlq", "list", "audit", "--url", buried).out == "no dead letters\n"


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--error", "late"), [2]),
        (("--id", "dead-0", "--id", "dead-2"), [0, 2]),
        (("--reason", "rejected", "--limit", "2"), [0, 1]),
        (("--reason", "expired"), []),
        (("--queue", "orders"), [0, 1, 2]),
        (("--queue", "audit"), []),
        (("--after", "2020-01-01"), [0, 1, 2]),
        (("--before", "2020-01-01T00:00:00+02:00"), []),
        (("--before", "4102444800"), [0, 1, 2]),
    ],
)
def test_dlq_list_filters(run: Run, buried: str, words: tuple[str, ...], found: list[int]) -> None:
    letters = run("dlq", "list", "orders", *words, "--json", "--url", buried).data
    assert [letter["id"] for letter in letters] == [f"dead-{n}" for n in found]


def test_dlq_show_shows_all_of_one(run: Run, refused: Refused, buried: str) -> None:
    text = run("dlq", "show", "orders", "dead-2", "--url", buried).out
    for part in (
        "dead-2",
        "rejected",
        r"\x1b[31mtoo late",
        "header n",
        '{"dead":2}',
        "body (10 bytes)",
    ):
        assert part in text
    data = run("dlq", "show", "orders", "dead-0", "--json", "--url", buried).data
    assert (data["reason"], data["error"], data["queue"], data["attempts"]) == (
        "rejected",
        "no such customer",
        "orders",
        1,
    )
    assert (data["headers"], data["body"], data["priority"]) == ({"n": "0"}, '{"dead":0}', 10)
    assert "'nobody'" in refused("dlq", "show", "orders", "nobody", "--url", buried)


def test_dlq_show_keeps_the_lines_of_a_traceback_and_of_a_body(run: Run, url: str) -> None:
    app = App("failing")
    jobs = Queue("jobs", retry=RetryPolicy(max_attempts=1))

    @app.consumer(jobs)
    async def fail(_: bytes) -> None:
        raise LookupError("\x1b[2J nothing there")

    async def work(broker: Broker) -> None:
        async with Worker(app, broker), broker.consume("jobs.dlq") as dead:
            await broker.publish(jobs, b"line 1\nline 2\x07", id="job")
            async for delivery in dead:
                await delivery.release()
                break

    on(url, work)
    text = run("dlq", "show", "jobs", "job", "--url", url).out
    assert "\n  File " in text
    assert r"LookupError: \x1b[2J nothing there" in text
    assert "\nline 1\nline 2\\x07\n" in text


def test_dlq_redrive_sends_back_what_was_chosen(run: Run, refused: Refused, buried: str) -> None:
    assert "--all" in refused("dlq", "redrive", "orders", "--url", buried)
    assert "cannot be combined" in refused(
        "dlq", "redrive", "orders", "--all", "--reason", "rejected", "--url", buried
    )
    assert (
        run("dlq", "redrive", "orders", "--error", "late", "--url", buried).out
        == "1 redriven, 0 not redriven\n"
    )
    said = run(
        "dlq", "redrive", "orders", "--id", "dead-0", "--id", "gone", "--json", "--url", buried
    )
    assert (said.code, said.data) == (
        1,
        {"moved": ["dead-0"], "left": {"gone": "no dead letter has this id"}},
    )
    assert run(
        "dlq", "redrive", "orders", "--all", "--to", "audit", "--json", "--url", buried
    ).data["moved"] == ["dead-1"]
    ids = {
        entry["id"]: entry["redriven"]
        for entry in run("peek", "orders", "--json", "--url", buried).data
    }
    assert ids == {"dead-0": 1, "dead-2": 1, "urgent": 0, "first": 0, "tomorrow": 0}
    assert run("peek", "audit", "--json", "--url", buried).data[0]["id"] == "dead-1"


def test_dlq_redrive_says_what_stays_and_why(run: Run, refused: Refused, buried: str) -> None:
    assert "'nowhere'" in refused(
        "dlq", "redrive", "orders", "--all", "--to", "nowhere", "--url", buried
    )
    run("queues", "delete", "orders", "--yes", "--url", buried)
    said = run("dlq", "redrive", "orders", "--id", "dead-0", "--url", buried)
    assert said.code == 1
    assert said.out.startswith("0 redriven, 1 not redriven\n")
    assert said.out.splitlines()[-1].startswith("dead-0  not moved: ")
    assert len(run("dlq", "list", "orders", "--json", "--url", buried).data) == 3


def test_dlq_redrive_stops_a_loop_unless_forced(run: Run, url: str) -> None:
    async def reject(broker: Broker) -> None:
        async with broker.consume(raw) as consumer:
            async for delivery in consumer:
                await delivery.reject("again")
                break

    on(url, lambda broker: broker.publish(raw, b"", id="stubborn"))
    for _ in range(5):
        on(url, reject)
        assert run("dlq", "redrive", "raw", "--all", "--url", url).code == 0
    on(url, reject)
    assert (
        "5 times already"
        in run("dlq", "redrive", "raw", "--all", "--json", "--url", url).data["left"]["stubborn"]
    )
    assert run("dlq", "redrive", "raw", "--all", "--force", "--url", url).code == 0


def test_dlq_purge(run: Run, refused: Refused, buried: str) -> None:
    assert "--all" in refused("dlq", "purge", "orders", "--yes", "--url", buried)
    assert "3 dead letters of 'orders'" in refused(
        "dlq", "purge", "orders", "--all", "--url", buried
    )
    assert (
        run("dlq", "purge", "orders", "--error", "late", "--yes", "--url", buried).out
        == "1 dead letter removed\n"
    )
    assert run("dlq", "purge", "orders", "--all", "--yes", "--json", "--url", buried).data == {
        "purged": 2
    }
    assert run("dlq", "list", "orders", "--json", "--url", buried).data == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("list", "nowhere"), "'nowhere'"),
        (("list", "orders", "--reason", "bored"), "'bored'"),
        (("list", "orders", "--before", "tomorrow"), "'tomorrow'"),
        (("list", "orders", "--limit", "0"), "--limit"),
        (("purge", "nowhere", "--all", "--yes"), "'nowhere'"),
        (("bury", "orders"), "'bury'"),
        ((), "Missing command"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_dlq_misused(refused: Refused, filled: str, words: tuple[str, ...], why: str) -> None:
    assert why in refused("dlq", *words, *(("--url", filled) if words else ()))


# routes


def test_routes_shows_bindings(run: Run, refused: Refused, filled: str) -> None:
    assert run("routes", "--url", filled).rows == [
        ["shop", "topic", "orders", "order.placed"],
        ["shop", "topic", "audit", "order.*"],
    ]

    async def more(broker: Broker) -> None:
        await broker.declare(
            Router("by-tenant", JSON, kind="headers").bind(audit, headers={"tenant": "a", "b": "c"})
        )

    on(filled, more)
    assert run("routes", "by-tenant", "--json", "--url", filled).data == [
        {
            "router": "by-tenant",
            "kind": "headers",
            "queue": "audit",
            "key": "",
            "headers": {"b": "c", "tenant": "a"},
            "match": "all",
        }
    ]
    assert "all of b=c, tenant=a" in run("routes", "list", "by-tenant", "--url", filled).out
    assert "'nobody'" in refused("routes", "nobody", "--url", filled)


def test_routes_prune_removes_what_neither_code_nor_configuration_has(
    run: Run, refused: Refused, filled: str
) -> None:
    write("shop.py", SHOP)
    write(
        "mqcore.toml",
        '[routers.shop]\nkind = "topic"\nbindings = [{ queue = "raw", key = "order.raw" }]\n',
    )

    async def more(broker: Broker) -> None:
        await broker.declare(
            Router("shop", bytes, kind="topic").bind(raw, "order.raw"),
            Router("other", JSON, kind="fanout").bind(audit),
        )

    on(filled, more)
    assert "shop (topic) -> audit, order.*" in refused(
        "routes", "prune", "shop:app", "--url", filled
    )
    said = run("routes", "prune", "shop:app", "--yes", "--json", "--url", filled)
    assert [(gone["queue"], gone["key"]) for gone in said.data["removed"]] == [("audit", "order.*")]
    assert sorted(row[:1] + row[2:3] for row in run("routes", "--url", filled).rows) == [
        ["other", "audit"],
        ["shop", "orders"],
        ["shop", "raw"],
    ]
    assert run("routes", "prune", "shop:app", "--url", filled).out == "0 bindings removed\n"


@pytest.mark.parametrize(
    "sigint", [signal.default_int_handler, signal.SIG_IGN], ids=["foreground", "command &"]
)
def test_sigterm_interrupts_a_command_which_lets_go_of_what_it_holds(
    run: Run,
    filled: str,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    sigint: Any,
) -> None:
    request.addfinalizer(
        partial(signal.signal, signal.SIGINT, signal.signal(signal.SIGINT, sigint))
    )
    released: list[bool] = []

    async def redrive(*_: object, **__: object) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
            await asyncio.sleep(30)
        finally:
            released.append(True)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("mqcore.admin.dead_letters.DeadLetters.redrive", redrive)
    assert run("dlq", "redrive", "orders", "--all", "--url", filled).code != 0
    assert released == [True]
    assert signal.getsignal(signal.SIGTERM) is before


def test_queues_alter(run: Run, refused: Refused, filled: str) -> None:
    said = run("queues", "alter", "orders", "--ttl", "60", "--max-length", "5", "--url", filled)
    assert "queue 'orders' now has ttl=60.0, max_length=5" in said.out

    data = run(
        "queues",
        "alter",
        "orders",
        "--ttl",
        "none",
        "--overflow",
        "dead_letter",
        "--json",
        "--url",
        filled,
    ).data
    assert data == {"queue": "orders", "altered": {"ttl": None, "overflow": "dead_letter"}}

    assert "--yes" in refused("queues", "alter", "orders", "--retention", "60", "--url", filled)
    assert run("queues", "alter", "orders", "--retention", "60", "--yes", "--url", filled).code == 0

    assert "nothing to change" in refused("queues", "alter", "orders", "--url", filled)
    assert "number of seconds" in refused(
        "queues", "alter", "orders", "--ttl", "soon", "--url", filled
    )
    assert "'nowhere'" in refused("queues", "alter", "nowhere", "--ttl", "5", "--url", filled)
