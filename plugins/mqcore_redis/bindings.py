"""The bindings of routers (G15): a sorted set of JSON in Redis. Core matches them.

They are needed at each routed publish. They come from memory after one look at their version.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import chain

from mqcore.spi import Binding, ConfigurationError, router_mismatch
from mqcore_redis.session import Session

__all__ = ["Bindings"]


class Bindings:
    """The bindings of one session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._keys = self._key, self._version_key = session.keys.bindings
        self._version: bytes | None = None
        self._known: list[Binding] = []
        self.unreadable = 0
        """The number of records that mqcore did not write."""

    async def add(self, bindings: Sequence[Binding]) -> None:
        """Add all, or none and raise `TopologyMismatch` when a router would have two kinds."""
        if not bindings:
            return
        clash = await self._session.run("bind", self._keys, *map(_text, bindings))
        if clash:
            raise router_mismatch(*(word.decode() for word in clash))

    async def remove(self, bindings: Iterable[Binding]) -> None:
        """Remove bindings. Those that do not exist are ignored."""
        texts = [_text(binding) for binding in bindings]
        if texts:
            await self._session.run("unbind", self._keys, *texts)

    async def of(self, router: str | None = None) -> list[Binding]:
        """Return the bindings of one router, or all."""
        version = await self._session.command("GET", self._version_key)
        if version is None or version != self._version:
            texts = await self._session.command("ZRANGE", self._key, 0, -1)
            found = [_binding(text) for text in texts]
            self._known = [binding for binding in found if binding is not None]
            self.unreadable = len(found) - len(self._known)
            # It was read before the bindings: what changed in between is read again.
            self._version = version
        return [binding for binding in self._known if router is None or binding.router == router]

    async def forget(self, queue: str) -> None:
        """Remove the bindings to a queue."""
        await self.remove([binding for binding in await self.of() if binding.queue == queue])


def _text(binding: Binding) -> str:
    return json.dumps(asdict(binding), sort_keys=True)


def _binding(text: bytes) -> Binding | None:
    """Read a record; None for one that mqcore did not write, which must not stop all routing."""
    try:
        fields = json.loads(text)
        headers = tuple((name, value) for name, value in fields.pop("headers"))
        binding = Binding(**fields, headers=headers)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ConfigurationError):
        return None

    texts = [binding.router, binding.kind, binding.queue, binding.pattern, *chain(*headers)]
    return binding if all(isinstance(text, str) for text in texts) else None
