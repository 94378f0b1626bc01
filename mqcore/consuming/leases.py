"""Claims are renewed while they are held, whatever the event loop is doing (G5).

Where a backend has LEASE, a claim ends by itself. A handler may block the application's loop for
longer than that, so renewal runs in a thread, with a loop and a backend instance of its own:
receipts are valid on any instance. Under a virtual clock time does not pass by itself, so the same
work is done by a task in the caller's loop.
"""

from __future__ import annotations

import asyncio
import math
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mqcore.connection.forks import close_in_children
from mqcore.log import log
from mqcore.spi import Backend, SupportsRenew

if TYPE_CHECKING:
    from collections.abc import Callable

    from mqcore.clock import Clock

__all__ = ["LeaseKeeper"]


@dataclass(slots=True)
class _Claim:
    """One held claim.

    `until` (monotonic time) is when renewal ends although the claim is held: the time limit of its
    handler has passed.
    """

    queue: str
    lease: float
    lost: Callable[[], None]
    until: float | None = None


class LeaseKeeper:
    """Renews every claim until it is dropped, each third of the shortest lease.

    Calls the holder of a lost claim on the holder's event loop.
    """

    def __init__(self, make_backend: Callable[[], Backend], own: Backend, clock: Clock) -> None:
        """`make_backend` makes the thread's backend; `own` is the caller's, for a virtual clock."""
        self._make_backend = make_backend
        self._own = own
        self._clock = clock
        self._claims: dict[bytes, _Claim] = {}
        self._loop = asyncio.get_running_loop()
        self._every = math.inf
        self._changed = threading.Event()
        self._stopped = False
        self._is_doubtful = False
        """Whether the thread's connection may be lost, which it does not notice while it waits."""
        self._thread: threading.Thread | None = None
        self._task: asyncio.Task[None] | None = None

    def hold(self, receipt: bytes, queue: str, lease: float, lost: Callable[[], None]) -> None:
        """Keep this claim alive from now on.

        `lost` is called at most once, on the caller's loop.
        """
        self._claims[receipt] = _Claim(queue, lease, lost)
        sooner = lease / 3 < self._every
        if sooner:
            self._every = lease / 3
        if self._clock.real:
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run_thread, name="mqcore-leases", daemon=True
                )
                self._thread.start()
            elif sooner or self._is_doubtful:
                self._changed.set()
        elif self._task is None or self._task.done() or sooner:
            if self._task is not None:
                self._task.cancel()
            self._task = asyncio.create_task(self._run_here())

    def limit(self, receipt: bytes, until: float) -> None:
        """Renew this claim until `until` (monotonic time) at most.

        A handler that blocks everything must not keep it indefinitely.
        """
        if (claim := self._claims.get(receipt)) is not None:
            claim.until = until

    def drop(self, receipt: bytes) -> None:
        """Stop renewing a claim: it is settled or lost."""
        self._claims.pop(receipt, None)

    def connection_lost(self) -> None:
        """The consumers' connection was lost, and ours may be as well.

        While claims are held the next renewal shows it. Otherwise our connection is closed until
        one is held: SQLite cannot open a file again whose log was deleted while another connection
        of the process has it open.
        """
        if not self._claims:
            self._is_doubtful = True
            self._changed.set()

    async def close(self) -> None:
        """Stop renewing.

        The thread ends by itself within one call of its backend; it is a daemon and never holds up
        an exit.
        """
        self._claims.clear()
        self._stopped = True
        self._changed.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run_here(self) -> None:
        while self._claims:
            await self._clock.sleep(self._every)
            try:
                await self._renew(self._own)
            except Exception as error:  # noqa: BLE001 - whatever a driver raises: try again while there is time left
                log().warning("renewing leases failed: %s: %s", type(error).__name__, error)

    def _run_thread(self) -> None:
        failures = 0
        with asyncio.Runner() as runner:
            close_in_children(runner.get_loop())
            while not self._stopped:
                backend = None
                if self._is_doubtful and not self._claims:
                    self._wait(self._every)
                    continue
                self._is_doubtful = False
                try:
                    backend = self._make_backend()
                    runner.run(
                        backend.open(
                            lambda error: log().debug("the lease connection broke: %s", error)
                        )
                    )
                    while not self._stopped:
                        if not failures:  # after a failure the claims are overdue already
                            self._wait(self._every)
                        if self._is_doubtful:
                            break
                        runner.run(self._renew(backend))
                        failures = 0
                except Exception as error:  # noqa: BLE001 - whatever a driver raises: open it again while there is time left
                    if not self._stopped:
                        log().warning(
                            "renewing leases failed, connecting again: %s: %s",
                            type(error).__name__,
                            error,
                        )
                        self._wait(min(self._every / 10 * 2 ** min(failures, 10), self._every))
                        failures += 1
                finally:
                    # A driver that fails to close must not end the renewal (G5).
                    with suppress(Exception):
                        if backend is not None:
                            runner.run(backend.close())

    def _wait(self, delay: float) -> None:
        """Wait in the thread, until `close` or a shorter lease ends it."""
        self._changed.wait(delay)
        self._changed.clear()

    async def _renew(self, backend: Backend) -> None:
        """Renew what is held, one call for each queue and lease."""
        now = self._clock.monotonic()
        groups: dict[tuple[str, float], list[bytes]] = {}
        for receipt, claim in list(self._claims.items()):
            if claim.until is None or now < claim.until:
                groups.setdefault((claim.queue, claim.lease), []).append(receipt)
            elif now >= claim.until + claim.lease:
                self._report(receipt)  # not renewed for a whole lease: lost by now

        if not isinstance(backend, SupportsRenew):
            return
        for (queue, lease), receipts in groups.items():
            kept = await backend.renew(queue, receipts, lease)
            for receipt, ok in zip(receipts, kept, strict=True):
                if not ok:
                    self._report(receipt)

    def _report(self, receipt: bytes) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._lost, receipt)

    def _lost(self, receipt: bytes) -> None:
        """Report a lost claim on the holder's loop, unless it was settled meanwhile."""
        if (claim := self._claims.pop(receipt, None)) is not None:
            claim.lost()
