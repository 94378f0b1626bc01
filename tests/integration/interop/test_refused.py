"""A refused connect fails at once, in one clear line, without a secret or repeated tries (G14)."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
from support.waiting import eventually

from mqcore import Broker, ConnectionLost, MqcoreError, Queue, Settings

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

    from support.tls_proxy import Authority, TlsProxy

    MakeProxy = Callable[[str, ssl.SSLContext | None], Awaitable[TlsProxy]]

CANARY = "canary-password"
AT_ONCE = 5.0
"""Seconds. What is refused takes milliseconds; the rest is a slow machine's."""


async def refusal(url: str, proxy: TlsProxy | None = None) -> str:
    """Connect, which must fail at once, and return what was said."""
    began = time.monotonic()
    with pytest.raises(MqcoreError) as caught:
        async with Broker.connect(url, settings=Settings()):
            raise AssertionError("it was let in")
    assert time.monotonic() - began < AT_ONCE
    if proxy is not None:
        connections = proxy.connections
        assert 1 <= connections <= 2, (
            "it connected again and again"
        )  # a driver may have two connections
        await asyncio.sleep(0.3)
        assert proxy.connections == connections, "it connected again after it was refused"
    said = str(caught.value)
    assert "\n" not in said
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    return said


async def doctor(url: str) -> tuple[int, str]:
    """Run `mqcore doctor`, as an operator would, and return its exit code and all that it said."""
    command = [sys.executable, "-W", "error", "-m", "mqcore", "doctor", url]
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await asyncio.wait_for(process.communicate(), 20)
    assert process.returncode is not None
    text = output.decode()
    assert CANARY not in text
    assert "Traceback" not in text
    return process.returncode, text


def with_ca(authority: Authority) -> str:
    return f"cafile={authority.ca}"


async def test_tls_with_a_private_authority_works(
    broker_url: str, tls_proxy: MakeProxy, authority: Authority, name: str
) -> None:
    secure = await tls_proxy(broker_url, authority.certificate("good"))
    for host in ("127.0.0.1", "localhost"):
        url = secure.url(host=host, query=with_ca(authority))
        queue = Queue(name, str)
        async with Broker.connect(url, settings=Settings()) as broker:
            await broker.publish(queue, "hello")
            async with broker.consume(queue) as deliveries:
                delivery = await deliveries.get(timeout=10)
                assert delivery is not None
                assert delivery.value == "hello"
                await delivery.ack()
    assert secure.connections >= 2
    await eventually(
        lambda: "mqcore-leases" not in {thread.name for thread in threading.enumerate()}
    )
    gc.collect()


async def test_a_certificate_of_an_unknown_authority_is_refused(
    broker_url: str, tls_proxy: MakeProxy, authority: Authority, another_authority: Authority
) -> None:
    secure = await tls_proxy(broker_url, another_authority.certificate("unknown"))
    login = f"lab:{CANARY}"
    for query in (with_ca(authority), ""):
        secure.connections = 0
        said = await refusal(secure.url(login=login, query=query), secure)
        assert "certificate" in said
    code, text = await doctor(secure.url(login=login, query=with_ca(authority)))
    assert code == 1
    assert "certificate" in text


async def test_a_certificate_for_another_host_is_refused(
    broker_url: str, tls_proxy: MakeProxy, authority: Authority
) -> None:
    secure = await tls_proxy(
        broker_url, authority.certificate("elsewhere", host="DNS:elsewhere.example")
    )
    for host in ("127.0.0.1", "localhost"):
        secure.connections = 0
        said = await refusal(
            secure.url(login=f"lab:{CANARY}", host=host, query=with_ca(authority)), secure
        )
        assert "certificate" in said
        assert host in said


async def test_an_expired_certificate_is_refused(
    broker_url: str, tls_proxy: MakeProxy, authority: Authority
) -> None:
    secure = await tls_proxy(broker_url, authority.certificate("expired", days=-1))
    said = await refusal(secure.url(login=f"lab:{CANARY}", query=with_ca(authority)), secure)
    assert "certificate has expired" in said


async def test_tls_to_a_port_that_has_none_is_refused(
    broker_url: str, tls_proxy: MakeProxy, authority: Authority
) -> None:
    plain = await tls_proxy(broker_url, None)
    scheme = {"redis": "rediss", "amqp": "amqps"}[urlsplit(broker_url).scheme]
    url = f"{scheme}:{plain.url(login=f'lab:{CANARY}', query=with_ca(authority)).partition(':')[2]}"
    said = await refusal(url, plain)
    assert (
        "TLS" in said or "no answer" in said
    )  # Redis waits for the end of a line, and says nothing


async def test_no_tls_to_a_port_that_wants_it_is_refused(
    broker_url: str, tls_proxy: MakeProxy, authority: Authority
) -> None:
    secure = await tls_proxy(broker_url, authority.certificate("good"))
    url = secure.url(login=f"lab:{CANARY}").replace("rediss:", "redis:").replace("amqps:", "amqp:")
    await refusal(url, secure)


async def test_a_ca_file_that_cannot_be_read_is_named(
    broker_url: str, tls_proxy: MakeProxy, authority: Authority
) -> None:
    secure = await tls_proxy(broker_url, authority.certificate("good"))
    said = await refusal(secure.url(query=f"cafile={authority.folder / 'missing.pem'}"))
    assert "cafile" in said
    assert secure.connections == 0


async def test_a_wrong_password_is_refused(broker_url: str, tls_proxy: MakeProxy) -> None:
    plain = await tls_proxy(broker_url, None)
    said = await refusal(plain.url(login=f"guest:{CANARY}"), plain)
    assert "password" in said
    code, text = await doctor(plain.url(login=f"guest:{CANARY}"))
    assert code == 1
    assert "password" in text


async def test_a_missing_vhost_or_database_is_named(broker_url: str, tls_proxy: MakeProxy) -> None:
    plain = await tls_proxy(broker_url, None)
    said = await refusal(plain.url(path="/777"), plain)
    assert "777" in said or "database" in said
    code, text = await doctor(plain.url(path="/777"))
    assert code == 1
    assert "777" in text or "database" in text


async def test_a_closed_port_is_told_at_once(broker_url: str, tls_proxy: MakeProxy) -> None:
    gone = await tls_proxy(broker_url, None)
    url = gone.url(login=f"lab:{CANARY}")
    await gone.close()
    with pytest.raises(ConnectionLost) as caught:
        async with Broker.connect(url, settings=Settings()):
            pass
    assert CANARY not in str(caught.value)
    code, text = await doctor(url)
    assert code == 1
    assert "connect" in text


async def test_who_is_refused_later_knocks_seldom_and_comes_back(
    broker_url: str, tls_proxy: MakeProxy, authority: Authority, name: str
) -> None:
    good = authority.certificate("good")
    secure = await tls_proxy(broker_url, good)
    queue = Queue(name, str)
    async with Broker.connect(secure.url(query=with_ca(authority)), settings=Settings()) as broker:
        await broker.publish(queue, "before")
        secure.context = authority.certificate("expired", days=-1)
        await secure.cut()
        await eventually(lambda: not broker.health().connected)
        secure.connections = 0
        await asyncio.sleep(3)
        assert secure.connections <= 20
        assert "certificate has expired" in broker.health().error
        secure.context = good
        await broker.publish(queue, "after", timeout=30)
