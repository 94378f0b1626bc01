"""Where a message goes on this broker, and by which channel.

    Outgoing ─ plan ─► Sending: to a queue │ into the ladder │ to an exchange ─ confirms ─► an outcome for each, in order

What is sent to queues goes by one channel, the rest by another: a missing exchange closes its channel and makes all that is under
way on it unknown. Nothing is written while the broker has said that it takes no publishes: what is written then is stored when the
alarm ends, long after its publisher was told that it failed.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from time import monotonic

from pika import BasicProperties, spec
from pika.exceptions import ChannelClosedByBroker

from mqcore.spi import STORED, ErrorKind, Failed, Outcome, Outgoing, Route, Stored, Unknown, new_id
from mqcore_rabbitmq.confirms import Confirms, Each, Sending
from mqcore_rabbitmq.delayed import Delayed
from mqcore_rabbitmq.errors import NOT_FOUND, RESOURCE_LOCKED, classify, closed_by
from mqcore_rabbitmq.ladder import LONGEST, Ladder, exit_to, way
from mqcore_rabbitmq.layout import Layout
from mqcore_rabbitmq.link import Link
from mqcore_rabbitmq.registry import Registry
from mqcore_rabbitmq.topology import Admin
from mqcore_rabbitmq.wire import properties

__all__ = ["Sender"]

_FORGET = 2.0
"""Seconds for which an unknown queue is taken for one that mqcore did not declare, without asking again."""
_PROBE = 0.5
"""Seconds that a connect waits for the answer to its first message; without an alarm it comes in a few milliseconds."""
QUEUES, LADDER, RECORDS = "queues", "ladder", "records"


class Sender:
    """The publishing side of one open instance."""

    def __init__(self, link: Link, admin: Admin, *, native_routes: bool) -> None:
        self.registry: Registry
        self.own: dict[str, Layout] = {}
        """Temporary queues, which nobody else needs to know."""
        self.delayed = Delayed()
        self._link = link
        self._admin = admin
        self._ladder = Ladder(admin.server)
        self._native_routes = native_routes
        self._confirms: dict[str, Confirms] = {}
        self._lock = asyncio.Lock()
        self._asked: dict[str, float] = {}
        self._suspects: set[str] = set()
        self._exits: set[str] = set()
        self._exchanges: set[str] = set()
        self._fresh = False

    # What is known

    def layout(self, queue: str) -> Layout | None:
        """Return what a queue is made of; None for one that mqcore did not declare."""
        return self.own.get(queue) or self.registry.picture.queues.get(queue)

    async def look_up(self, queue: str) -> Layout | None:
        """As `layout`, with whatever others have declared meanwhile."""
        if queue not in self.own and (
            not self._fresh or queue in self._suspects or self._is_unknown(queue, monotonic())
        ):
            await self.refresh([queue])
        return self.layout(queue)

    def forget(self, queues: Sequence[str]) -> None:
        """Take nothing for granted of queues that were deleted."""
        for queue in queues:
            self.own.pop(queue, None)
            self.delayed.clear(queue)
            self._exits.discard(queue)

    async def refresh(self, queues: Sequence[str]) -> None:
        """Read what others have declared, and take note of queues that are unknown all the same."""
        await self.registry.refresh()
        self._fresh = True
        now = monotonic()
        self._suspects.difference_update(queues)
        self._asked = {name: until for name, until in self._asked.items() if until > now}
        self._asked.update((queue, now + _FORGET) for queue in queues if self.layout(queue) is None)

    def _is_unknown(self, queue: str, now: float) -> bool:
        return self.layout(queue) is None and self._asked.get(queue, 0.0) < now

    # Sending

    async def confirms(self, kind: str = QUEUES) -> Confirms:
        """Return the channel for a kind of messages, open."""
        known = self._confirms.get(kind)
        if known is None or known.channel.closed is not None:
            async with self._lock:
                known = self._confirms.get(kind)
                if known is None or known.channel.closed is not None:
                    known = self._confirms[kind] = await Confirms.on(await self._link.channel())
        return known

    async def alarm(self) -> str | None:
        """Send what no queue takes and see whether it is read: under an alarm the broker says so, and only to who publishes."""
        nowhere = f"mq.nowhere.{new_id()}"
        await (await self.confirms()).publish([Sending("", nowhere, BasicProperties(), b"", nowhere)], _PROBE)
        return self._link.blocked

    async def publish(
        self, batch: Sequence[Outgoing], timeout: float, now: float, *, moved: bool, each: Each | None = None
    ) -> list[Outcome]:
        """Publish a batch; `moved`: these are successors, which a bound does not stop; `each` hears of what was confirmed."""
        until = monotonic() + timeout
        try:
            known = await self._prepare(batch, timeout)
        except TimeoutError as error:
            text = f"RabbitMQ did not answer within {timeout:g} s what had to be asked first; nothing was sent"
            return [Failed(ErrorKind.TRANSIENT, text, error)] * len(batch)
        outcomes: list[Outcome | None] = [known.get(index) for index in range(len(batch))]
        apart = [index for index, out in enumerate(batch) if isinstance(out.to, Route) and out.delay > 0]
        waiting = [asyncio.ensure_future(_told(self._delayed_route(batch[at], until, now), 1)) for at in apart]
        plans: dict[int, tuple[str, Sending]] = {}
        for index, out in enumerate(batch):
            if outcomes[index] is None and index not in apart:
                plan = self._plan(out, now, moved=moved)
                if isinstance(plan, tuple):
                    plans[index] = plan
                else:
                    outcomes[index] = plan
        sending = self.send(list(plans.values()), until - monotonic(), _placed(each, list(plans)))
        sent = await (_told(sending, len(plans)) if apart else sending)
        for index, outcome in zip(plans, sent, strict=True):
            outcomes[index] = outcome
            out = batch[index]
            if isinstance(outcome, Failed) and outcome.kind is ErrorKind.NOT_FOUND:
                self._distrust(out)
            elif out.delay > 0 and isinstance(outcome, Stored):
                self.delayed.add(str(out.to), now + out.delay)
        for index, task in zip(apart, waiting, strict=True):
            (outcomes[index],) = await task
        return [outcome or Unknown() for outcome in outcomes]

    async def send(
        self, plans: Sequence[tuple[str, Sending]], timeout: float, each: Each | None = None
    ) -> list[Outcome]:
        """Send messages by their channels, side by side; an outcome for each, in order."""
        if self._link.blocked is not None:
            text = f"RabbitMQ takes no publishes: the broker's memory or disk alarm is on ({self._link.blocked})"
            return [Failed(ErrorKind.TRANSIENT, text)] * len(plans)
        kinds = {kind for kind, _ in plans}
        if len(kinds) <= 1:
            return await self._send_all(next(iter(kinds), QUEUES), [sending for _, sending in plans], timeout, each)
        parts = {kind: [at for at, (of, _) in enumerate(plans) if of == kind] for kind in kinds}
        sent = await asyncio.gather(
            *[
                _told(self._send_all(kind, [plans[at][1] for at in part], timeout, _placed(each, part)), len(part))
                for kind, part in parts.items()
            ]
        )
        by_place = {
            at: outcome
            for part, outcomes in zip(parts.values(), sent, strict=True)
            for at, outcome in zip(part, outcomes, strict=True)
        }
        return [by_place[at] for at in range(len(plans))]

    async def _send_all(self, kind: str, batch: Sequence[Sending], timeout: float, each: Each | None) -> list[Outcome]:
        confirms = self._confirms.get(kind)
        if confirms is None or confirms.channel.closed is not None:
            until = monotonic() + timeout
            try:
                async with asyncio.timeout(timeout):
                    confirms = await self.confirms(kind)
            except TimeoutError as error:
                text = f"RabbitMQ opened no channel within {timeout:g} s; nothing was sent"
                return [Failed(ErrorKind.TRANSIENT, text, error)] * len(batch)
            timeout = until - monotonic()
        return await confirms.publish(batch, timeout, each)

    def _distrust(self, out: Outgoing) -> None:
        """Forget what was thought to be there: others may have deleted it, or declared it anew."""
        if isinstance(out.to, Route):
            self._exchanges.discard(out.to.router)
        else:
            if out.delay > 0:
                self._ladder.forget()
            self._suspects.add(out.to)
            layout = self.layout(out.to)
            self._exits.difference_update(layout.queues if layout else [out.to])

    # Planning

    def _plan(self, out: Outgoing, now: float, *, moved: bool) -> tuple[str, Sending] | Outcome:
        message = out.message
        expires = message.expires_at if out.ttl is None else now + out.ttl
        if isinstance(out.to, Route):
            given = properties(message, expires, ageless=True)
            return LADDER, Sending(out.to.router, out.to.key, given, message.body, out.to.router, "route")
        layout = self.layout(out.to)
        if layout is not None and layout.spec.ttl is not None and not message.hop and not moved:
            expires = now + layout.spec.ttl if expires is None else min(expires, now + layout.spec.ttl)
        if out.delay > 0:
            return self._delayed(out, layout, expires, now)
        given = properties(message, expires, native=layout is None or not layout.quorum, ageless=layout is None)
        if layout is None:
            return QUEUES, Sending("", out.to, given, message.body, out.to)
        target = layout.target(message.priority, refusable=not moved)
        bounded = "full" if layout.spec.max_length is not None and target != layout.due else ""
        return QUEUES, Sending("", target, given, message.body, out.to, bounded)

    def _delayed(
        self, out: Outgoing, layout: Layout | None, expires: float | None, now: float
    ) -> tuple[str, Sending] | Outcome:
        message, queue = out.message, str(out.to)
        if out.delay > LONGEST:
            return Failed(ErrorKind.PERMANENT, f"a delay of {out.delay:g} s is above the longest, {LONGEST:g} s")
        native = layout is None or not layout.quorum
        try:
            level, key = way(out.delay, self._exit(out))
        except ValueError as error:
            return Failed(ErrorKind.PERMANENT, str(error))
        prefix = self._ladder.prefix(message.priority if native else None)
        given = properties(message, expires, native=native, delayed=now, ageless=layout is None)
        return LADDER, Sending(self._ladder.entry(prefix, level), key, given, message.body, queue)

    def _exit(self, out: Outgoing) -> str:
        """Return the queue of the broker into which a delayed message falls."""
        layout = self.layout(str(out.to))
        return str(out.to) if layout is None else layout.target(out.message.priority, refusable=False)

    async def _delayed_route(self, out: Outgoing, until: float, now: float) -> list[Outcome]:
        """A delayed routed message follows the bindings of now: one copy for each queue that is bound (G15)."""
        route = out.to
        if not self._native_routes or not isinstance(route, Route):
            return [_no_routes(out)]
        async with asyncio.timeout(until - monotonic()):
            bindings = (await self.registry.refresh()).bindings(route.router)
        queues = dict.fromkeys(it.queue for it in bindings if it.takes(route.key, out.message.headers))
        if not queues:
            return [Failed(ErrorKind.NOT_FOUND, f"no binding of router {route.router!r} takes key {route.key!r}")]
        batch = [Outgoing(queue, out.message, out.delay, out.ttl) for queue in queues]
        outcomes = await self.publish(batch, until - monotonic(), now, moved=False)
        if all(isinstance(outcome, Stored) for outcome in outcomes):
            return [STORED]
        failed = next(outcome for outcome in outcomes if not isinstance(outcome, Stored))
        if isinstance(failed, Failed) and all(isinstance(outcome, Failed) for outcome in outcomes):
            return [failed]
        return [Unknown(f"not every queue of router {route.router!r} took it: {failed}")]

    # Preparing: what must be there before anything is sent

    async def _prepare(self, batch: Sequence[Outgoing], timeout: float) -> dict[int, Outcome]:
        """Make sure of what the batch needs; the outcomes of those items for which it is not there."""
        now, known = monotonic(), dict[int, Outcome]()
        queues = {out.to for out in batch if isinstance(out.to, str)}
        unknown = [queue for queue in queues if queue in self._suspects or self._is_unknown(queue, now)]
        special = [(at, out) for at, out in enumerate(batch) if out.delay > 0 or not isinstance(out.to, str)]
        if not unknown and not special and self._fresh:
            return known
        async with asyncio.timeout(timeout):
            if unknown or not self._fresh:
                await self.refresh(unknown)
            for at, out in special:
                outcome = await self._prepare_special(out)
                if outcome is not None:
                    known[at] = outcome
        return known

    async def _prepare_special(self, out: Outgoing) -> Outcome | None:
        if isinstance(out.to, Route):
            if not self._native_routes:
                return _no_routes(out)
            if out.delay <= 0 and out.to.router not in self._exchanges and not await self._has_exchange(out.to.router):
                return Failed(ErrorKind.NOT_FOUND, f"RabbitMQ has no router {out.to.router!r}")
            return None
        layout = self.layout(out.to)
        native = layout is None or not layout.quorum
        prefix = self._ladder.prefix(out.message.priority if native else None)
        if not self._ladder.is_declared(prefix):
            async with self._admin.channel() as channel:
                await self._ladder.declare(prefix, channel)
        destination = self._exit(out)
        if destination in self._exits or await self._has_exit(destination):
            self._exits.add(destination)
            return None
        return Failed(ErrorKind.NOT_FOUND, f"RabbitMQ has no queue {out.to!r}: declare it first")

    async def _has_exit(self, queue: str) -> bool:
        """Bind a queue to the foot of the ladder; False when there is none."""
        try:
            await self._admin.run(lambda channel: channel.tell(exit_to(queue)))
        except ChannelClosedByBroker as error:
            if closed_by(error, NOT_FOUND):
                return False
            if not closed_by(error, RESOURCE_LOCKED):  # another connection's own queue, which that has bound
                raise
        return True

    async def _has_exchange(self, router: str) -> bool:
        try:
            async with self._admin.channel() as channel:
                await channel.ask(spec.Exchange.Declare(exchange=router, passive=True))
        except ChannelClosedByBroker as error:
            if closed_by(error, NOT_FOUND):
                return False
            raise
        self._exchanges.add(router)
        return True


async def _told(sending: Awaitable[list[Outcome]], size: int) -> list[Outcome]:
    """Return what went wrong before anything was sent as outcomes: another part of the batch may have been stored."""
    try:
        return await sending
    except Exception as error:  # noqa: BLE001 - whatever it was, nothing of this part was sent
        return [Failed(classify(error), f"nothing was sent: {error!r}", error)] * size


def _placed(each: Each | None, places: Sequence[int]) -> Each | None:
    """Return `each` for a part of its batch, whose items stand at these places."""
    return None if each is None else lambda at, outcome: each(places[at], outcome)


def _no_routes(out: Outgoing) -> Failed:
    return Failed(ErrorKind.PERMANENT, f"with quorum queues mqcore routes itself: {out.to} has to be resolved first")
