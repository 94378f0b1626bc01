"""`Writer`: makes changes in the store, and publishes what they have put into the outbox.

    apply ──► all changes of a loop turn in one transaction ──► outcomes
                          └── the keys of their outbox entries ──► published ──► Sent

What cannot be published stays in the outbox, and a relay publishes it later.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from mqcore.errors import MqcoreError
from mqcore.log import log
from mqcore.tasks.model.changes import Add, Begin, Change, More, Progress, Sent, Spread
from mqcore.tasks.model.nodes import Kind
from mqcore.tasks.store.seam import OutboxEntry, Pending, StoreError
from mqcore.tasks.transitions.rows import message_key

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence

    from mqcore.tasks.model.outcomes import Outcome
    from mqcore.tasks.store.seam import TaskStore

__all__ = ["CLOSE", "Writer"]

_Batch = list[tuple["Sequence[Change]", "asyncio.Future[Sequence[Outcome]]"]]
CLOSE = 5.0
"""Seconds that a store has to answer what is under way when the broker is closed."""
_AT_ONCE = 500
"""Messages that are published side by side."""
_UNANSWERED = (
    "the task store had not answered when the connection was closed, so it is not known whether "
    "the change was made. Look at the task on another connection, by tasks.job(id)"
)


class Writer:
    """All changes of one connection go through it."""

    def __init__(
        self,
        store: TaskStore,
        publish: Callable[[Pending], Awaitable[None]],
        changed: Callable[[Sequence[Change]], None],
    ) -> None:
        """`publish` publishes the message of an entry; `changed` is called after each commit."""
        self.store = store
        self._publish = publish
        self._changed = changed
        self._next: _Batch = []
        self._published: asyncio.Event | None = None
        self._running: set[asyncio.Task[None]] = set()

    async def apply(self, *changes: Change) -> Sequence[Outcome]:
        """Make the changes in one transaction; return when what they published is published.

        Raises `StoreError` when it is not known whether they were made.
        """
        answered, published = self.put(*changes)
        outcomes = await answered
        if not all(isinstance(change, (Begin, Progress, Sent)) for change in changes):
            await published.wait()
        return outcomes

    def put(self, *changes: Change) -> tuple[asyncio.Future[Sequence[Outcome]], asyncio.Event]:
        """Make the changes as `apply` does. Return their answer, and what waits for publishing."""
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[Sequence[Outcome]] = loop.create_future()
        if self._published is None:
            self._published = asyncio.Event()
            loop.call_soon(self._flush)
        self._next.append((changes, answered))
        return answered, self._published

    def _flush(self) -> None:
        batch, self._next = self._next, []
        published, self._published = self._published, None
        if published is not None:
            self._spawn(self._write(batch, published))

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _write(self, batch: _Batch, published: asyncio.Event) -> None:
        try:
            keys = await self._commit(batch)
            added = _added(batch)
            known = [added[key] for key in keys if key in added]
            await self.publish_entries(known)
            await self.publish([key for key in keys if key not in added])
        except MqcoreError as error:
            log().warning("tasks wait in the outbox for the relay: %s", error)
        except BaseException as error:
            # A cancellation is that of `close`. It is not the callers'.
            for _, answered in batch:
                if not answered.done():
                    answered.set_exception(
                        StoreError(_UNANSWERED)
                        if isinstance(error, asyncio.CancelledError)
                        else error
                    )
            raise
        finally:
            published.set()

    async def _commit(self, batch: _Batch) -> Sequence[str]:
        """Commit a batch, and answer each caller. Return the keys of the outbox entries."""
        changes = [change for each, _ in batch for change in each]
        try:
            applied = await self.store.apply(changes)
        except Exception as error:  # noqa: BLE001 - each caller gets it
            if len(batch) > 1 and not isinstance(error, StoreError):
                # One wrong change must not fail the others, and nothing was committed.
                return [key for each in batch for key in await self._commit([each])]
            for _, answered in batch:
                if not answered.done():
                    answered.set_exception(error)
            return ()

        start = 0
        for each, answered in batch:
            if not answered.done():
                answered.set_result(applied.outcomes[start : start + len(each)])
            start += len(each)
        try:
            self._changed(changes)
        except Exception:  # noqa: BLE001 - what was committed must be published all the same
            log().exception("tasks: a change could not be noticed in this process")
        return applied.keys

    async def publish(self, keys: Sequence[str]) -> None:
        """Publish what the outbox has under these keys, slice by slice."""
        waiting = list(keys)
        while waiting:
            waiting = await self.publish_entries(await self.store.entries(waiting))

    async def publish_entries(self, pending: Sequence[Pending]) -> list[str]:
        """Publish these entries; return the keys of further ones, where they were slices."""
        keys: list[str] = []
        messages = [each for each in pending if each.entry.start is None]
        for start in range(0, len(messages), _AT_ONCE):
            await self._publish_messages(messages[start : start + _AT_ONCE])

        for each in pending:
            if each.entry.start is not None:
                change = Spread(each.entry.node, each.entry.start)
                applied = await self.store.apply([change])
                self._changed([change])
                keys += applied.keys
        return keys

    async def _publish_messages(self, pending: Sequence[Pending]) -> None:
        results = await asyncio.gather(
            *(self._publish(each) for each in pending), return_exceptions=True
        )
        errors = [error for error in results if isinstance(error, BaseException)]
        sent = [
            each.entry.key
            for each, error in zip(pending, results, strict=True)
            if not isinstance(error, BaseException)
        ]
        if sent:
            self._spawn(self._remove(sent))
        if errors:
            log().warning(
                "%d of %d messages of tasks wait in the outbox for the relay: %s",
                *(len(errors), len(pending), errors[0]),
            )

    async def _remove(self, keys: Sequence[str]) -> None:
        try:
            await self.apply(Sent(keys))
        except MqcoreError as error:  # the relay publishes them again, under the same ids
            log().warning("outbox entries of tasks could not be removed: %s", error)

    async def close(self, limit: float = CLOSE) -> None:
        """Wait for what is under way, `limit` seconds at most: the store may not answer (G13).

        Callers that wait longer get a `StoreError`.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + limit
        while (self._running or self._next) and loop.time() < until:
            await asyncio.sleep(0)
            if self._running:
                await asyncio.wait(self._running, timeout=max(until - loop.time(), 0))

        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


def _added(batch: _Batch) -> dict[str, Pending]:
    """Return the outbox entries of tasks that this batch has added, if they were released at once.

    They need not be read again. The times of a delay and an expiry are the store's.
    """
    rows = (
        row
        for changes, _ in batch
        for change in changes
        if isinstance(change, (Add, More))
        for row in change.rows
        if row.kind is Kind.TASK and row.ttl is None and row.delay <= 0 and not row.unique
    )
    return {(key := message_key(row)): Pending(OutboxEntry(key, row.id), row) for row in rows}
