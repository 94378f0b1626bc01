"""Sections of the settings that have no effect, because nothing has the name that they give.

A section for a queue or router can be right although this application does not use it: one file may
serve several applications. So a section counts as unused only when the broker does not know the
name either.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from mqcore.rules.checks import closest
from mqcore.spi import SupportsBind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mqcore.config.settings import Settings
    from mqcore.connection.connection import Connection
    from mqcore.connection.topology import Topology
    from mqcore.queue import Queue
    from mqcore.router import Router

__all__ = ["UnusedSections"]

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


class UnusedSections:
    """Finds the sections `[queues.NAME]` and `[routers.NAME]` that have no effect."""

    def __init__(self, settings: Settings, connection: Connection, topology: Topology) -> None:
        """Compare these settings with an application and with the broker."""
        self._settings, self._connection, self._topology = settings, connection, topology

    async def find(
        self, app: str, queues: Iterable[Queue[Any]], routers: Iterable[Router[Any]]
    ) -> list[str]:
        """Return a sentence for each section that has no effect.

        `queues` and `routers` are those of the application that is named `app`; the queues bound to
        the routers count too.
        """
        routers = list(routers)
        known = {queue.name: queue for router in routers for queue in router.queues.values()}
        known |= {queue.name: queue for queue in queues}
        owners = self._owners(known.values())

        texts = []
        for name in self._settings.queues:
            if name in known:
                continue
            if name in owners:
                texts.append(self._belongs(name, owners[name]))
            elif await self._topology.counts(name) is None:
                texts.append(self._unknown("queue", name, app, known))

        names = {router.name for router in routers}
        others = [name for name in self._settings.routers if name not in names]
        unknown = [name for name in others if not await self._has_router(name)]
        return texts + [self._unknown("router", name, app, names) for name in unknown]

    def _owners(self, queues: Iterable[Queue[Any]]) -> dict[str, str]:
        """Return whose the dead-letter queues and quarantines are."""
        owners = {}
        for queue in queues:
            configured = self._topology.configured(queue)
            for name in (configured.dead_letter, configured.quarantine):
                if name is not None:
                    owners[name] = queue.name
        return owners

    async def _has_router(self, name: str) -> bool:
        backend = self._connection.backend
        if not isinstance(backend, SupportsBind):
            return False
        reading = f"reading the bindings of router {name!r}"
        return bool(await self._connection.call(reading, lambda: backend.bindings(name)))

    def _belongs(self, name: str, owner: str) -> str:
        return (
            f"{self._settings.source_of('queues', name)}: {_section('queues', name)} has no "
            f"effect: {name!r} belongs to queue {owner!r}. Put its settings into "
            f"{_section('queues', owner)}"
        )

    def _unknown(self, kind: str, name: str, app: str, known: Iterable[str]) -> str:
        table = f"{kind}s"
        close = closest(name, known)
        hint = f" Did you mean {_section(table, close)}?" if close else ""
        return (
            f"{self._settings.source_of(table, name)}: {_section(table, name)} has no effect: app "
            f"{app!r} has no {kind} {name!r}, and neither has the broker.{hint} Correct the name, "
            "or remove the section"
        )


def _section(table: str, name: str) -> str:
    """Return the head of a section as TOML writes it."""
    return f"[{table}.{name}]" if _BARE_KEY.fullmatch(name) else f'[{table}."{name}"]'
