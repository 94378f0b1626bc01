"""What the kit must know of a backend: ten small hooks, of which one is needed.

    class AcmeHarness(Harness):
        def make_backend(self) -> Backend:
            return AcmeBackend("acme://127.0.0.1:7777", AcmeOptions())

Each further hook lets the kit show more. Cases that need a hook which is not there are counted as
*not shown*, by name.
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


_NOBODY = 1
"""The port of the TCP port service multiplexer, which no machine runs."""


class Harness:
    """Derive from it and give `make_backend`; override what else your broker allows."""

    clock: Clock = SystemClock()
    """The clock that the backend goes by; a `VirtualClock` where the backend takes one."""
    silence: float = 0.4
    """Seconds in which nothing must come before a case believes that nothing will."""
    patience: float = 8.0
    """Seconds within which something must have come."""

    at_once: int = 1
    """How many cases may run at the same time, each in a thread of its own: on a server they mostly wait. Above 1 the fixture that
    returns the harness has the scope of its module, and `make_backend` is called from several
    threads.
    """

    def make_backend(self) -> Backend:
        """Hook 1: return a new instance for the same broker, not yet open.

        Must be callable any number of times.
        """
        msg = (
            f"{type(self).__name__} has no make_backend: return a new instance of your Backend "
            "there"
        )
        raise TypeError(msg)

    def unique_name(self) -> str:
        """Hook 2: return a name that no run has used before; queues and routers of the case are called by it."""
        return f"ct.{new_id()[:12]}"

    async def restart(self) -> None:
        """Hook 3: restart the broker's server, as after a crash, and return when it accepts connections."""

    def cut(self) -> AbstractAsyncContextManager[None] | None:
        """Hook 4: return a context manager inside of which the network to the broker is silent."""
        return None

    async def kill(self, backend: Backend) -> None:
        """Hook 5: end this instance as if its process had died, without a word to the broker where that can be done."""
        await backend.close()

    async def advance(self, seconds: float) -> None:
        """Hook 6: let time pass. With a `VirtualClock` as `clock` it is moved, else this waits."""
        if isinstance(self.clock, VirtualClock):
            await self.clock.advance(seconds)
        else:
            await asyncio.sleep(seconds)

    def server_version(self) -> str:
        """Hook 7: name the server for the report; by default what the backend's capabilities say."""
        return ""

    def make_unreachable(self) -> Backend:
        """Hook 8: return a new instance for an address at which nobody listens, such as a closed port."""
        raise NotImplementedError

    def mute(self, backend: Backend) -> AbstractAsyncContextManager[None]:
        """Hook 9: return a context manager inside of which the broker's answers to an instance are held back.

        What the instance sends arrives. When the context ends, the answers that were held back
        arrive too.
        """
        raise NotImplementedError

    async def stored(self, body: bytes) -> Mapping[str, int]:
        """Hook 10: count the messages with this body in the broker's storage, by place: key, queue, table or file.

        Empty places are included. Where the storage cannot be searched for a body, all messages are
        counted.
        """
        raise NotImplementedError

    def broker(self) -> Broker | None:
        """Return a Broker on the same server, not yet open; None when the backend cannot be had by a URL."""
        return None

    def has(self, hook: str) -> bool:
        """Whether a hook was given by the author."""
        return getattr(type(self), hook) is not getattr(Harness, hook)


class UrlHarness(Harness):
    """The harness of everything that a URL and an installed plugin reach: what `mqcore contract run URL` uses."""

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
        """Return an instance by the plugin that serves the URL's scheme."""
        return open_backend(self.url, self._settings, self._plugins, self.clock)

    def make_unreachable(self) -> Backend:
        """Return an instance whose URL names the first host's port 1, where nobody listens."""
        parts = urlsplit(self.url)
        user, at, address = parts.netloc.rpartition("@")
        host = urlsplit(f"//{address.partition(',')[0]}").hostname or ""
        nobody = f"[{host}]:{_NOBODY}" if ":" in host else f"{host}:{_NOBODY}"
        url = parts._replace(netloc=f"{user}{at}{nobody}").geturl()
        return open_backend(url, self._settings, self._plugins, self.clock)

    def has(self, hook: str) -> bool:
        """Whether a hook was given.

        What is in this process, and what has no host, has no closed port.
        """
        if (
            hook == "make_unreachable"
            and type(self).make_unreachable is UrlHarness.make_unreachable
        ):
            return bool(urlsplit(self.url).hostname) and not self.make_backend().local
        return super().has(hook)


class MemoryHarness(UrlHarness):
    """`memory://` under a virtual clock: waiting takes no time, so silence is believed at once."""

    silence = 0.05

    def __init__(self) -> None:
        """Take a store of one's own."""
        super().__init__(memory_url("contract"), clock=VirtualClock())
