"""The task store in Redis when the server is away, full or silent, or a URL is wrong."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from support.slow_proxy import SlowProxy
from support.waiting import eventually

from mqcore import App
from mqcore.contract.store.cases import (
    store_cases,
    what_changes_is_announced_to_other_clients,
)
from mqcore.contract.store.harness import store_of
from mqcore.contract.store.run import run_store_case
from mqcore.tasks import Tasks
from mqcore.tasks.spi import (
    ConfigurationError,
    Heartbeat,
    IllegalTransition,
    Node,
    State,
    StoreError,
    changes,
    outcomes,
)
from mqcore.testing import memory_url
from mqcore_redis.tasks import RedisTaskStore

from .conftest import PATIENCE, Private, a_queue, opened, outgoing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

TOKEN, WORKER = "token", "worker"

pytestmark = pytest.mark.timeout(120)


@asynccontextmanager
async def a_store(url: str) -> AsyncIterator[RedisTaskStore]:
    store = RedisTaskStore(url)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def add(root: str) -> changes.Add:
    return changes.Add([Node(id=root, name="send", queue="mail", payload=b"{}")])


def begin(task: str) -> changes.Begin:
    return changes.Begin(task, 0, 1, TOKEN, WORKER)


def end(task: str) -> changes.End:
    return changes.End(task, 0, TOKEN, State.SUCCEEDED, b"1")


async def test_it_connects_again_when_the_server_is_back(private: Callable[..., Private]) -> None:
    server = private("--appendonly", "yes", "--appendfsync", "always")
    async with a_store(server.url) as store:
        await store.apply([add("one")])
        server.stop()
        with pytest.raises(StoreError, match=rf"127\.0\.0\.1:{server.port}"):
            await store.apply([add("two")])
        with pytest.raises(StoreError, match="The next call connects again"):
            await store.nodes(["one"])

        server.start()
        assert (await store.apply([add("one"), add("two")])).outcomes == [
            outcomes.Exists(),
            outcomes.Added(),
        ]


async def test_a_lost_answer_is_an_error_and_its_changes_may_be_repeated(
    private: Callable[..., Private], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("support.slow_proxy.STEADY_AFTER", 0.0)
    server = private()
    address = urlsplit(server.url)
    assert address.hostname is not None
    assert address.port is not None

    async with (
        SlowProxy(address.hostname, address.port, late=0.0, seed=1) as proxy,
        a_store(f"redis://127.0.0.1:{proxy.port}") as store,
        a_store(server.url) as witness,
    ):
        proxy.least = proxy.late = PATIENCE
        change = asyncio.create_task(store.apply([add("r")]))

        async def is_made() -> bool:
            return (await witness.nodes(["r"]))[0] is not None

        await eventually(is_made, within=PATIENCE)
        proxy.reset()
        with pytest.raises(StoreError, match="may have been made"):
            await change

        proxy.least = proxy.late = 0.0
        assert (await store.apply([add("r"), begin("r"), end("r")])).outcomes[0] == (
            outcomes.Exists()
        )
        assert [item.entry.key for item in await store.outbox()] == ["r:0"]


async def test_a_full_server_refuses_new_tasks_and_lets_others_end(
    private: Callable[..., Private],
) -> None:
    server = private("--maxmemory-policy", "noeviction")
    async with a_store(server.url) as store:
        await store.apply([add("r")])
        with server.client() as client:
            client.config_set("maxmemory", 1)

        # in one turn of the loop, so in one call first
        refused, started = await asyncio.gather(
            store.apply([add("another")]), store.apply([begin("r")]), return_exceptions=True
        )
        assert isinstance(refused, StoreError)
        assert "The server is full" in str(refused)
        assert not isinstance(started, BaseException)
        assert (await store.apply([end("r")])).outcomes == [outcomes.Ended()]
        assert await store.heartbeat(Heartbeat(WORKER)) == []


async def test_the_error_of_one_caller_is_not_that_of_another(
    private: Callable[..., Private],
) -> None:
    async with a_store(private().url) as store:
        await store.apply([add("r"), begin("r")])
        impossible = changes.Back("r", 0, TOKEN, State.SKIPPED)
        made = await asyncio.gather(
            store.apply([add("before")]),
            store.apply([add("with"), impossible]),
            store.apply([add("after")]),
            return_exceptions=True,
        )
        assert isinstance(made[1], IllegalTransition)
        assert "'r' cannot become skipped, because it is running" in str(made[1])
        found = await store.nodes(["before", "with", "after"])
        assert [row and row.state for row in found] == [State.QUEUED, None, State.QUEUED]


async def test_callers_get_the_outcomes_and_keys_of_their_own_changes(
    private: Callable[..., Private],
) -> None:
    async with a_store(private().url) as store:
        roots = [f"r{number}" for number in range(200)]
        made = await asyncio.gather(*(store.apply([add(root)]) for root in [*roots, *roots]))
        assert [list(applied.keys) for applied in made] == [
            *([f"{root}:0"] for root in roots),
            *([] for _ in roots),
        ]
        started = await asyncio.gather(*(store.apply([begin(root)]) for root in roots))
        nodes = [it.outcomes[0].node.id for it in started]  # type: ignore[union-attr]  # each has started
        assert nodes == roots


async def test_a_store_beside_a_broker_on_one_server(private: Callable[..., Private]) -> None:
    server = private()
    async with a_store(server.url) as store, opened(server.url) as backend:
        queue = await a_queue(backend)
        await backend.publish([outgoing(queue)], timeout=10)
        await store.apply([add("r")])
        await store.clear()
        assert await store.nodes(["r"]) == [None]
        (count,) = await backend.count([queue])
        assert count.ready == 1

        with server.client() as client:
            await store.apply([add("r")])
            keys = {key.decode() for key in client.keys("mq:tasks:*")}
            assert {key.removeprefix("mq:tasks:{0}:") for key in keys} == {
                *("t:r", "outbox", "late"),
            }


@pytest.mark.parametrize("announces", [True, False])
async def test_a_user_of_the_documented_rights_has_a_store(
    private: Callable[..., Private], *, announces: bool
) -> None:
    server = private()
    rights = "on >secret ~mq:* +@read +@write +@scripting +@connection +time +info +config|get"
    more = "+@pubsub &mq:*" if announces else "resetchannels"
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", *rights.split(), *more.split())
    make_store = store_of(f"redis://app:secret@127.0.0.1:{server.port}")
    for case in store_cases():
        if announces or case is not what_changes_is_announced_to_other_clients:
            await run_store_case(case, make_store)
    if not announces:
        with pytest.raises(StoreError, match="@pubsub"):
            await run_store_case(what_changes_is_announced_to_other_clients, make_store)


async def test_results_come_through_a_connection_that_is_cut(
    private: Callable[..., Private], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqcore.tasks.results._AGAIN", 0.01)
    server = private()
    tasks = Tasks("shop", store=server.url)

    @tasks.task()
    async def work() -> int:
        return 1

    app = App("shop", tasks=[tasks])
    async with app.connect(memory_url()), a_store(server.url) as elsewhere:
        for _ in range(20):
            job = await work.send()
            waiting = asyncio.create_task(job.result())
            await elsewhere.apply([begin(job.id)])
            with server.client() as client:
                client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
            await elsewhere.apply([end(job.id)])
            assert await waiting == 1


async def test_a_closed_store_and_a_server_that_is_not_there_are_store_errors(
    private: Callable[..., Private],
) -> None:
    server = private()
    store = RedisTaskStore(server.url)
    with pytest.raises(StoreError, match="is closed"):
        await store.nodes(["r"])
    await store.open()
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="is closed"):
        await store.apply([add("r")])

    server.stop()
    with pytest.raises(StoreError, match="cannot connect"):
        await store.open()


@pytest.mark.parametrize(
    ("query", "says"),
    [("prefx=x", "prefx"), ("dedup_window=often", "dedup_window"), ("prefix", "not valid")],
)
def test_a_url_that_is_wrong_is_named_without_its_secret(query: str, says: str) -> None:
    with pytest.raises(ConfigurationError, match=says) as caught:
        RedisTaskStore(f"redis://user:secret@localhost/0?{query}")
    assert "secret" not in str(caught.value)
