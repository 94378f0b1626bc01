"""`mqcore.tasks.fastapi`: the router and the lifespan, called without a server."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

import pytest

from mqcore import App, Broker, ConfigurationError
from mqcore.tasks import Tasks
from mqcore.tasks.context import TaskContext
from mqcore.tasks.store.memory import MemoryTaskStore
from mqcore.tasks.store.seam import StoreError
from mqcore.testing import memory_url

pytest.importorskip("fastapi", reason="pip install 'mqcore[fastapi]'")
httpx = pytest.importorskip("httpx")
from fastapi import Depends, FastAPI, Header, HTTPException  # noqa: E402 - an extra

from mqcore.tasks.fastapi import get_broker, lifespan, task_router  # noqa: E402 - it needs FastAPI


async def keyed(x_key: Annotated[str, Header()] = "") -> None:
    if x_key != "right":
        raise HTTPException(401, "give a key")


class Shop:
    """A web application with tasks, and a client of it."""

    def __init__(self, *, worker: bool = True, timeout: float = 5.0) -> None:
        self.tasks = Tasks("shop", store=memory_url())
        app = App("shop", tasks=[self.tasks])
        options: Any = {"grace": 0} if worker else None
        self.web = FastAPI(lifespan=lifespan(app, memory_url(), worker=options))
        self.web.include_router(task_router(self.tasks, authorize=keyed, timeout=timeout))
        self.begun = asyncio.Event()
        self.released = asyncio.Event()

        @self.tasks.task(name="shop.convert")
        async def convert(ctx: TaskContext, frames: int) -> int:
            ctx.progress(1, frames, "converting")
            self.begun.set()
            await self.released.wait()
            return frames

        @self.tasks.task(name="shop.fail", timeout=None)
        async def fail() -> None:
            raise LookupError("nothing there")

        self.convert, self.fail = convert, fail

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Any]:
        transport = httpx.ASGITransport(app=self.web)
        async with (
            self.web.router.lifespan_context(self.web),
            httpx.AsyncClient(
                transport=transport, base_url="http://shop", headers={"X-Key": "right"}
            ) as client,
        ):
            yield client


class Stream:
    """One request for a stream, as a server makes it. httpx would wait for its end."""

    def __init__(self, web: FastAPI, path: str) -> None:
        self._sent: asyncio.Queue[Any] = asyncio.Queue()
        self._gone = asyncio.Event()
        self._asked = False
        headers = [(b"x-key", b"right")]
        scope = {"type": "http", "method": "GET", "path": path, "headers": headers}
        scope |= {"query_string": b"", "http_version": "1.1", "scheme": "http", "root_path": ""}
        self.call = asyncio.create_task(web(scope, self._receive, self._sent.put))  # type: ignore[arg-type]  # ASGI in plain dicts

    async def _receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": b"", "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    def leave(self) -> None:
        """Close the connection, as a browser does."""
        self._gone.set()

    async def next(self) -> str | None:
        """Return the next event, or None at the end."""
        async with asyncio.timeout(60):
            while True:
                message = await self._sent.get()
                if message["type"] == "http.response.start":
                    assert message["status"] == 200
                elif message["body"]:
                    return message["body"].decode()
                elif not message.get("more_body"):
                    return None

    async def state(self) -> str:
        """Return the state in the next event."""
        event = await self.next()
        assert event is not None
        return json.loads(event.partition("data: ")[2])["state"]


async def test_an_open_task_is_listed_and_shown() -> None:
    shop = Shop()
    async with shop.client() as client:
        job = await shop.convert.send(8)
        await asyncio.wait_for(shop.begun.wait(), 60)
        later = await shop.fail.using(delay=60).send()

        first, second = (await client.get("/api/tasks/")).json()
        assert (first["id"], first["name"], first["state"]) == (job.id, "shop.convert", "running")
        assert (first["attempt"], first["error"], first["ended_at"]) == (1, None, None)
        assert (second["id"], second["state"], second["queue"]) == (
            later.id,
            "scheduled",
            "default",
        )
        only = (await client.get("/api/tasks/?state=scheduled&name=shop.f*")).json()
        assert [each["id"] for each in only] == [later.id]
        assert (await client.get("/api/tasks/?name=other.*")).json() == []
        assert len((await client.get("/api/tasks/?limit=1")).json()) == 1
        assert (await client.get("/api/tasks/?state=lost")).status_code == 422

        shop.released.set()
        await job.result(60)
        shown = (await client.get(f"/api/tasks/{job.id}/status/")).json()
        assert (shown["state"], shown["done"], shown["total"]) == ("succeeded", 1, 8)
        assert shown["text"] == "converting"
        assert shown["ended_at"] is not None


async def test_the_error_of_a_task_is_shown() -> None:
    shop = Shop()
    async with shop.client() as client:
        job = await (shop.tasks.task(name="shop.reject")(_reject)).send()
        async for _ in job.changes():
            pass
        shown = (await client.get(f"/api/tasks/{job.id}/status/")).json()
    assert shown["state"] == "failed"
    assert shown["error"]["reason"] == "rejected"
    assert "no stock" in shown["error"]["text"]


async def _reject() -> None:
    from mqcore import Reject  # noqa: PLC0415 - only here

    raise Reject("no stock")


async def test_a_task_is_cancelled_once() -> None:
    shop = Shop(worker=False)
    async with shop.client() as client:
        job = await shop.convert.send(8)
        answer = await client.post(f"/api/tasks/{job.id}/cancel/", json={"reason": "not wanted"})
        assert answer.json() == {"id": job.id, "cancelled": True, "state": "cancelled"}
        again = await client.post(f"/api/tasks/{job.id}/cancel/")
        assert again.json() == {"id": job.id, "cancelled": False, "state": "cancelled"}
        shown = (await client.get(f"/api/tasks/{job.id}/status/")).json()
        assert shown["error"] == {"reason": "not wanted", "type": "", "text": ""}


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "status"), ("GET", "changes"), ("POST", "cancel")],
)
async def test_an_unknown_id_is_not_found(method: str, path: str) -> None:
    shop = Shop(worker=False)
    async with shop.client() as client:
        answer = await client.request(method, f"/api/tasks/no-such/{path}/")
    assert answer.status_code == 404
    assert "no-such" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("GET", "x/status/"), ("GET", "x/changes/"), ("POST", "x/cancel/")],
)
async def test_every_route_is_authorized(method: str, path: str) -> None:
    shop = Shop(worker=False)
    async with shop.client() as client:
        answer = await client.request(method, f"/api/tasks/{path}", headers={"X-Key": "wrong"})
    assert answer.status_code == 401


@pytest.mark.parametrize("how", ["raises", "hangs"])
async def test_a_store_that_is_away_is_a_503(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = asyncio.Event()

    async def away(*_: object) -> None:
        if how == "hangs":
            await answered.wait()
        raise StoreError("no route to the store of secret:password")

    shop = Shop(worker=False, timeout=0.05)
    async with shop.client() as client:
        job = await shop.convert.send(8)
        with monkeypatch.context() as patch:
            for name in ("nodes", "apply", "live"):
                patch.setattr(MemoryTaskStore, name, away)
            for method, path in (
                ("GET", ""),
                ("GET", f"{job.id}/status/"),
                ("GET", f"{job.id}/changes/"),
                ("POST", f"{job.id}/cancel/"),
            ):
                answer = await client.request(method, f"/api/tasks/{path}")
                assert (answer.status_code, answer.json()) == (
                    503,
                    {"detail": "the store of tasks is away"},
                )
            answered.set()
        assert (await client.get(f"/api/tasks/{job.id}/status/")).status_code == 200


async def test_the_stream_follows_a_task_to_its_end() -> None:
    shop = Shop(worker=True)
    async with shop.client():
        job = await shop.convert.send(8)
        await asyncio.wait_for(shop.begun.wait(), 60)
        stream = Stream(shop.web, f"/api/tasks/{job.id}/changes/")
        assert await stream.state() == "running"
        shop.released.set()
        events = []
        while (event := await stream.next()) is not None:
            events.append(event)
        await stream.call
    assert events[-1].startswith("event: end\ndata: {")
    assert json.loads(events[-1].partition("data: ")[2])["state"] == "succeeded"


async def test_a_browser_that_leaves_ends_its_stream() -> None:
    shop = Shop(worker=False)
    async with shop.client():
        job = await shop.convert.send(8)
        stream = Stream(shop.web, f"/api/tasks/{job.id}/changes/")
        assert await stream.state() == "queued"
        stream.leave()
        async with asyncio.timeout(60):
            await stream.call
        assert not shop.tasks.connected().results._waiting


async def test_the_stream_ends_with_the_lifespan() -> None:
    shop = Shop(worker=False)
    async with shop.client():
        job = await shop.convert.send(8)
        stream = Stream(shop.web, f"/api/tasks/{job.id}/changes/")
        assert await stream.state() == "queued"
    assert await stream.next() is None
    await stream.call


async def test_the_stream_ends_when_the_server_is_told_to_stop() -> None:
    """A server leaves the lifespan after its last request, so the stream must end before that."""
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        handler = signal.getsignal(signal.SIGTERM)
        shop = Shop(worker=False)
        async with shop.client():
            job = await shop.convert.send(8)
            stream = Stream(shop.web, f"/api/tasks/{job.id}/changes/")
            assert await stream.state() == "queued"
            signal.raise_signal(signal.SIGTERM)
            assert await stream.next() is None
            await stream.call
        assert told == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_lifespan_in_another_thread_sets_no_handlers() -> None:
    async def main() -> None:
        shop = Shop(worker=False)
        async with shop.client() as client:
            assert (await client.get("/api/tasks/")).json() == []

    failed: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:  # noqa: BLE001 - the test's thread shows it
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    assert not failed


async def test_an_endpoint_gets_the_broker() -> None:
    shop = Shop(worker=False)

    @shop.web.get("/connected")
    async def connected(broker: Annotated[Broker, Depends(get_broker)]) -> bool:
        return broker.health().connected

    async with shop.client() as client:
        assert (await client.get("/connected")).json() is True

    other = FastAPI()
    other.get("/connected")(connected)
    transport = httpx.ASGITransport(app=other)
    async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
        with pytest.raises(ConfigurationError, match="not connected"):
            await client.get("/connected")


def test_the_answers_are_in_the_openapi_document() -> None:
    document = Shop().web.openapi()
    paths = document["paths"]
    assert set(paths) == {
        "/api/tasks/",
        "/api/tasks/{task_id}/status/",
        "/api/tasks/{task_id}/cancel/",
        "/api/tasks/{task_id}/changes/",
    }
    status = paths["/api/tasks/{task_id}/status/"]["get"]
    assert set(status["responses"]) == {"200", "404", "422", "503"}
    content = status["responses"]["200"]["content"]["application/json"]
    assert content["schema"] == {"$ref": "#/components/schemas/TaskStatus"}
    assert "state" in document["components"]["schemas"]["TaskStatus"]["properties"]
    changes = paths["/api/tasks/{task_id}/changes/"]["get"]["responses"]["200"]
    assert set(changes["content"]) == {"text/event-stream"}
