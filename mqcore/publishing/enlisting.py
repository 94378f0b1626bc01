"""Publishing inside a transaction of the application.

    payload ─ composer ─► message ─ where is the transaction?
        in the broker's own database ─► the message's row, through the transaction
        in the database of the outbox ─► a parcel's row there; a relay publishes it

Nothing is visible before the commit, so a receipt is `pending`. An `Enlistment` is one publish. Its
steps alternate between the event loop of the broker and the thread that uses the transaction.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from mqcore.errors import ConfigurationError, ConnectionLost, MqcoreError, PublishFailed
from mqcore.publishing.outbound import Outbound
from mqcore.publishing.outcomes import ending, pending_receipt
from mqcore.publishing.parcel import Parcel, enclose
from mqcore.publishing.transactions import handle_of
from mqcore.queue import name_of
from mqcore.rules.redact import describe_error
from mqcore.spi import Binding, Outgoing, QueueSpec, SupportsEnlist

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from mqcore.connection.connection import Connection
    from mqcore.errors import Unroutable
    from mqcore.messages.message import Message
    from mqcore.publishing.options import PublishOptions, Receipt
    from mqcore.publishing.publisher import Publisher
    from mqcore.publishing.transactions import Handle
    from mqcore.queue import Queue
    from mqcore.router import Router
    from mqcore.spi import Outcome, Transaction

__all__ = ["OUTBOX", "Enlistment", "Place", "enlist_in_thread"]

R = TypeVar("R")
OUTBOX = "mq.outbox"
"""The queue of an application's database whose parcels go to the broker."""
_DETAILS = re.compile(
    r"\s*(\[SQL: |\[parameters: |\(Background on |Original exception was).*", re.DOTALL
)
"""Where SQLAlchemy begins to repeat statements with their parameters, such as bodies."""
_LOCKED = (
    ". Another connection writes to the file. Begin with the write lock: pass the engine to "
    "mqcore_sql.share, or begin with BEGIN IMMEDIATE"
)
_DECLARING = 1.0
"""Seconds that the transaction waits for a declaration, which its parcel can bring as well."""
_DELETED = (
    ". It was deleted; a worker or `mqcore relay` declares it again within seconds. Start one if "
    "none runs, and publish again"
)


@dataclass(frozen=True, slots=True)
class Place:
    """Where messages are enlisted: in the broker's database, or in that of the outbox."""

    connection: Connection
    is_outbox: bool = False


