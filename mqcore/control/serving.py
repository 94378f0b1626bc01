"""Puts together what serves the commands to one worker."""

from __future__ import annotations

import socket
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Protocol

from mqcore.control.commands import Commands, Controlled, Extension
from mqcore.control.server import ControlServer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mqcore.control.protocol import Command
    from mqcore.middleware.companions import Companion
    from mqcore.session import Session

__all__ = ["served_commands"]


class _App(Protocol):
    name: str


class _Worker(Controlled, Protocol):
    @property
    def app(self) -> _App:
        """What it runs."""


def served_commands(
    worker: _Worker, session: Session, companions: Sequence[Companion]
) -> ControlServer:
    """Begin to receive the commands to a worker."""
    extensions: dict[str, list[Extension]] = defaultdict(list)
    for companion in companions:
        for name, extension in companion.commands.items():
            extensions[name].append(extension)
    facts = {"app": worker.app.name, "host": socket.gethostname()}
    commands = Commands(worker, session.clock, facts, extensions)

    async def execute(command: Command) -> Mapping[str, Any]:
        return await commands.execute(command.name, command.arguments)

    name = _free_name(session)
    session.controlled.append(name)

    def on_close() -> None:
        session.controlled.remove(name)
        commands.autoscaler.close()

    server = ControlServer(session, name, execute, on_close)
    server.start()
    return server


def _free_name(session: Session) -> str:
    """Return the name of one more worker on this broker."""
    name, number = session.worker, 1
    while name in session.controlled:
        number += 1
        name = f"{session.worker}.{number}"
    return name
