"""The names of keys: the queue, and what they hold.

    mq:{orders}:r      mq:{orders}.dlq:r      mq:{orders}.quarantine:r

In a cluster the part in braces decides the slot. A queue, its dead letters and its quarantine share
one, so a Move between them is one step. A script always gets the eleven keys of a queue together
and in this order, as `common.lua` expects them. `docs/backends/redis.md` explains them.
"""

__all__ = ["KINDS", "Keys"]

KINDS = ("q", "r", "m", "d", "l", "x", "a", "w", "in", "i0", "i1")
_EXTENSIONS = (".dlq", ".quarantine")


class Keys:
    """The keys under one prefix.

    With `tag` all queues share one slot. `spread` says that slots matter, because this is a
    cluster.
    """

    def __init__(self, prefix: str, tag: str | None = None, *, spread: bool = False) -> None:
        self._prefix, self._tag, self._spread = prefix, tag, spread
        self._known: dict[str, tuple[str, ...]] = {}
        self.queues = f"{prefix}:queues"
        self.bindings = (f"{prefix}:{{routes}}", f"{prefix}:{{routes}}:version")

    def of(self, queue: str) -> tuple[str, ...]:
        """Return the eleven keys of a queue."""
        found = self._known.get(queue)
        if found is None:
            base, extension = self._split(queue)
            stem = f"{self._prefix}:{{{base}}}{extension}"
            if self._tag is not None:
                stem = f"{self._prefix}:{{{self._tag}}}:{queue}"
            found = tuple(f"{stem}:{kind}" for kind in KINDS)
            if len(self._known) < 10_000:  # noqa: PLR2004 - beyond this many, names come from temporary queues
                self._known[queue] = found
        return found

    def one(self, queue: str, kind: str) -> str:
        """Return one key of a queue."""
        return self.of(queue)[KINDS.index(kind)]

    def group(self, queue: str) -> str:
        """Return a name for the queues that one call may touch together."""
        return self._split(queue)[0] if self._spread and self._tag is None else ""

    def handled(self, name: str) -> str:
        """Return the key of a message that a consumer with `once=` has handled."""
        return f"{self._prefix}:{{{self._tag or name}}}:handled:{name}"

    def kick(self, group: str) -> str:
        """Return the beginning of a key that is in the slot of a group."""
        return f"{self._prefix}:{{{self._tag or group}}}:kick"

    def _split(self, queue: str) -> tuple[str, str]:
        """Split a name into that of the work queue and its extension, for example `.quarantine`."""
        base = queue
        while base.endswith(_EXTENSIONS):
            base = base.rpartition(".")[0]
        return (base, queue.removeprefix(base)) if base else (queue, "")