@dataclass(slots=True)
class Enlistment:
    """One publish inside a transaction.

    `choose` and `store` run where the transaction is used, the other steps on the event loop.
    """

    publisher: Publisher
    to: Queue[Any] | Router[Any] | str
    messages: Sequence[Message]
    options: PublishOptions
    deadline: float
    handle: Handle
    place: Place | None = None
    batch: list[Outbound] = field(default_factory=list)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)

    async def run(self) -> list[Receipt | MqcoreError]:
        """Do all steps, for a session that the event loop uses."""
        try:
            await self.declare()
            await self._run_async(self.choose)
            await self.plan()
            await self._run_async(self.store)
            return self.finish()
        except PublishFailed as error:
            return self.failed(error)

    def run_in_thread(
        self, run: Callable[[Coroutine[Any, Any, Any]], Any]
    ) -> list[Receipt | MqcoreError]:
        """Do all steps in the thread that uses the session; `run` runs work on the event loop."""
        if self.handle.is_async:
            raise ConfigurationError(
                f"publishing to {name_of(self.to)!r}: session= is one of asyncio, which "
                "mqcore.sync cannot use. Give it a Session or Connection, or use mqcore.Broker"
            )
        try:
            run(self.declare())
            self._run(self.choose)
            run(self.plan())
            self._run(self.store)
            results: list[Receipt | MqcoreError] = run(_awaitable(self.finish))
        except PublishFailed as error:
            return self.failed(error)
        return results

    def failed(self, error: PublishFailed) -> list[Receipt | MqcoreError]:
        """Return the error for each message."""
        return [type(error)(str(error), id=message.id) for message in self.messages]

    async def declare(self) -> None:
        """Declare what is not declared yet, before the transaction may hold a lock of SQLite.

        A broker that is away declares nothing; a parcel brings what is missing with it.
        """
        publisher, to = self.publisher, self.to
        if (known := publisher.known(to)) is not None:
            self.to = known
        elif publisher.connection.connected and not isinstance(to, str):
            if self._only_outbox:
                with suppress(ConnectionLost, TimeoutError):  # as one that is away
                    async with publisher.connection.clock.timeout(_DECLARING):
                        self.to = await publisher.topology.ensure_either(to)
            else:
                id = self.messages[0].id if self.messages else ""
                self.to = await publisher.declared(to, self.deadline, id)

    @property
    def _only_outbox(self) -> bool:
        """Whether the transaction can be in no other database than that of the outbox."""
        places = self.publisher.places
        able = [each for each in places if isinstance(each.connection.backend, SupportsEnlist)]
        return bool(able) and all(each.is_outbox for each in able)

    def choose(self, transaction: Transaction) -> None:
        """Find out in which database the transaction is.

        Raises `ConfigurationError` for another one, and `ConnectionLost` when it may be that of a
        broker that was never connected.
        """
        reasons, away = [], None
        for place in self.publisher.places:
            backend = place.connection.backend
            if isinstance(backend, SupportsEnlist):
                try:
                    why = backend.foreign(transaction)
                except ConnectionLost as error:
                    away = error
                    continue
                if not why:
                    self.place = place
                    return
                reasons.append(why)
        if away is not None:
            raise away

        name = name_of(self.to)
        seen = (
            "; ".join(dict.fromkeys(reasons)) or "the broker has no database, and no outbox is set"
        )
        raise ConfigurationError(
            f"publishing to {name!r} in a session whose database is neither the broker nor its "
            f"outbox: {seen}. Name the session's database with Broker.connect(outbox=URL) or in "
            "the settings"
        )

    async def plan(self) -> None:
        """Choose the queues, or make the parcels."""
        if self.place is not None and self.place.is_outbox:
            plans = self._parcels()
        else:
            plans = await self.publisher.plans(self.to, self.messages, self.options, self.deadline)
        self.batch = [Outbound(*each) for each in zip(self.messages, plans, strict=True)]

    def _parcels(self) -> list[list[Outgoing] | Unroutable]:
        """Return one parcel for each message; a router is resolved when it is relayed."""
        to, publisher = self.to, self.publisher
        now = publisher.connection.clock.now()
        queues: Sequence[QueueSpec] = ()
        bindings: Sequence[Binding] = ()
        if not isinstance(to, str) and publisher.known(to) is None:
            queues, bindings = publisher.topology.undeclared(to)
        outs = publisher.unresolved(to, self.messages, self.options)
        return [[enclose(Parcel(out, now, tuple(queues), tuple(bindings)), OUTBOX)] for out in outs]

    def store(self, transaction: Transaction) -> None:
        """Store all messages that have a queue, in the transaction."""
        outs = [out for outbound in self.batch for out in outbound.unsent()]
        if not outs or self.place is None:
            return
        backend = self.place.connection.backend
        if not isinstance(backend, SupportsEnlist):
            raise ConfigurationError("the backend cannot enlist messages in a transaction")

        outcomes: Sequence[Outcome] = backend.enlist(transaction, outs)
        answers = iter(outcomes)
        for outbound in self.batch:
            outbound.outcomes = {out.to: next(answers) for out in outbound.unsent()}

    def finish(self) -> list[Receipt | MqcoreError]:
        """Return how each publish ended, and see to a hint after the commit."""
        names = tuple(dict.fromkeys(name for each in self.batch for name in each.names))
        place, publisher = self.place, self.publisher
        if names and place is not None:
            self.handle.at_end(partial(self._ended, partial(_hint, place.connection, names)))

        shown = (name_of(self.to),) if place is not None and place.is_outbox else None
        return [
            pending_receipt(each, shown or each.names, publisher.connection.events)
            if each.is_stored
            else self._ending(each)
            for each in self.batch
        ]

    def _ending(self, sent: Outbound) -> Receipt | MqcoreError:
        """Return the error of a message that is not stored."""
        events = self.publisher.connection.events
        if self.place is not None and self.place.is_outbox and sent.missing():
            return ending(OUTBOX, sent, _DELETED, events)
        return ending(self.to, sent, "", events)

    def _ended(self, hint: Callable[[], None]) -> None:
        """Give a hint on the event loop, from any thread, when the transaction has ended."""
        with suppress(RuntimeError):  # the loop is closed
            self.loop.call_soon_threadsafe(self.loop.call_later, self.handle.ends_in, hint)

    async def _run_async(self, work: Callable[[Transaction], R]) -> R:
        """Run work in the transaction. A failure of the client library is `PublishFailed`."""
        try:
            return await self.handle.run_async(work)
        except MqcoreError:
            raise
        except Exception as error:
            raise self._failure(error) from error

    def _run(self, work: Callable[[Transaction], R]) -> R:
        """As `_run_async`, in this thread."""
        try:
            return self.handle.run(work)
        except MqcoreError:
            raise
        except Exception as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> PublishFailed:
        return PublishFailed(
            f"nothing was stored for {name_of(self.to)!r}: the session's transaction has failed: "
            f"{_explained(error)}"
        )


def enlist_in_thread(
    make: Callable[[PublishOptions], Enlistment],
    options: PublishOptions,
    run: Callable[[Coroutine[Any, Any, Any]], Any],
) -> list[Receipt | MqcoreError]:
    """Publish in the transaction of `session`, which this thread uses.

    `make` returns the publish, and `run` runs work on the event loop.
    """
    # here: what stands for the connection of a thread is another one on the event loop
    resolved: PublishOptions = {**options, "session": handle_of(options.get("session"))}

    async def begin() -> Enlistment:
        return make(resolved)

    enlistment: Enlistment = run(begin())
    return enlistment.run_in_thread(run)


def _hint(connection: Connection, queues: Sequence[str]) -> None:
    backend = connection.backend
    if connection.connected and isinstance(backend, SupportsEnlist):
        backend.committed(queues)


def _explained(error: Exception) -> str:
    """Return what a client library says, without statements and their parameters."""
    text = _DETAILS.sub("", describe_error(getattr(error, "orig", None) or error)).strip()
    return f"{text}{_LOCKED if 'database is locked' in text else ''}"


async def _awaitable(work: Callable[[], R]) -> R:
    return work()
