"""Runs a handler inside a transaction of the inbox, for consumers with `once=`.

    look for the id ─► middleware, time limit, handler ─► encode the reply
                                                       ─► record the id, commit ─► settle

It is around the middleware. So what decides about the message decides about the transaction, and a
middleware may use the session too. The inbox has a time limit of its own, because the time limit of
the handler is inside.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from mqcore.errors import ConfigurationError, MqcoreError
from mqcore.log import log
from mqcore.publishing.own_transaction import own_transaction
from mqcore.rules.redact import describe_error
from mqcore.rules.retry import Ending, HandlerResult
from mqcore.running.pinned import PinnedThread, current_thread
from mqcore.spi import Inbox, InboxEntry, Recorded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from mqcore.clock import Clock
    from mqcore.consuming.consumer import Received
    from mqcore.consuming.context import Context
    from mqcore.consuming.held import HeldDelivery
    from mqcore.consuming.replies import EncodedResult
    from mqcore.running.handlers import HandlerSpec
    from mqcore.running.threads import ThreadPool
    from mqcore.spi import Backend

    Prepare = Callable[
        [HeldDelivery, HandlerResult, object], tuple[HandlerResult, EncodedResult | None]
    ]

__all__ = ["Once", "OnceResult", "check_inbox", "opened_inbox"]

_LONGEST = 10.0
"""Seconds that one step of the inbox may take, or a third of the lease where that is shorter."""
_FORGET_EVERY = 60.0
"""Seconds between two removals of ids whose window has ended."""
_STEPS = 100
"""How many steps one removal takes at most."""


@dataclass(frozen=True, slots=True)
class OnceResult:
    """What the handler returned, and how its transaction ended."""

    value: object
    recorded: Recorded | None
    """None: it was rolled back, because the reply cannot be sent; `failed` says why."""
    reply: EncodedResult | None = None
    """The reply to a request, encoded before the commit."""
    failed: HandlerResult | None = None


class Once:
    """The transactions of one consumer."""

    def __init__(
        self, spec: HandlerSpec, window: float, inbox: Inbox, clock: Clock, pool: ThreadPool | None
    ) -> None:
        """`pool` has the threads of a blocking handler."""
        self._spec = spec
        self._window = window
        self._inbox = inbox
        self._clock = clock
        self._limit = min(_LONGEST, spec.lease / 3)
        self._pool = pool if inbox.has_sessions else None

    async def run(
        self,
        held: HeldDelivery,
        call: Callable[[Context], Awaitable[object]],
        prepare: Prepare,
        ctx: Context,
    ) -> OnceResult:
        """Run the handler unless its message was handled. Raises what the handler raises.

        `prepare` encodes the reply to a request, if there is one.
        """
        entry = self._entry(held, ctx.queue, ctx.id)
        opening = partial(self._inbox.transaction, entry)
        blocking = partial(self._inbox.blocking_transaction, entry)
        async with self._transaction(_shown([entry]), opening, blocking) as transaction:
            if transaction.was_handled:
                return OnceResult(None, Recorded.DUPLICATE)

            ctx.open_session(transaction.session)
            value = await call(ctx)
            if ctx.lease_lost and self._inbox.has_sessions:
                return OnceResult(None, Recorded.LOST)  # a thread's: the rest rolls back (G5)

            # Before the commit: a reply that cannot be sent is the handler's failure, and a retry
            # of what is recorded would be skipped and never answered.
            result, reply = prepare(held, HandlerResult(Ending.SUCCEEDED), value)
            if result.ending is not Ending.SUCCEEDED:
                return OnceResult(None, None, failed=result)

            if transaction.acknowledges:
                # A renewal that finds it gone would take the commit for the loss of the claim.
                held.subscription.stop_renewing(held)
            recorded = await self._limited(
                f"recording {_shown([entry])} in the inbox", transaction.commit()
            )
        return OnceResult(value, recorded, reply)

    async def run_batch(
        self,
        items: Sequence[Received[Any]],
        call: Callable[[Context], Awaitable[object]],
        ctx: Context,
    ) -> list[Recorded | None]:
        """Run a batch handler in one transaction, with those items that were not handled.

        Returns how that ended for each item, None for one that the handler has not handled, such
        as one that it rejects. Raises what the handler raises.
        """
        firsts: dict[str, Received[Any]] = {}
        for item in items:
            firsts.setdefault(item.id, item)
        ended = await self._run_items(list(firsts.values()), call, ctx)
        recorded = dict(zip(firsts, ended, strict=True))
        return [
            recorded[item.id] if firsts[item.id] is item else _of_copy(recorded[item.id])
            for item in items
        ]

    async def _run_items(
        self,
        items: Sequence[Received[Any]],
        call: Callable[[Context], Awaitable[object]],
        ctx: Context,
    ) -> list[Recorded | None]:
        """As `run_batch`, without two items of one id."""
        entries = [self._entry(item.held, item.queue, item.id) for item in items]
        opening = partial(self._inbox.batch, entries)
        blocking = partial(self._inbox.blocking_batch, entries)
        async with self._transaction(_shown(entries), opening, blocking) as transaction:
            ended: list[Recorded | None] = [Recorded.DUPLICATE] * len(items)
            new = [
                index for index, was_handled in enumerate(transaction.handled) if not was_handled
            ]
            if not new:
                return ended

            ctx.payload = [items[index] for index in new]
            for item in ctx.payload:
                item.open_session(transaction.session)
                item.held.is_in_transaction = True
            await call(ctx)
            if ctx.lease_lost and self._inbox.has_sessions:  # as in `run`
                for index in new:
                    is_lost = items[index].held.is_lost
                    ended[index] = Recorded.LOST if is_lost else Recorded.ROLLED_BACK
                return ended

            done = [index for index in new if _is_done(items[index])]
            if transaction.acknowledges:
                for index in done:
                    items[index].held.subscription.stop_renewing(items[index].held)
            recorded = await self._limited(
                f"recording {_shown(entries)} in the inbox", transaction.commit_items(done)
            )
        ended = [None if index in new else each for index, each in enumerate(ended)]
        for index, each in zip(done, recorded, strict=True):
            ended[index] = each
        return ended

    def _entry(self, held: HeldDelivery, queue: str, id: str) -> InboxEntry:
        # A hook is awaited before the acknowledgement, so that is not a part of the transaction.
        receipt = held.delivery.receipt if self._spec.conclusion is None else b""
        return InboxEntry(self._spec.name, queue, id, self._window, receipt)

    @asynccontextmanager
    async def _transaction(
        self,
        shown: str,
        opening: Callable[[], AbstractAsyncContextManager[Any]],
        opening_blocking: Callable[[], AbstractContextManager[Any]],
    ) -> AsyncIterator[Any]:
        """Open a transaction: in the handler's thread, if it has one."""
        doing = f"opening the inbox for {shown}"
        if self._pool is None:
            manager = opening()
            transaction = await self._limited(doing, manager.__aenter__())
            try:
                with _owned(transaction):
                    yield transaction
            except BaseException as error:
                with suppress(InboxTimeout):
                    leaving = manager.__aexit__(type(error), error, error.__traceback__)
                    await self._limited("", leaving)
                raise
            with suppress(InboxTimeout):  # it is committed
                await self._limited("", manager.__aexit__(None, None, None))
            return

        thread = PinnedThread(self._pool, opening_blocking())
        try:
            blocking = await self._limited(doing, thread.enter())
            token = current_thread.set(thread)
            try:
                with _owned(blocking):
                    yield _InThread(blocking, thread)
            finally:
                current_thread.reset(token)
        finally:
            with suppress(InboxTimeout):
                await self._limited("", thread.leave())

    async def _limited(self, doing: str, step: Awaitable[Any]) -> Any:
        """Bound a step of the inbox in time; a virtual clock waits for it."""
        own: TimeoutError | None = None
        try:
            async with self._clock.timeout(self._limit):
                try:
                    with self._clock.busy():
                        return await step
                except TimeoutError as error:
                    own = error
                    raise
        except TimeoutError as error:
            if error is own:
                raise  # that of the database
            raise InboxTimeout(
                f"{doing} took longer than {self._limit:g} s. The message is tried again by the "
                "retry policy"
            ) from None
        finally:
            del own  # a cycle: its traceback holds this frame


