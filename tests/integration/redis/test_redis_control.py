"""Commands to workers on Redis."""

from __future__ import annotations

from support.controlled import check_all, check_chosen


async def test_all_workers_and_chosen_ones_answer(redis_url: str) -> None:
    await check_all(redis_url)
    await check_chosen(redis_url)
