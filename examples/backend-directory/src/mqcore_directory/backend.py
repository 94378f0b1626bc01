"""The seam of mqcore over the folders: options, capabilities, outcomes, and the waiting."""

import asyncio
import os
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Annotated
from urllib.parse import quote, unquote, urlsplit

from pydantic import BaseModel, Field, SkipValidation

from mqcore import spi
from mqcore.spi import Capability, Level, Support
from mqcore_directory.folder import Folder

_TEN_YEARS = 10.0 * 365 * 86_400


class DirectoryOptions(spi.Options):
    """`poll`: seconds between two looks of a consumer that waits.

    `clock` is filled in by mqcore.
    """

    clock: Annotated[spi.Clock, SkipValidation] = Field(default_factory=spi.SystemClock, repr=False)
    poll: float = Field(default=0.05, gt=0, le=0.25)


class DirectoryBackend(spi.Backend):
    """One user of a folder."""

    scheme = "dir"
    spi_version = 1
    Options = DirectoryOptions

    def __init__(self, url: str, options: BaseModel) -> None:
        super().__init__(url, options)
        parts = urlsplit(url)
        if not isinstance(options, DirectoryOptions) or parts.netloc or not parts.path.strip("/"):
            raise spi.ConfigurationError(
                "the URL of a folder is dir:// and an absolute path: dir:///var/spool/shop"
            )
        self.root, self.clock, self.poll = Path(unquote(parts.path)), options.clock, options.poll
        supports = {
            Capability.DELAY: Support(
                Level.EMULATED, {"granularity": self.poll + 0.05, "max": _TEN_YEARS}
            ),
            Capability.PRIORITY: Support(Level.NATIVE, {"levels": 11}),
            Capability.EXPIRY: Support(Level.EMULATED, {"sweep": False}),
            Capability.LEASE: Support(Level.NATIVE),
            Capability.DURABLE: Support(Level.NATIVE, {"fsync": False}),
            Capability.ORDER: Support(
                Level.NATIVE, {"release_in_place": True, "after_delay": "end"}
            ),
        }
        self._capabilities = spi.Capabilities(
            "directory", "files in a folder", spi.Durability.PROCESS, supports
        )
        self._open = False
        self.subscriptions: set[DirectorySubscription] = set()
        self._temporary: list[tuple[Folder, IO[bytes]]] = []

    async def open(self, lost: Callable[[Exception], None]) -> spi.Capabilities:  # noqa: ARG002 - a folder is never lost
        self.root.mkdir(parents=True, exist_ok=True)
        self._open = True
        for path in self.root.glob("q-*"):
            folder = self.folder(unquote(path.name[2:]))
            if folder.spec().role == "temporary" and not folder.used():
                self._remove(folder)  # its owner has died
        return self._capabilities

    async def close(self) -> None:
        for subscription in list(self.subscriptions):
            await subscription.close()
        for folder, file in self._temporary:
            file.close()
            self._remove(folder)
        self._temporary, self._open = [], False

    async def declare(self, queues: Sequence[spi.QueueSpec]) -> None:
        for spec in queues:
            if spec.durability is not None:
                self._capabilities.require_durability(spec.durability)
            self._compare(spec)
        for spec in queues:
            folder = self.folder(spec.name)
            if not folder.path.exists() and (owner := folder.create(spec)) is not None:
                self._temporary.append((folder, owner))
            self._compare(spec)

    async def publish(
        self,
        batch: Sequence[spi.Outgoing],
        *,
        timeout: float,  # noqa: ARG002 - files are quick
    ) -> Sequence[spi.Outcome]:
        return [self.store(out) or spi.STORED for out in batch]

    async def subscribe(self, queue: str, *, prefetch: int, lease: float) -> spi.Subscription:
        return DirectorySubscription(self, self.folder(queue), prefetch, lease)

    def classify(self, error: Exception) -> spi.ErrorKind:
        if isinstance(error, spi.QueueNotFound | FileNotFoundError):
            return spi.ErrorKind.NOT_FOUND
        if isinstance(error, PermissionError):
            return spi.ErrorKind.DENIED
        return (
            spi.ErrorKind.TRANSIENT
            if isinstance(error, spi.ConnectionLost | OSError)
            else spi.ErrorKind.PERMANENT
        )

    async def renew(self, queue: str, receipts: Sequence[bytes], lease: float) -> Sequence[bool]:
        now, folder = self.clock.now(), self.folder(queue)
        held = [folder.held(receipt, now) for receipt in receipts]
        for path in held:
            with suppress(FileNotFoundError):
                os.utime(path or "", ns=(int((now + lease) * 1e9),) * 2)
        return [path is not None for path in held]

    async def delete(self, queue: str, *, if_empty: bool = False) -> bool:
        self.folder(queue).spec()  # raises where there is none
        family = [
            one
            for name in (queue, spi.quarantine_of(queue))
            if (one := self.folder(name)).path.exists()
        ]
        if if_empty and any(
            next(part.iterdir(), None) for one in family for part in (one.ready, one.leased)
        ):
            return False
        for one in family:
            self._remove(one)
        return True

    async def alter(self, queue: str, settings: spi.Alterations) -> None:
        self.folder(queue).alter(settings)  # raises where there is none

    def store(self, out: spi.Outgoing) -> spi.Failed | None:
        """Store one message, of a publish or of a Move; None when that is done."""
        if not isinstance(out.to, str) or out.delay > _TEN_YEARS:
            return spi.Failed(
                spi.ErrorKind.PERMANENT,
                f"to {out.to} after {out.delay:g} s: no routers, no ten years",
            )
        folder = self.folder(out.to)
        try:
            folder.put(out, self.clock.now())
        except (OSError, ValueError) as error:  # it lets others of the batch be
            return spi.Failed(self.classify(error), f"queue {out.to!r}: {error}", error)
        return None

    def folder(self, queue: str) -> Folder:
        """Return a queue's folder, there or not.

        Raises `ConnectionLost` when this instance is closed.
        """
        if not self._open:
            raise spi.ConnectionLost(f"the folder {self.root} is closed; open it first")
        return Folder(self.root / f"q-{quote(queue, safe='')}")

    def _compare(self, spec: spi.QueueSpec) -> None:
        with suppress(FileNotFoundError):
            spi.check_spec(self.folder(spec.name).spec(), spec)

    def _remove(self, folder: Folder) -> None:
        gone = self.root / f".{spi.new_id()}"
        with suppress(OSError):  # it has gone already
            folder.path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)


