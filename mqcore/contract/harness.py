"""What the kit must know about a backend: ten small hooks, of which one is required.

    class AcmeHarness(Harness):
        def make_backend(self) -> Backend:
            return AcmeBackend("acme://127.0.0.1:7777", AcmeOptions())

Each further hook lets the kit show more. Cases that need a missing hook are reported as *not
shown*.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mqcore.broker import Broker
from mqcore.clock import Clock, SystemClock
from mqcore.config.plugins import Plugins, default_plugins
from mqcore.config.settings import Settings, open_backend
from mqcore.messages.message import new_id
from mqcore.testing import VirtualClock, memory_url

if TYPE_CHECKING:
    from collections.abc import Mapping
    from contextlib import AbstractAsyncContextManager

    from mqcore.spi import Backend

__all__ = ["Harness", "MemoryHarness", "UrlHarness"]


_UNUSED_PORT = 1
"""The port of the TCP port service multiplexer, which is practically never in use."""


class Harness:
    """Derive from it and define `make_backend`; override what else your broker allows."""

    clock: Clock = SystemClock()
    """The clock that the backend uses; a `VirtualClock` where the backend takes one."""
    silence: float = 0.4
    """Seconds without a message after which a case concludes that none will arrive."""
    patience: float = 8.0
    """Seconds within which an expected message must have arrived."""

    at_once: int = 1
    """How many cases may run at the same time, each in its own thread.

    On a server cases mostly wait. Above 1 the fixture that returns the harness needs the scope of
    its module, and `make_backend` is called from several threads.
    """

    def make_backend(self) -> Backend:
        """Hook 1: return a new instance for the same broker, not yet open.

        It may be called any number of times.
        """
        raise TypeError(
            f"{type(self).__name__} does not define make_backend. "
            "Define it to return a new instance of your Backend"
        )

    def unique_name(self) -> str:
        """Hook 2: return a name that no run has used before.

        It names the queues and routers of a case.
        """
        return f"ct.{new_id()[:12]}"

    async def restart(self) -> None:
        """Hook 3: restart the server, as after a crash; return when it accepts connections."""

    def cut(self) -> AbstractAsyncContextManager[None] | None:
        """Hook 4: return a context manager during which the network to the broker is silent."""
        return None

    async def kill(self, backend: Backend) -> None:
        """Hook 5: end this instance as if its process had died.

        Where possible, nothing is sent to the broker.
        """
        await backend.close()

    async def advance(self, seconds: float) -> None:
        """Hook 6: let time pass. A `VirtualClock` is advanced; otherwise this waits."""
        if isinstance(self.clock, VirtualClock):
            await self.clock.advance(seconds)
        else:
            await asyncio.sleep(seconds)

    def server_version(self) -> str:
        """Hook 7: name the server for the report.

        By default the backend's capabilities name it.
        """
        return ""

    def make_unreachable(self) -> Backend:
        """Hook 8: return a new instance for an address without a server, such as a closed port."""
        raise NotImplementedError

    def mute(self, backend: Backend) -> AbstractAsyncContextManager[None]:
        """Hook 9: return a context manager that holds back the broker's answers to an instance.

        What the instance sends arrives. When the context ends, the held answers arrive too.
        """
        raise NotImplementedError

    async def stored(self, body: bytes) -> Mapping[str, int]:
        """Hook 10: count the messages with this body in the broker's storage, by place.

        A place is a key, queue, table or file; empty places are included. Where the storage cannot
        be searched for a body, all messages are counted.
        """
        raise NotImplementedError

    def broker(self) -> Broker | None:
        """Return a Broker on the same server, not yet open.

        None when the backend cannot be reached by a URL.
        """
        return None

    def has(self, hook: str) -> bool:
        """Whether the author has defined this hook."""
        return getattr(type(self), hook) is not getattr(Harness, hook)


class UrlHarness(Harness):
    """The harness for a URL and an installed plugin, as `mqcore contract run URL` uses it."""

    def __init__(
        self, url: str, *, plugins: Plugins | None = None, clock: Clock | None = None
    ) -> None:
        """Take the URL as `Broker.connect` does."""
        self.url = url
        self._plugins = plugins or default_plugins()
        self._settings = Settings()
        if clock is not None:
            self.clock = clock

    def make_backend(self) -> Backend:
        """Return an instance of the plugin that serves the URL's scheme."""
        return open_backend(self.url, self._settings, self._plugins, self.clock)

    def make_unreachable(self) -> Backend:
        """Return an instance whose URL names port 1 of the first host, where no server listens."""
        parts = urlsplit(self.url)
        user, at, address = parts.netloc.rpartition("@")
        host = urlsplit(f"//{address.partition(',')[0]}").hostname or ""
        unreachable = f"[{host}]:{_UNUSED_PORT}" if ":" in host else f"{host}:{_UNUSED_PORT}"
        url = parts._replace(netloc=f"{user}{at}{unreachable}").geturl()
        return open_backend(url, self._settings, self._plugins, self.clock)

    def has(self, hook: str) -> bool:
        """Whether a hook is available.

        A backend in this process, or a URL without a host, has no closed port.
        """
        if (
            hook == "make_unreachable"
            and type(self).make_unreachable is UrlHarness.make_unreachable
        ):
            return bool(urlsplit(self.url).hostname) and not self.make_backend().local
        return super().has(hook)


class MemoryHarness(UrlHarness):
    """`memory://` under a virtual clock: waiting takes no time."""

    silence = 0.05

    def __init__(self) -> None:
        """Use a new store."""
        super().__init__(memory_url("contract"), clock=VirtualClock())
