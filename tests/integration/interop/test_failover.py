"""Several hosts in an `amqp://` URL: the first that accepts is used, also after a loss (G14)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from support.waiting import eventually

from mqcore import App, ConnectionLost, MqcoreError, Queue, Settings, Worker

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from support.tls_proxy import TlsProxy

    MakeProxy = Callable[[str], Awaitable[TlsProxy]]


def several(*proxies: TlsProxy) -> str:
    """Return one URL with the hosts of all these proxies, in their order."""
    first, *others = [urlsplit(proxy.url()) for proxy in proxies]
    hosts = ",".join(f"127.0.0.1:{parts.port}" for parts in others)
    return first._replace(netloc=f"{first.netloc},{hosts}").geturl()


async def test_work_goes_on_by_the_next_host_when_the_first_is_lost(
    rabbitmq_url: str, tls_proxy: MakeProxy, name: str
) -> None:
    one, two = await tls_proxy(rabbitmq_url), await tls_proxy(rabbitmq_url)
    queue, app = Queue(name, int), App("two-hosts")
    handled: set[int] = set()

    @app.consumer(queue)
    async def handle(number: int) -> None:
        handled.add(number)

    async with app.connect(several(one, two), settings=Settings()) as broker, Worker(app, broker):
        await broker.publish(queue, 1)
        await eventually(lambda: 1 in handled, 10)
        assert (one.connections > 0, two.connections) == (True, 0)  # in the order of the URL
        await one.close()
        async with asyncio.timeout(20):
            while 2 not in handled:
                try:
                    await broker.publish(queue, 2, timeout=1.0)
                except MqcoreError:
                    continue  # between the two hosts
                await asyncio.sleep(0.01)
        assert two.connections > 0


async def test_a_host_that_is_down_at_the_start_is_passed_over(
    rabbitmq_url: str, tls_proxy: MakeProxy, name: str
) -> None:
    down, up = await tls_proxy(rabbitmq_url), await tls_proxy(rabbitmq_url)
    url = several(down, up)
    await down.close()
    async with App("one-down").connect(url, settings=Settings()) as broker:
        queue = Queue(name, int)
        await broker.declare(queue)
        assert (await broker.publish(queue, 1)).id
        assert (await broker.counts(queue))[0].ready == 1


async def test_when_no_host_is_up_all_are_named(rabbitmq_url: str, tls_proxy: MakeProxy) -> None:
    one, two = await tls_proxy(rabbitmq_url), await tls_proxy(rabbitmq_url)
    url = several(one, two)
    ports = [str(urlsplit(each.url()).port) for each in (one, two)]
    await one.close()
    await two.close()
    with pytest.raises(ConnectionLost) as caught:
        async with App("both-down").connect(url, settings=Settings()):
            raise AssertionError("it was let in")
    assert all(port in str(caught.value) for port in ports)
