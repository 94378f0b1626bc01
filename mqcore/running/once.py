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
from typing import TYPE_CHECKING, Any

from mqcore.errors import ConfigurationError, MqcoreError
from mqcore.log import log
from mqcore.publishing.own_transaction import own_transaction
from mqcore.rules.redact import describe_error
from mqcore.rules.retry import Ending, HandlerResult
from mqcore.running.pinned import PinnedThread, current_thread
from mqcore.spi import Inbox, InboxEntry, InboxTransaction, Recorded

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

    from mqcore.clock import Clock
    from mqcore.consuming.context import Context
    from mqcore.consuming.held import HeldDelivery
    from mqcore.consuming.replies import EncodedResult
    from mqcore.running.handlers import HandlerSpec
    from mqcore.running.threads import ThreadPool
    from mqcore.spi import Backend, BlockingInboxTransaction

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
        # A hook is awaited before the acknowledgement, so that is not a part of the transaction.
        receipt = held.delivery.receipt if self._spec.conclusion is None else b""
        entry = InboxEntry(self._spec.name, ctx.queue, ctx.id, self._window, receipt)
        async with self._transaction(entry) as transaction:
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
                f"recording {_shown(entry)} in the inbox", transaction.commit()
            )
        return OnceResult(value, recorded, reply)

    @asynccontextmanager
    async def _transaction(self, entry: InboxEntry) -> AsyncIterator[InboxTransaction]:
        doing = f"opening the inbox for {_shown(entry)}"
        if self._pool is None:
            manager = self._inbox.transaction(entry)
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

        thread = PinnedThread(self._pool, self._inbox.blocking_transaction(entry))
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

    def __init__(
        self, transaction: BlockingInboxTransaction, thread: PinnedThread[BlockingInboxTransaction]
    ) -> None:
        self._transaction = transaction
        self._thread = thread
        self.session = transaction.session
        self.was_handled = transaction.was_handled
        self.acknowledges = transaction.acknowledges

    async def commit(self) -> Recorded:
        return await self._thread.run(self._transaction.commit)


def _shown(entry: InboxEntry) -> str:
    return f"message {entry.id} of queue {entry.queue!r}"


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
