"""A certificate authority of one's own, and proxies to real brokers."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from support.tls_proxy import Authority, TlsProxy

from mqcore.messages.message import new_id

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Awaitable, Callable


@pytest.fixture
def name() -> str:
    """A name for a queue that no other test, and no run that was broken off, has used."""
    return f"interop.{new_id()[:12]}"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"), "ours")


@pytest.fixture(scope="session")
def another_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("another"), "another")


@pytest.fixture
async def tls_proxy() -> AsyncIterator[Callable[..., Awaitable[TlsProxy]]]:
    """A function that opens a proxy to the broker at a URL, with TLS when it is given some."""
    async with AsyncExitStack() as stack:

        async def opened(url: str, context: ssl.SSLContext | None = None) -> TlsProxy:
            one = TlsProxy(url, context)
            await one.open()
            stack.push_async_callback(one.close)
            return one

        yield opened
