"""`mqcore relay`: publishes what applications have committed to an outbox, until a signal."""

import asyncio
import sys
from typing import Annotated

import typer

from mqcore.broker import Broker, session_of
from mqcore.cli.common import LONELY, At, is_local
from mqcore.cli.logs import logging_set_up
from mqcore.config.settings import Settings
from mqcore.config.url import BrokerUrl
from mqcore.errors import ConfigurationError
from mqcore.running.signals import call_at_stop_signals

__all__ = ["relay"]


def relay(
    at: At,
    database: Annotated[
        str | None,
        typer.Argument(
            metavar="DATABASE",
            help="The URL of the database whose outbox is relayed. Without it: MQCORE_OUTBOX, or "
            "`outbox` in the settings.",
            show_default=False,
        ),
    ] = None,
    *,
    drain: Annotated[
        bool, typer.Option("--drain", help="End when the outbox is empty, and do not wait.")
    ] = False,
) -> int:
    """Publish to the broker what applications have committed to the outbox of their database.

    Runs until SIGTERM or Ctrl-C. Every worker of an application with an outbox does the same, so
    this command is for applications without workers. Several may run at once: they take turns, and
    the messages of a transaction keep their order.
    """
    settings = at.settings()
    outbox = settings.outbox if database is None else BrokerUrl(database)
    if outbox is None:
        raise ConfigurationError(
            "no outbox is configured: give the URL of its database, for instance `mqcore relay "
            "sqlite:///shop.db`, or set MQCORE_OUTBOX"
        )
    with logging_set_up(sys.stdout if at.json else None):
        return asyncio.run(_relay(settings, outbox, drain=drain))


async def _relay(settings: Settings, outbox: BrokerUrl, *, drain: bool) -> int:
    async with Broker.connect(settings=settings, outbox=outbox.reveal()) as broker:
        if is_local(broker):
            raise ConfigurationError(LONELY)
        source = session_of(broker).outbox
        if source is None:
            return 1

        stopped = asyncio.Event()
        relaying = asyncio.create_task(source.drain() if drain else source.relay())
        with call_at_stop_signals(stopped.set, asyncio.get_running_loop()):
            stopping = asyncio.create_task(stopped.wait())
            await asyncio.wait([relaying, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if relaying.done():
            relaying.result()  # raises what has ended it
            return 0
        relaying.cancel()
        await asyncio.gather(relaying, stopping, return_exceptions=True)
    return 0