class DirectorySubscription(spi.Subscription):
    """One consumer: it looks, and looks again after a while."""

    def __init__(
        self, backend: DirectoryBackend, folder: Folder, prefetch: int, lease: float
    ) -> None:
        self._backend, self._folder, self._prefetch, self._lease = backend, folder, prefetch, lease
        self._user = folder.use()
        self._held: set[bytes] = set()
        self._closed = asyncio.Event()
        backend.subscriptions.add(self)

    async def receive(self, limit: int, timeout: float) -> Sequence[spi.Delivery]:
        if self._closed.is_set():
            raise spi.ConnectionLost(
                f"the subscription of {self._folder.path} is closed; subscribe again"
            )
        await asyncio.sleep(
            0
        )  # a consumer that always finds something must not keep the loop for itself
        clock = self._backend.clock
        deadline = clock.monotonic() + timeout
        while not self._closed.is_set():
            claimed = self._claim(limit)
            left = deadline - clock.monotonic()
            if claimed or left <= 0:
                # from claim to return there is no await: a cancelled call has claimed nothing
                return claimed
            with suppress(TimeoutError):
                async with clock.timeout(min(left, self._backend.poll)):
                    await self._closed.wait()
        return []

    def _claim(self, limit: int) -> list[spi.Delivery]:
        now, folder, claimed = self._backend.clock.now(), self._folder, list[spi.Delivery]()
        Path(self._user.name).stat()  # raises when the queue was deleted
        self._held = {receipt for receipt in self._held if folder.held(receipt, now)}
        room = min(limit, self._prefetch - len(self._held))
        for name in folder.names(now):
            if len(claimed) < room and (delivery := folder.claim(name, self._lease, now)):
                claimed.append(delivery)
        self._held.update(delivery.receipt for delivery in claimed)
        return claimed

    async def settle(
        self,
        batch: Sequence[spi.Settlement],
        *,
        timeout: float,  # noqa: ARG002 - as publish
    ) -> Sequence[spi.Settled]:
        return [self._settle(item) for item in batch]

    def _settle(self, item: spi.Settlement) -> spi.Settled:
        path = self._folder.held(item.receipt, self._backend.clock.now())
        if path is None:
            return spi.STALE
        if isinstance(item, spi.Move) and (failed := self._backend.store(item.to)):
            return failed
        try:
            if isinstance(item, spi.Release):
                self._folder.give_back(path.name, lost=False)
            else:
                path.unlink()
        except FileNotFoundError:
            return spi.STALE  # the lease has ended in this very moment
        return spi.DONE

    async def close(self) -> None:
        self._closed.set()
        self._backend.subscriptions.discard(self)
        for receipt in self._held:
            with suppress(OSError):
                self._folder.give_back(receipt.decode(), lost=True)
        with suppress(OSError):
            Path(self._user.name).unlink()  # noqa: ASYNC240 - a local file, as all of them
        self._user.close()