@contextmanager
def _owned(transaction: object) -> Iterator[None]:
    """Let publishes of the handler know its transaction."""
    token = own_transaction.set(transaction)
    try:
        yield
    finally:
        own_transaction.reset(token)


class InboxTimeout(MqcoreError, TimeoutError):
    """The inbox did not answer in time. Whether a commit took effect is then unknown."""


class _InThread:
    """A transaction in a handler's thread, as the event loop uses it."""

    def __init__(self, transaction: Any, thread: PinnedThread[Any]) -> None:
        self._transaction = transaction
        self._thread = thread
        self.session = transaction.session
        self.acknowledges = transaction.acknowledges

    @property
    def was_handled(self) -> bool:
        return bool(self._transaction.was_handled)

    @property
    def handled(self) -> Sequence[bool]:
        handled: Sequence[bool] = self._transaction.handled
        return handled

    async def commit(self) -> Recorded:
        return await self._thread.run(self._transaction.commit)

    async def commit_items(self, done: Sequence[int]) -> Sequence[Recorded]:
        return await self._thread.run(partial(self._transaction.commit_items, done))


def _is_done(item: Received[Any]) -> bool:
    """Whether the handler has handled it: it asks for nothing else."""
    own = item.held.own_result
    return own is None or own.ending is Ending.SUCCEEDED


