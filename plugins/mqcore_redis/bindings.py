"""The bindings of routers (G15): a sorted set of JSON in Redis. Core matches them.

They are needed at each routed publish. They come from memory after one look at their version.
"""

import json
from collections.abc import Collection, Iterable, Sequence
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
        self.temporary: set[str] = set()
        """Temporary queues that are bound. Redis ends an idle one without its bindings."""
        self.unreadable = 0
        """The number of records that mqcore did not write."""

    async def add(self, bindings: Sequence[Binding], temporary: Collection[str]) -> None:
        """Add all, or none and raise `TopologyMismatch` when a router would have two kinds.

        `temporary` are queues whose bindings are to be removed when they are found missing.
        """
        if not bindings:
            return
        texts = [_text(each, temporary=each.queue in temporary) for each in bindings]
        clash = await self._session.run("bind", self._keys, *texts)
        if clash:
            raise router_mismatch(*(word.decode() for word in clash))

    async def remove(self, bindings: Iterable[Binding]) -> None:
        """Remove bindings. Those that do not exist are ignored."""
        texts = [_text(each, temporary=kind) for each in bindings for kind in (False, True)]
        if texts:
            await self._session.run("unbind", self._keys, *texts)

    async def of(self, router: str | None = None) -> list[Binding]:
        """Return the bindings of one router, or all."""
        version = await self._session.command("GET", self._version_key)
        if version is None or version != self._version:
            texts = await self._session.command("ZRANGE", self._key, 0, -1)
            found = [_binding(text) for text in texts]
            self._known = [each[0] for each in found if each is not None]
            self.temporary = {each[0].queue for each in found if each is not None and each[1]}
            self.unreadable = len(found) - len(self._known)
            # It was read before the bindings: what changed in between is read again.
            self._version = version
        return [binding for binding in self._known if router is None or binding.router == router]

    async def forget(self, queue: str) -> None:
        """Remove the bindings to a queue."""
        await self.remove([binding for binding in await self.of() if binding.queue == queue])


def _text(binding: Binding, *, temporary: bool) -> str:
    mark = {"temporary": True} if temporary else {}
    return json.dumps(asdict(binding) | mark, sort_keys=True)


def _binding(text: bytes) -> tuple[Binding, bool] | None:
    """Read a record, and whether its queue is temporary.

    None for one that mqcore did not write, which must not stop all routing.
    """
    try:
        fields = json.loads(text)
        is_temporary = fields.pop("temporary", False) is True
        headers = tuple((name, value) for name, value in fields.pop("headers"))
        binding = Binding(**fields, headers=headers)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ConfigurationError):
        return None

    texts = [binding.router, binding.kind, binding.queue, binding.pattern, *chain(*headers)]
    return (binding, is_temporary) if all(isinstance(text, str) for text in texts) else None
