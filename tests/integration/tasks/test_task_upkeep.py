"""The background work of a worker, beside a store that is away or a driver with a defect."""

from typing import Any

import pytest

from mqcore.tasks.store.memory import MemoryTaskStore
from mqcore.tasks.store.seam import StoreError

from .conftest import Shop

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("start", [600, 602, 604, 606, 608, 610, 612])
async def test_a_store_that_was_away_leaves_running_tasks_alone(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, start: int
) -> None:
    """The heartbeats have stopped for longer than they count."""
    is_away, published = False, list[str]()

    def away_at(name: str) -> None:
        real = getattr(MemoryTaskStore, name)

        async def call(store: MemoryTaskStore, *given: Any, **options: Any) -> Any:
            if is_away:
                raise StoreError("away")
            answer = await real(store, *given, **options)
            published.extend(getattr(answer, "keys", ()))
            return answer

        monkeypatch.setattr(MemoryTaskStore, name, call)

    for name in ("apply", "heartbeat", "suspects", "nodes", "outbox", "entries", "purge"):
        away_at(name)

    @shop.tasks.task(timeout=None)
    async def work() -> None:
        await shop.clock.sleep(900)

    async with shop.serve():
        await work.send()
        await shop.clock.advance(start)
        is_away = True
        await shop.clock.advance(20)
        is_away = False
        await shop.clock.advance(100)
    assert len(published) == 1


@pytest.mark.parametrize("name", ["heartbeat", "outbox", "suspects", "purge"])
async def test_a_defect_does_not_end_the_background_work(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    calls = 0
    real = getattr(MemoryTaskStore, name)

    async def call(store: MemoryTaskStore, *given: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError("a defect of a driver")
        return await real(store, *given, **options)

    monkeypatch.setattr(MemoryTaskStore, name, call)

    @shop.tasks.task()
    async def work() -> None: ...

    async with shop.serve():
        await shop.clock.advance(300)
    assert calls >= 4
