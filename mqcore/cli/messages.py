"""`mqcore publish` and `mqcore peek`: one message in, and a look at those that wait."""

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
    """How PAYLOAD is read and sent."""

    json = "json"
    text = "text"
    bytes = "bytes"


@dataclass(frozen=True)
class How:
    """What is said of the message beside its payload."""

    content_type: Annotated[
        ContentType, typer.Option(help="What PAYLOAD is; JSON is checked before it is sent.")
    ] = ContentType.json
    priority: Annotated[int | None, typer.Option(help="0, lowest, to 10; 5 when not given.")] = None
    ttl: Annotated[float | None, typer.Option(metavar="SECONDS", help="Expire after so long.")] = (
        None
    )
    delay: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Do not handle it before so long.")
    ] = None
    id: Annotated[
        str | None, typer.Option(help="An id of your own; the same one again is stored once.")
    ] = None
    header: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="A header; may be repeated.")
    ] = None
    router: Annotated[bool, typer.Option("--router", help="QUEUE is the name of a router.")] = False
    key: Annotated[
        str | None, typer.Option(help="Routing key; QUEUE is then the name of a router.")
    ] = None

    def options(self) -> PublishOptions:
        """Return what was given, for `Broker.publish`.

        Raises `ConfigurationError` for a header that is none.
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
            help="The payload, - for standard input, @ and a file's name.",
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
        again = ", which had it already" if receipt.duplicate else ""
        print(f"{receipt.id} is stored in {', '.join(receipt.queues)}{again}")


async def _router(broker: Broker, name: str, value: object) -> Router[Any]:
    """Return the router as the broker knows it: an operator has no code that says its kind."""
    bindings = await broker.bindings()
    kinds = {binding.router: binding.kind for binding in bindings}
    if name not in kinds:
        raise ConfigurationError(
            f"no router {name!r} has bindings; those that have are: {', '.join(kinds) or 'none'}"
        )
    return Router(name, type(value), kind=kinds[name])


def _read(payload: str) -> bytes:
    if payload == "-":
        return sys.stdin.buffer.read()
    if not payload.startswith("@"):
        return payload.encode(
            "utf-8", "surrogateescape"
        )  # odd bytes on the command line stay these bytes
    try:
        return Path(payload[1:]).read_bytes()
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(
            f"the payload's file {payload[1:]!r:.200} cannot be read: {why}"
        ) from error


def _value(body: bytes, kind: ContentType) -> object:
    """Return what is published: something that mqcore encodes as the content type that was asked for."""
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
            f"the payload is no text: byte {error.start} is not UTF-8; try --content-type bytes"
        ) from error
    except ValueError as error:
        hint = "quote it for the shell, or try --content-type text"
        raise ValidationError(f"the payload is no JSON: {error}; {hint}") from error


def peek(
    queue: Annotated[
        str,
        typer.Argument(
            metavar="QUEUE",
            help="Name of a queue; a dead-letter queue is one, too.",
            show_default=False,
        ),
    ],
    *,
    limit: Annotated[int, typer.Option(min=1, help="How many messages to show.")] = 10,
    at: At,
) -> None:
    """Show the messages that would come next, and change nothing."""

    async def work(broker: Broker) -> list[Entry]:
        found: list[Entry] = []
        while len(found) < limit:
            wanted = min(limit - len(found), _PAGE)
            page = await broker.peek(queue, wanted, found[-1].key if found else None)
            found += page
            if len(page) < wanted:
                break
        return found

    entries = at.run(work)
    if at.json:
        print_json([_data(entry) for entry in entries])
        return
    columns = ("id", "state", "priority", "attempt", "age", "due", "content type", "body")
    print_table(
        columns,
        [_row(entry) for entry in entries],
        empty=f"queue {queue!r} has no message that waits",
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
