"""The seam over the scripts: one session from `open` to `close`, and what each request asks of it."""

from collections.abc import Callable, Sequence

from pydantic import BaseModel
from redis.exceptions import NoPermissionError, ResponseError

from mqcore.spi import (
    Backend,
    Binding,
    Capabilities,
    ConfigurationError,
    ConnectionLost,
    Delivery,
    Entry,
    ErrorKind,
    Outcome,
    Outgoing,
    QueueCounts,
    QueueSpec,
    Subscription,
)
from mqcore_redis.batches import BYTES, MESSAGES
from mqcore_redis.classify import kind_of
from mqcore_redis.keys import Keys
from mqcore_redis.opened import Opened, entries
from mqcore_redis.options import RedisOptions, read
from mqcore_redis.probe import RIGHTS, denied, probe
from mqcore_redis.session import Session

__all__ = ["RedisBackend"]


class RedisBackend(Backend):
    """One user of a Redis server, of the master that Sentinel names, or of a cluster."""

    scheme = ("redis", "rediss", "unix", "redis+sentinel", "redis+cluster")
    Options = RedisOptions

    def __init__(self, url: str, options: BaseModel) -> None:
        super().__init__(url, options)
        if not isinstance(options, RedisOptions):
            raise ConfigurationError(f"the Redis backend takes RedisOptions, not {type(options).__name__}")
        self._options = options
        self._place = read(url, options)
        self._keys = Keys(options.prefix, options.tag, spread=self._place.kind == "cluster")
        self._open: Opened | None = None

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        """Connect, load the scripts and look at the server. Raises redis-py's exceptions, and `ConfigurationError`."""
        await self.close()
        session = Session(self._place, self._options, lost)
        try:
            await session.open()
            capabilities = await probe(session, self._options)
        except BaseException as error:
            await session.close()
            if isinstance(error, ResponseError) and denied(error):
                raise NoPermissionError(f"{error} (mqcore needs: {RIGHTS})", status_code="NOPERM") from error
            raise
        self._open = Opened(session, self._keys, self._options, capabilities)
        return capabilities

    async def close(self) -> None:
        """End the consumers and the temporary queues declared here. What is held comes back when its lease ends."""
        opened, self._open = self._open, None
        if opened is not None:
            await opened.close()

    async def declare(self, queues: Sequence[QueueSpec]) -> None:
        """Create what is missing. Raises `TopologyMismatch`, and `DurabilityUnavailable` for more than the server gives."""
        await self._now.declare(queues)

    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        """Store a batch, one script call for each queue and 500 messages; confirmed when the script has answered (G1)."""
        return await self._now.batches.publish(batch, timeout)

    async def subscribe(self, queue: str, *, prefetch: int, lease: float) -> Subscription:
        """Start to consume. Raises `QueueNotFound`."""
        return await self._now.subscribe(queue, prefetch, lease)

    def classify(self, error: Exception) -> ErrorKind:
        """Say what kind an exception of redis-py, or of ours, is."""
        return kind_of(error)

    async def renew(self, queue: str, receipts: Sequence[bytes], lease: float) -> Sequence[bool]:
        """Extend claims, whichever instance made them."""
        left = await self._now.run("renew", queue, round(lease * 1e6), *receipts) if receipts else []
        return [rest > 0 for rest in left]

    async def count(self, queues: Sequence[str] | None = None) -> Sequence[QueueCounts]:
        """Count the named queues, or all but quarantines and temporary ones."""
        return await self._now.count(queues)

    async def browse(self, queue: str, limit: int, after: str | None = None) -> Sequence[Entry]:
        """Show a page of what is ready, then of what is delayed. Raises `QueueNotFound`."""
        page: list[Entry] = []
        while len(page) < limit:
            start = (after or "r/0/").split("/")
            if len(start) != len(("kind", "score", "entry")) or start[0] not in {"r", "d"} or not start[1].isdigit():
                return page  # a key that nobody here has written is behind everything
            size = min(limit - len(page), MESSAGES)
            now, rows = await self._now.run("browse", queue, size, BYTES, *start)
            if not rows:
                return page
            page += entries(int(now), rows)
            after = page[-1].key
        return page

    async def take(self, queue: str, keys: Sequence[str], lease: float) -> Sequence[Delivery]:
        """Lease chosen entries. Raises `QueueNotFound`."""
        chosen = list(dict.fromkeys(key.rpartition("/")[2] for key in keys))
        return await self._now.lease("take", queue, lease, chosen)

    async def sweep(self, queue: str, limit: int, lease: float) -> Sequence[Delivery]:
        """Lease expired messages, wherever they stand. Raises `QueueNotFound`."""
        return await self._now.lease("sweep", queue, lease, [min(limit, MESSAGES)])

    async def purge(self, queue: str) -> int:
        """Remove what is ready or delayed. Raises `QueueNotFound`."""
        return int(await self._now.run("purge", queue, also=f"{queue}.again"))

    async def delete(self, queue: str, *, if_empty: bool = False, if_unused: bool = False) -> bool:
        """Remove a queue with its quarantine and bindings. Raises `QueueNotFound`."""
        return await self._now.delete(queue, if_empty=if_empty, if_unused=if_unused)

    async def bind(self, bindings: Sequence[Binding]) -> None:
        """Add bindings. Raises `TopologyMismatch`."""
        await self._now.bindings.add(bindings)

    async def unbind(self, bindings: Sequence[Binding]) -> None:
        """Remove bindings."""
        await self._now.bindings.remove(bindings)

    async def bindings(self, router: str | None = None) -> Sequence[Binding]:
        """Return the bindings of one router, or all."""
        return await self._now.bindings.of(router)

    @property
    def _now(self) -> Opened:
        if self._open is None:
            raise ConnectionLost(f"the connection to Redis at {self._place.shown} is closed; open it first")
        self._open.session.check()
        return self._open
