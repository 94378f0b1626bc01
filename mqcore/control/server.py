"""`ControlServer`: the worker's side. It receives commands and answers them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mqcore.consuming.replies import REPLY_QUEUES
from mqcore.control.protocol import ROUTER, Answer, Command, queue_of
from mqcore.errors import MqcoreError
from mqcore.log import log
from mqcore.messages.message import Message, new_id
from mqcore.rules.capabilities import Capability
from mqcore.rules.redact import describe_error
from mqcore.rules.retry import Ending, HandlerResult
from mqcore.rules.routing import Binding
from mqcore.spi import QueueSpec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from mqcore.consuming.grace import Grace
    from mqcore.consuming.receiver import Receiver
    from mqcore.session import Session

__all__ = ["ControlServer", "binds_workers"]

_DONE = HandlerResult(Ending.SUCCEEDED)
_AT_ONCE = 20
"""Commands that are executed at once. Others are dropped, and answered by no one."""
_ANSWER_WITHIN = 5.0
_CLOSE_WITHIN = 0.5


def binds_workers(session: Session) -> bool:
    """Whether the queues of workers can be bound to a router of this broker."""
    return session.connection.capabilities.has(Capability.ROUTING)


class ControlServer:
    """Receives the commands to one worker.

    A worker whose commands cannot be received works as before: the reason is logged.
    """

    def __init__(
        self,
        session: Session,
        name: str,
        execute: Callable[[Command], Awaitable[Mapping[str, Any]]],
        on_close: Callable[[], None],
    ) -> None:
        """`execute` runs a command. What it raises becomes the error of the answer."""
        self.name = name
        self._session = session
        self._execute = execute
        self._on_close = on_close
        self._queue = queue_of(name)
        self._binding = Binding(router=ROUTER, kind="fanout", queue=self._queue, pattern="")
        self._receiver: Receiver | None = None
        self._serving: asyncio.Task[None] | None = None
        self._commands: set[asyncio.Task[None]] = set()
        self._has_warned = False

    def start(self) -> None:
        """Begin to receive commands, as soon as the broker is there. Returns at once."""
        self._serving = asyncio.get_running_loop().create_task(self._serve())

    async def _serve(self) -> None:
        connection = self._session.connection
        try:
            await connection.ready("receiving commands")
            await connection.declare([QueueSpec(name=self._queue, role="temporary")])
            if binds_workers(self._session):
                await connection.bind([self._binding])
            self._receiver = await self._session.temporary_receiver(self._queue)
            while (held := await self._receiver.next()) is not None:
                # It is settled first: a command is executed at most once.
                self._receiver.finish(held, _DONE)
                if len(self._commands) < _AT_ONCE:
                    task = asyncio.create_task(self._answer(held.delivery.message))
                    self._commands.add(task)
                    task.add_done_callback(self._commands.discard)
        except Exception as error:  # noqa: BLE001 - a worker without commands still works
            log().warning("worker %s receives no commands: %s", self.name, describe_error(error))

    async def _answer(self, message: Message) -> None:
        """Execute a command and send the answer."""
        try:
            command = Command.decode(message.body)
        except ValueError as error:
            if not self._has_warned:
                self._has_warned = True
                text = "worker %s: a message in its queue for commands is not a command (%s)"
                log().warning(text, self.name, error)
            return

        try:
            answer = Answer(self.name, await self._execute(command))
        except MqcoreError as error:
            answer = Answer(self.name, error=str(error))
        except Exception as error:  # noqa: BLE001 - the worker goes on, and the sender learns why
            log().exception("worker %s: command %r failed", self.name, command.name)
            answer = Answer(self.name, error=describe_error(error))
        await self._send(message, answer)

    async def _send(self, command: Message, answer: Answer) -> None:
        # The sender of a command must not make the worker write to queues of its choice.
        if command.reply_to is None or not command.reply_to.startswith(REPLY_QUEUES):
            return
        reply = Message(
            id=new_id(),
            body=answer.encode(),
            content_type="application/json",
            correlation_id=command.correlation_id,
        )
        with suppress(MqcoreError):  # the sender of the command is gone
            await self._session.publisher.send(command.reply_to, reply, {}, _ANSWER_WITHIN)

    async def close(self, grace: Grace) -> None:
        """Receive no more commands. Those that are executed may send their answers."""
        if self._serving is None:
            return
        serving, self._serving = self._serving, None
        self._on_close()
        if self._commands:
            await asyncio.wait(self._commands, timeout=_CLOSE_WITHIN)
        for command in self._commands - {asyncio.current_task()}:
            command.cancel()
        serving.cancel()  # first, for it binds
        await asyncio.gather(serving, return_exceptions=True)
        if self._receiver is not None:
            await self._receiver.close(grace)

        with suppress(TimeoutError, MqcoreError):
            async with asyncio.timeout(_CLOSE_WITHIN):
                if binds_workers(self._session):
                    await self._session.connection.unbind([self._binding])
        self._session.connection.forget([self._queue])
