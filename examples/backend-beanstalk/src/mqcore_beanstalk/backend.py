"""The seam of mqcore over beanstalkd: open, declare, publish, settle, purge and delete."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from pydantic import BaseModel

from mqcore import spi
from mqcore.spi import Capability, ErrorKind, Level, Support
from mqcore_beanstalk import claims, queues, settling
from mqcore_beanstalk.jobs import encode, new_number
from mqcore_beanstalk.options import BeanstalkOptions
from mqcore_beanstalk.protocol import BeanstalkError, Connection, Reply, expect, put, table
from mqcore_beanstalk.subscription import BeanstalkSubscription

__all__ = ["BeanstalkBackend"]

_PORT = 11300
_TEN_YEARS = 10.0 * 365 * 86_400
_PING_EVERY, _REFRESH_EVERY = 3.0, 5
"""Seconds between two questions to the server; every fifth time temporary queues are refreshed."""
_CLOSE = 1.5
_KINDS = {
    "JOB_TOO_BIG": ErrorKind.TOO_LARGE,
    "DRAINING": ErrorKind.TRANSIENT,
    "OUT_OF_MEMORY": ErrorKind.TRANSIENT,
    "INTERNAL_ERROR": ErrorKind.TRANSIENT,
}
_CLOSED = "this instance is closed; open it first"


class BeanstalkBackend(spi.Backend):
    """One user of a server.

    It has one connection for everything that is answered at once. Each subscription has another
    one, on which it waits.
    """

    scheme = "beanstalk"
    spi_version = 1
    Options = BeanstalkOptions

    def __init__(self, url: str, options: BaseModel) -> None:
        super().__init__(url, options)
        parts = urlsplit(url)
        if not isinstance(options, BeanstalkOptions) or not parts.hostname or parts.path.strip("/"):
            raise spi.ConfigurationError(
                "the URL of a beanstalkd is beanstalk://HOST or beanstalk://HOST:PORT"
            )
        self._host, self._port = parts.hostname, parts.port or _PORT
        self._timeout = options.connect_timeout
        self.clock = spi.SystemClock()

        self._main: Connection | None = None
        self._lost: Callable[[Exception], None] = _nobody
        self._capabilities: spi.Capabilities
        self._watching: asyncio.Task[None] | None = None
        self._temporary: dict[str, spi.QueueSpec] = {}
        self.subscriptions: set[BeanstalkSubscription] = set()

    # Opening and closing

    async def open(self, lost: Callable[[Exception], None]) -> spi.Capabilities:
        self._lost = _nobody  # what breaks before the end of `open` is an error of `open`
        async with asyncio.timeout(self._timeout):
            self._main = main = await Connection.open(self._host, self._port, self.lose)
            try:
                self._capabilities = _capabilities(
                    table(expect((await main.ask(b"stats\r\n"))[0], "OK"))
                )
                for queue in await queues.abandoned(main):
                    await queues.remove(self.connect, queue)
            except BaseException:
                self._main = None
                main.close()
                raise

        self._lost = lost
        self._watching = asyncio.create_task(self._watch(main))
        return self._capabilities

    async def close(self) -> None:
        if self._watching is not None:
            self._watching.cancel()
            self._watching = None

        try:
            async with asyncio.timeout(_CLOSE):
                await asyncio.gather(*(one.close() for one in list(self.subscriptions)))
                for queue in self._temporary:
                    await queues.remove(self.connect, queue)
        except (OSError, spi.ConnectionLost, BeanstalkError):
            pass  # a server that does not answer gets it all back when the leases end
        finally:  # core cancels a close that takes too long
            self._temporary.clear()
            if self._main is not None:
                self._main.close()
                self._main = None
            for subscription in self.subscriptions:
                subscription.hang_up(_CLOSED)

    def lose(self, error: Exception) -> None:
        """One connection has ended: end the others, and tell core once.

        What was leased comes back when its lease ends.
        """
        if self._main is None:
            return
        main, self._main = self._main, None
        main.close(str(error))
        if self._watching is not None and self._watching is not asyncio.current_task():
            self._watching.cancel()
        for subscription in self.subscriptions:
            subscription.hang_up(str(error))
        self._lost(error)

    async def _watch(self, main: Connection) -> None:
        """Ask the server every few seconds whether it is there (G14); refresh temporary queues."""
        turn = 0
        while True:
            await self.clock.sleep(_PING_EVERY)
            turn += 1
            try:
                async with asyncio.timeout(self._timeout):
                    await main.ask(b"list-tube-used\r\n")
                    if turn % _REFRESH_EVERY == 0:
                        for spec in list(self._temporary.values()):
                            await queues.refresh(main, spec)
            except TimeoutError:
                text = f"beanstalkd has not answered for {self._timeout:g} s"
                self.lose(spi.ConnectionLost(text))
                return
            except BeanstalkError:
                continue  # it drains, or has no memory left: the next turn tries again
            except spi.ConnectionLost:
                return  # the reader has reported its end

    async def connect(self) -> Connection:
        """Open one more connection. Raises `ConnectionLost` when this instance is closed."""
        main = self.main
        async with asyncio.timeout(self._timeout):
            connection = await Connection.open(self._host, self._port, self.lose)
        if self._main is not main:  # closed or lost meanwhile
            connection.close()
            raise spi.ConnectionLost(_CLOSED)
        return connection

    @property
    def main(self) -> Connection:
        """The connection for what is answered at once.

        Raises `ConnectionLost` when there is none.
        """
        if self._main is None:
            raise spi.ConnectionLost(_CLOSED)
        return self._main

    # Queues

    async def declare(self, queues_: Sequence[spi.QueueSpec]) -> None:
        main = self.main
        for spec in queues_:
            if spec.durability is not None:
                self._capabilities.require_durability(spec.durability)

        have = await queues.specs(main, [spec.name for spec in queues_])
        # All are compared before the first is made: a batch that is refused leaves nothing behind.
        for spec in queues_:
            if (found := have[spec.name]) is not None:
                queues.compare(spec, found)

        for spec in queues_:
            if have[spec.name] is None:
                await queues.create(main, spec)
            # One of before a reconnect too: from now on this instance keeps it alive.
            if spec.role == "temporary":
                self._temporary[spec.name] = spec

    async def require(self, queue: str) -> spi.QueueSpec:
        """Return the settings of a queue. Raises `QueueNotFound`."""
        spec = (await queues.specs(self.main, [queue]))[queue]
        if spec is None:
            raise spi.QueueNotFound(
                f"queue {queue!r} does not exist at {self._host}:{self._port}; declare it"
            )
        return spec

    async def delete(self, queue: str, *, if_empty: bool = False) -> bool:
        await self.require(queue)
        family = [queue, spi.quarantine_of(queue)]
        if if_empty and not await queues.is_empty(self.main, family):
            return False
        for name in family:
            await queues.remove(self.connect, name)
        return True

    async def purge(self, queue: str) -> int:
        await self.require(queue)
        family = [queue, spi.quarantine_of(queue)]
        count = 0
        for name in family:
            count += await queues.drain(await self.connect(), queues.tube(name), delayed=False)
        return count

    # Messages

    async def publish(
        self, batch: Sequence[spi.Outgoing], *, timeout: float
    ) -> Sequence[spi.Outcome]:
        main = self.main
        names = [out.to for out in batch if isinstance(out.to, str)]
        loop = asyncio.get_running_loop()
        deadline, now = loop.time() + timeout, self.clock.now()
        try:
            async with asyncio.timeout(timeout):
                have = await queues.specs(main, names)
        except TimeoutError:  # only questions were sent
            text = f"beanstalkd did not answer within {timeout:g} s; nothing was sent"
            return [spi.Failed(ErrorKind.TRANSIENT, text) for _ in batch]

        refused, commands = list[spi.Failed | None](), list[bytes]()
        for out in batch:
            job = self._job(out, have, now)
            refused.append(job if isinstance(job, spi.Failed) else None)
            commands += [] if isinstance(job, spi.Failed) else job

        # All in one write, for other tasks `use` other tubes on this connection. Every second
        # answer is that of a `put`.
        futures = main.send(*commands)[1::2]
        if futures:
            await asyncio.wait(futures, timeout=max(deadline - loop.time(), 0.0))
        stored = iter(futures)
        return [failed or _outcome(next(stored)) for failed in refused]

    def _job(
        self, out: spi.Outgoing, have: Mapping[str, spi.QueueSpec | None], now: float
    ) -> spi.Failed | tuple[bytes, bytes]:
        """Return the two commands that store a message, or why it cannot be stored."""
        if not isinstance(out.to, str):
            text = f"router {out.to.router!r}: this backend has no routers"
            return spi.Failed(ErrorKind.PERMANENT, text)
        spec = have[out.to]
        if spec is None:
            return spi.Failed(ErrorKind.NOT_FOUND, f"queue {out.to!r} does not exist; declare it")
        if out.delay > _TEN_YEARS:
            text = f"queue {out.to!r}: a delay of {out.delay:g} s is over ten years"
            return spi.Failed(ErrorKind.PERMANENT, text)
        try:
            body = encode(out, spec, now)
        except (ValueError, TypeError) as error:
            return spi.Failed(ErrorKind.PERMANENT, f"queue {out.to!r}: {error}", error)

        priority = new_number(out.message.priority, now, out.delay)
        job = put(priority, math.ceil(out.delay), claims.TTR, body)
        return b"use %b\r\n" % queues.tube(out.to), job

    # Claims

    async def renew(
        self,
        queue: str,  # noqa: ARG002 - the job's id finds it
        receipts: Sequence[bytes],
        lease: float,
    ) -> Sequence[bool]:
        return await settling.renew(self.main, receipts, lease)

    async def settle(self, batch: Sequence[spi.Settlement], timeout: float) -> list[spi.Settled]:
        """Settle leases, whichever instance has claimed them.

        Jobs are locked meanwhile, and must not be left so: when the time is over or the caller is
        cancelled, the work goes on to its end.
        """

        async def store(moves: Sequence[spi.Outgoing]) -> Sequence[spi.Outcome]:
            try:
                return await self.publish(moves, timeout=timeout)
            except (spi.ConnectionLost, BeanstalkError) as error:  # raised before anything was sent
                return [spi.Failed(self.classify(error), str(error), error) for _ in moves]

        task = asyncio.create_task(settling.settle(self.main, batch, store))
        # Without a waiting caller its result is not read.
        task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        done, _ = await asyncio.wait([task], timeout=timeout)
        if done:
            return task.result()
        return [spi.Unknown(f"beanstalkd did not answer within {timeout:g} s") for _ in batch]

    async def subscribe(self, queue: str, *, prefetch: int, lease: float) -> spi.Subscription:
        await self.require(queue)
        subscription = BeanstalkSubscription(self, queue, prefetch, lease)
        await subscription.connect()
        self.subscriptions.add(subscription)
        return subscription

    def classify(self, error: Exception) -> ErrorKind:
        if isinstance(error, spi.QueueNotFound):
            return ErrorKind.NOT_FOUND
        if isinstance(error, BeanstalkError):
            return _KINDS.get(error.word, ErrorKind.PERMANENT)
        if isinstance(error, spi.ConnectionLost | OSError):
            return ErrorKind.TRANSIENT
        return ErrorKind.PERMANENT


def _nobody(_: Exception) -> None:
    """Ignore a lost connection."""


def _capabilities(stats: Mapping[str, str]) -> spi.Capabilities:
    """Say what this server can do.

    With `-b` it writes each job to its log before it answers, which shows in the number of the
    log's file: a confirmed message survives a kill of the process. How often it calls fsync (`-f`)
    it does not say, so no more is claimed than that.
    """
    durable = stats["binlog-current-index"] != "0"
    limits: dict[str, str | float | bool] = {"max_job_bytes": float(stats["max-job-size"])}
    supports = {
        Capability.DELAY: Support(Level.NATIVE, {"granularity": 1.1, "max": _TEN_YEARS}),
        Capability.PRIORITY: Support(Level.NATIVE, {"levels": 11}),
        Capability.EXPIRY: Support(Level.EMULATED, {"sweep": False}),
        Capability.LEASE: Support(Level.EMULATED, {"seconds": "whole, rounded up"}),
        Capability.ORDER: Support(
            Level.NATIVE, {"release_in_place": False, "after_delay": "front"}
        ),
    }
    if durable:
        supports[Capability.DURABLE] = Support(Level.NATIVE, {"fsync": "cannot be asked", **limits})
    durability = spi.Durability.PROCESS if durable else spi.Durability.MEMORY
    return spi.Capabilities("beanstalk", f"beanstalkd {stats['version']}", durability, supports)


def _outcome(future: asyncio.Future[Reply]) -> spi.Outcome:
    """Say what became of a `put` that was sent."""
    if not future.done():
        return spi.Unknown("sent, and beanstalkd did not answer in time")
    if (error := future.exception()) is not None:
        cause = error if isinstance(error, Exception) else None
        return spi.Unknown(f"sent, and then {error}", cause)
    reply = future.result()
    if reply.word == "INSERTED":
        return spi.STORED
    if reply.word == "BURIED":
        # Out of memory in the middle: the job is there, and waits for an operator to kick it.
        return spi.Unknown(f"beanstalkd has buried it as job {reply.number}, for want of memory")
    return spi.Failed(
        _KINDS.get(reply.word, ErrorKind.PERMANENT), f"beanstalkd answered {reply.word}"
    )
