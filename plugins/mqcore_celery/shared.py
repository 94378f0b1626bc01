"""One broker for all connections of a process to one place, on a loop in a thread.

kombu opens a connection for each purpose, ten in a pool. They are all served by one `mqcore.Broker`
for each process, URL and options. After a fork a child begins with none.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from mqcore import Broker, Capability, ConnectionLost, Limits, MqcoreError, Queue
from mqcore.sync.loop_thread import LoopThread
from mqcore_celery.consuming import requeuing

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from mqcore import Consumer, Received, Router
    from mqcore.events import Event
    from mqcore_celery.inbox import Inbox
    from mqcore_celery.options import TransportOptions

__all__ = ["SharedBroker", "acquire"]

R = TypeVar("R")
_PATIENCE = 0.15
"""Seconds within which a queue shows a message that it has."""
_log = logging.getLogger("mqcore.celery")
_lock = threading.Lock()
_brokers: dict[tuple[str, TransportOptions], SharedBroker] = {}
_opening: dict[tuple[str, TransportOptions], threading.Lock] = {}
"""A lock for each place: one that does not answer holds up no connection to another one."""


def acquire(url: str, options: TransportOptions) -> SharedBroker:
    """Return the broker of this place, open. Raises what prevents the connection.

    Each call needs a `release` later; the last one closes the broker.
    """
    place = url, options
    with _lock:
        opening = _opening.setdefault(place, threading.Lock())
    with opening:
        with _lock:
            shared = _brokers.get(place)
            if shared is not None:
                shared.check()
                shared.users += 1
                return shared

        shared = SharedBroker(url, options)
        shared.open()
        with _lock:
            shared.users = 1
            _brokers[place] = shared
        return shared


class SharedBroker:
    """A broker and its loop. The methods are called from any thread."""

    def __init__(self, url: str, options: TransportOptions) -> None:
        """Read the URL. Raises `ConfigurationError` and `BackendNotFound`."""
        self.options = options
        self.users = 0
        self.queues: dict[str, Queue[bytes]] = {}
        """The queues that this process has declared, by their names for mqcore."""
        self.routers: dict[str, Router[bytes]] = {}
        """The exchanges that this process has used, without bindings: the broker has those."""
        self.inboxes: set[Inbox] = set()
        """Those that learn when the connection is lost, where it is the lease."""
        self.topology = asyncio.Lock()
        """One change of queues and bindings at a time, in their order."""
        self.broker = Broker(url, limits=Limits(payload=options.max_payload))
        self._key = url, options
        self._pid = os.getpid()
        self._loop = LoopThread(self.broker.close)
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()
        """Each waits until a message of `get` is settled, however long that takes."""

    def open(self) -> None:
        """Connect. Raises what prevents it, and leaves nothing behind."""
        try:
            self._loop.run(self.broker.open())
        except BaseException:
            self._loop.close()
            raise
        if not self.broker.capabilities.has(Capability.LEASE):
            self.broker.events.listen(self._lost, lambda name: name == "connection.lost")

    def check(self) -> None:
        """Raise `ConnectionLost` while the broker is away, so that kombu waits and tries again."""
        health = self.broker.health()
        if not health.connected:
            raise ConnectionLost(f"the broker is away ({health.error or 'connecting again'})")

    @property
    def is_ours(self) -> bool:
        """Whether it belongs to this process; after a fork its thread is the parent's."""
        return self._pid == os.getpid()

    def release(self) -> None:
        """Give it back; the last user closes it."""
        if not self.is_ours:
            return
        with _lock:
            self.users -= 1
            is_last = self.users == 0
            if is_last:
                _brokers.pop(self._key, None)
        if is_last:
            try:
                self._loop.close()
            except MqcoreError as error:
                _log.warning("closing the broker failed: %s", error)

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run on the loop, and wait for the result."""
        return self._loop.run(work)

    def post(self, call: Callable[[], object]) -> None:
        """Call on the loop soon, without waiting; a burst of calls wakes the loop once."""
        self._loop.post(call)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run in the background; on the loop. An error is logged."""
        self._start(work, self._tasks)

    def _start(self, work: Coroutine[Any, Any, Any], tasks: set[asyncio.Task[None]]) -> None:
        task = asyncio.get_running_loop().create_task(_logged(work))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    async def get(self, queue: str) -> Received[bytes] | None:
        """Return the next message of a queue, if it has one now; on the loop.

        Its consumer is closed when the message is settled.
        """
        consumer = self.broker.consume(
            self.queues.get(queue, queue),
            prefetch=1,
            retry=requeuing(self.options.max_requeues),
            lease=self.options.lease,
            after_crash="count",
        )
        try:
            received = await consumer.get(timeout=_PATIENCE)
            await consumer.stop()
        except BaseException:  # also Ctrl-C: what came for it must go back to the queue
            self.spawn(consumer.close())
            raise

        if received is None:
            await consumer.close()
        else:
            self._start(self._close_after(consumer, received), self._closing)
        return received

    async def finished(self, limit: float | None = None) -> None:
        """Wait for what runs in the background now, `limit` seconds at most; on the loop.

        Messages that are not settled yet are not waited for.
        """
        if self._tasks:
            await asyncio.wait(tuple(self._tasks), timeout=limit)

    async def _close_after(self, consumer: Consumer[bytes], received: Received[bytes]) -> None:
        await received.held.wait_settled()
        await consumer.close()

    def _lost(self, event: Event) -> None:
        """The connection was the lease, so all that is held is lost: kombu must begin again."""
        error = ConnectionLost(
            f"the connection to the broker is lost ({event.fields.get('error')})"
        )
        for inbox in list(self.inboxes):
            inbox.fail(error)


async def _logged(work: Coroutine[Any, Any, Any]) -> None:
    try:
        await work
    except MqcoreError as error:
        _log.warning("%s: %s", type(error).__name__, error)
    except Exception:  # noqa: BLE001 - whatever it is, no caller waits for this task
        _log.exception("mqcore's transport for Celery failed in the background")


def _forget() -> None:
    """A child has none of its parent's brokers, and a lock that another thread held stays so."""
    global _lock  # noqa: PLW0603 - a lock cannot be released for a thread that does not exist
    _lock = threading.Lock()
    _brokers.clear()
    _opening.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
