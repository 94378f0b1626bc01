"""The contract kit's harness for a server, with the hooks that a URL alone cannot provide.

Each instance reaches its server through its own `Proxy`. So it can be killed as a process is,
without a word to the broker. Where the URL is not plainly host and port (TLS, several hosts), it
connects directly, and a kill is a close.
"""

from __future__ import annotations

import asyncio
import weakref
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mqcore.config.settings import open_backend
from mqcore.contract.brokers.proxy import Proxy
from mqcore.contract.harness import UrlHarness

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from contextlib import AbstractAsyncContextManager

    from mqcore.config.plugins import Plugins
    from mqcore.contract.brokers.server import Server
    from mqcore.spi import Backend

__all__ = ["ServerHarness"]


class ServerHarness(UrlHarness):
    """The kit's harness for a `Server`.

    `ServerHarness(server, "durability=machine")` adds options to the server's URL.
    """

    patience = 12.0
    """Longer than the kit's: several servers run side by side."""
    at_once = 2

    def __init__(
        self, server: Server, options: str = "", *, plugins: Plugins | None = None
    ) -> None:
        """Take a running server.

        `plugins` are those that may serve its URL, by default all that are installed.
        """
        url = f"{server.url}{'&' if '?' in server.url else '?'}{options}" if options else server.url
        super().__init__(url, plugins=plugins)
        self.server = server
        self._address = f"{server.host}:{server.port}"
        parts = urlsplit(self.url)
        self._uses_proxy = (
            parts.scheme == server.product.scheme
            and parts.netloc.rpartition("@")[2] == self._address
        )
        self._proxies: weakref.WeakKeyDictionary[Backend, Proxy] = weakref.WeakKeyDictionary()

    @property
    def provider(self) -> str:
        """Where the server comes from, for the run's summary."""
        return self.server.provider

    def server_version(self) -> str:
        """Hook 7: product and version, as the server reports them.

        Empty where the server cannot be asked; then the driver's answer is used.
        """
        return self.server.title if self.server.version else ""

    def make_backend(self) -> Backend:
        """Hook 1: return an instance with its own proxy."""
        if not self._uses_proxy:
            return super().make_backend()
        proxy = Proxy(*self.server.address)
        url = self.url.replace(self._address, f"127.0.0.1:{proxy.port}", 1)
        backend = open_backend(url, self._settings, self._plugins, self.clock)
        self._proxies[backend] = proxy
        weakref.finalize(backend, proxy.close).atexit = False
        return backend

    async def kill(self, backend: Backend) -> None:
        """Hook 5: cut the instance's proxy, so that it cannot send anything, then close it here."""
        proxy = self._proxies.get(backend)
        if proxy is not None:
            await asyncio.to_thread(proxy.kill)
        await backend.close()

    async def restart(self) -> None:
        """Hook 3: kill the server and start it again."""
        await asyncio.to_thread(self.server.restart)

    def cut(self) -> AbstractAsyncContextManager[None] | None:
        """Hook 4: silence the server."""
        return self._silence()

    def mute(self, backend: Backend) -> AbstractAsyncContextManager[None]:
        """Hook 9: hold back at the instance's proxy what the server sends."""
        return self._held_back(self._proxies[backend])

    async def stored(self, body: bytes) -> Mapping[str, int]:
        """Hook 10: search the server's storage, without its driver."""
        search = self.server.product.stored
        return await asyncio.to_thread(search, self.server, body) if search is not None else {}

    def has(self, hook: str) -> bool:
        """Whether the hook is available.

        A server that was given by its URL cannot be killed, silenced or searched.
        """
        if (hook == "mute" and not self._uses_proxy) or (
            hook == "stored" and self.server.product.stored is None
        ):
            return False
        return super().has(hook) and (
            self.server.controllable or hook not in {"restart", "cut", "stored"}
        )

    @asynccontextmanager
    async def _held_back(self, proxy: Proxy) -> AsyncIterator[None]:
        await asyncio.to_thread(proxy.mute)
        try:
            yield
        finally:
            await asyncio.to_thread(proxy.unmute)

    @asynccontextmanager
    async def _silence(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self.server.pause)
        try:
            yield
        finally:
            await asyncio.to_thread(self.server.resume)