def _of_copy(recorded: Recorded | None) -> Recorded:
    """Return how it ended for another copy of a message that was in the same batch."""
    if recorded in (Recorded.RECORDED, Recorded.ACKNOWLEDGED, Recorded.DUPLICATE):
        return Recorded.DUPLICATE
    return Recorded.ROLLED_BACK


def _shown(entries: Sequence[InboxEntry]) -> str:
    many = f" and {len(entries) - 1} more" if len(entries) > 1 else ""
    return f"message {entries[0].id}{many} of queue {entries[0].queue!r}"


def check_inbox(inbox: Inbox, specs: Sequence[HandlerSpec]) -> None:
    """Raise `ConfigurationError` for a consumer that the inbox cannot serve."""
    for spec in specs:
        where = f"handler {spec.name} of queue {spec.queue.name!r}"
        if spec.mode == "process" and inbox.has_sessions:
            raise ConfigurationError(
                f"{where}: process=True does not go with once= and an inbox with sessions: the "
                "transaction cannot be used in another process. Leave process= out, or give the "
                'app an inbox that only records ids, for instance inbox="redis://…"'
            )
        if spec.batch and not inbox.has_batches:
            raise ConfigurationError(
                f"{where}: batch= does not go with once= and the inbox {type(inbox).__name__}, "
                "which records one message at a time. Leave batch= out, or use another inbox"
            )
        inbox.check(where, blocking=spec.mode == "thread")


@asynccontextmanager
async def opened_inbox(inbox: Inbox, clock: Clock, backend: Backend) -> AsyncIterator[Inbox]:
    """Open an inbox, and remove old ids while it is open."""
    inbox = await inbox.open(clock, backend)
    forgetting = asyncio.create_task(_forget(inbox, clock))
    try:
        yield inbox
    finally:
        forgetting.cancel()
        await asyncio.gather(forgetting, return_exceptions=True)
        await inbox.close()


async def _forget(inbox: Inbox, clock: Clock) -> None:
    """Remove ids whose window has ended, in bounded steps."""
    while True:
        await clock.sleep(_FORGET_EVERY)
        try:
            for _ in range(_STEPS):
                with clock.busy():
                    has_more = await inbox.forget()
                if not has_more:
                    break
        except Exception as error:  # noqa: BLE001 - the next turn tries again
            log().warning("old ids of the inbox could not be removed: %s", describe_error(error))
