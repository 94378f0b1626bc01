"""`mqcore publish` and `mqcore peek`: publish a message, and show the waiting ones."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import RootModel
from pydantic_core import from_json

from mqcore.broker import Broker
from mqcore.cli.common import At
from mqcore.cli.output import ago, data_of_body, iso, print_json, print_table, shown_body, span
from mqcore.errors import ConfigurationError, ValidationError
from mqcore.publishing.options import PublishOptions, Receipt
from mqcore.router import Router
from mqcore.spi import Entry

__all__ = ["peek", "publish"]

_PAGE, _SHOWN = 200, 80


class ContentType(StrEnum):
    """The content type of PAYLOAD."""

    json = "json"
    text = "text"
    bytes = "bytes"


@dataclass(frozen=True)
class How:
    """The options of the message."""

    content_type: Annotated[
        ContentType,
        typer.Option(help="The content type of PAYLOAD; JSON is checked before it is sent."),
    ] = ContentType.json
    priority: Annotated[
        int | None, typer.Option(help="From 0, the lowest, to 10; 5 by default.")
    ] = None
    ttl: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Seconds until it expires.")
    ] = None
    delay: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Seconds before it may be handled.")
    ] = None
    id: Annotated[
        str | None,
        typer.Option(help="The message's id; a second message with the same id is not stored."),
    ] = None
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A header; may be repeated.")
    ] = None
    router: Annotated[bool, typer.Option("--router", help="QUEUE is the name of a router.")] = False
    key: Annotated[
        str | None, typer.Option(help="Routing key; QUEUE is then the name of a router.")
    ] = None

    def options(self) -> PublishOptions:
        """Return the given options, for `Broker.publish`.

        Raises `ConfigurationError` for a header that is not of the form NAME=VALUE.
        """
        options: PublishOptions = {}
        if self.priority is not None:
            options["priority"] = self.priority
        if self.ttl is not None:
            options["ttl"] = self.ttl
        if self.delay is not None:
            options["delay"] = self.delay
        if self.id is not None:
            options["id"] = self.id
        if self.key is not None:
            options["key"] = self.key
        if self.header:
            options["headers"] = _headers(self.header)
        return options


def _headers(pairs: Sequence[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for pair in pairs:
        name, mark, value = pair.partition("=")
        if not mark:
            raise ConfigurationError(f"--header {pair!r:.100} is not of the form NAME=VALUE")
        if name in headers:
            raise ConfigurationError(f"--header {name!r:.100} is given twice")
        headers[name] = value
    return headers


def publish(
    queue: Annotated[
        str,
        typer.Argument(
            metavar="QUEUE", help="Name of an existing queue, or of a router.", show_default=False
        ),
    ],
    payload: Annotated[
        str,
        typer.Argument(
            metavar="PAYLOAD|-|@FILE",
            help="The payload, - for standard input, or @ and the name of a file.",
        ),
    ],
    how: How,
    at: At,
) -> None:
    """Publish one message to an existing queue or router, and show the broker's receipt."""
    options, value = how.options(), _value(_read(payload), how.content_type)

    async def work(broker: Broker) -> Receipt:
        to = await _router(broker, queue, value) if how.router or how.key is not None else queue
        return await broker.publish(to, value, **options)

    receipt = at.run(work)
    if at.json:
        print_json(
            {"id": receipt.id, "queues": list(receipt.queues), "duplicate": receipt.duplicate}
        )
    else:
        again = " (it was stored before with this id)" if receipt.duplicate else ""
        print(f"{receipt.id} is stored in {', '.join(receipt.queues)}{again}")


async def _router(broker: Broker, name: str, value: object) -> Router[Any]:
    """Return the router with the kind that the broker knows: there is no code that names it."""
    bindings = await broker.bindings()
    kinds = {binding.router: binding.kind for binding in bindings}
    if name not in kinds:
        raise ConfigurationError(
            f"no router {name!r} has bindings; routers with bindings: {', '.join(kinds) or 'none'}"
        )
    return Router(name, type(value), kind=kinds[name])


def _read(payload: str) -> bytes:
    if payload == "-":
        return sys.stdin.buffer.read()
    if not payload.startswith("@"):
        # Bytes on the command line that are not UTF-8 stay as they are.
        return payload.encode("utf-8", "surrogateescape")
    try:
        return Path(payload[1:]).read_bytes()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(
            f"the payload's file {payload[1:]!r:.200} cannot be read: {why}"
        ) from error


def _value(body: bytes, kind: ContentType) -> object:
    """Return the value to publish; mqcore encodes it as this content type."""
    if kind is ContentType.bytes:
        return body
    try:
        return (
            body.decode()
            if kind is ContentType.text
            else RootModel[Any](from_json(body, allow_inf_nan=False))
        )
    except UnicodeDecodeError as error:
        raise ValidationError(
            f"the payload is not text: byte {error.start} is not UTF-8; try --content-type bytes"
        ) from error
    except ValueError as error:
        hint = "quote it for the shell, or try --content-type text"
        raise ValidationError(f"the payload is not JSON: {error}; {hint}") from error


def peek(
    queue: Annotated[
        str,
        typer.Argument(
            metavar="QUEUE",
            help="Name of a queue, which may be a dead-letter queue.",
            show_default=False,
        ),
    ],
    *,
    limit: Annotated[int, typer.Option(min=1, help="How many messages to show.")] = 10,
    at: At,
) -> None:
    """Show the next messages of a queue without changing anything."""

    async def work(broker: Broker) -> list[Entry]:
        entries: list[Entry] = []
        while len(entries) < limit:
            size = min(limit - len(entries), _PAGE)
            page = await broker.peek(queue, size, entries[-1].key if entries else None)
            entries += page
            if len(page) < size:
                break
        return entries

    entries = at.run(work)
    if at.json:
        print_json([_data(entry) for entry in entries])
        return
    columns = ("id", "state", "priority", "attempt", "age", "due", "content type", "body")
    print_table(
        columns,
        [_row(entry) for entry in entries],
        empty=f"queue {queue!r} has no waiting messages",
    )


def _row(entry: Entry) -> tuple[object, ...]:
    message = entry.message
    due = span(entry.due_in) if entry.state == "delayed" else None
    body = shown_body(message.body, most=_SHOWN)
    age = ago(message.published_at)
    return (
        message.id,
        entry.state,
        message.priority,
        message.attempt,
        age,
        due,
        message.content_type,
        body,
    )


def _data(entry: Entry) -> dict[str, object]:
    message = entry.message
    return {
        "id": message.id,
        "state": entry.state,
        "priority": message.priority,
        "attempt": message.attempt,
        "redriven": message.redriven,
        "published_at": iso(message.published_at),
        "due_in": entry.due_in,
        "content_type": message.content_type,
        "headers": dict(message.headers),
        **data_of_body(message.body),
    }
