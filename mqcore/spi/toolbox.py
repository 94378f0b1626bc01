"""What several drivers need: names, comparing settings, overflow, expiry, hosts and TLS.

Everything here is pure, except that `tls_context` reads the files that it is given.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import fields
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from mqcore.errors import ConfigurationError, TopologyMismatch
from mqcore.messages.message import Death, Message, Reason
from mqcore.spi.backend import QueueSpec
from mqcore.spi.optional import Alterations

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from mqcore.messages.delivery import Outgoing
    from mqcore.rules.routing import Binding

__all__ = [
    "HIDDEN_ROLES",
    "check_router_kinds",
    "check_spec",
    "expiry_of",
    "mismatch",
    "not_alterable",
    "overflowed",
    "quarantine_of",
    "router_mismatch",
    "split_hosts",
    "split_url",
    "tls_context",
]

HIDDEN_ROLES = frozenset({"quarantine", "temporary"})
"""Roles of the queues that `count` leaves out when no queue is named."""


# Queues


def quarantine_of(queue: str) -> str:
    """Return the name of the queue's quarantine."""
    return f"{queue}.quarantine"


def check_spec(
    have: QueueSpec, want: QueueSpec, *, alterable: Collection[str] = Alterations.__annotations__
) -> None:
    """Raise `TopologyMismatch` when a queue exists with other settings than those declared.

    `alterable`: the settings that the driver's `SupportsAlter.alter` can change. `durability` is
    not compared: what it means depends on the broker.
    """
    for field in fields(QueueSpec):
        name, old, new = field.name, getattr(have, field.name), getattr(want, field.name)
        if old != new and name != "durability":
            raise mismatch(have.name, name, old, new, alterable=name in alterable)


def mismatch(
    queue: str, setting: str, have: object, want: object, *, alterable: bool
) -> TopologyMismatch:
    """Return the error for a queue that exists with another setting than the one declared.

    `alterable`: the driver's `SupportsAlter.alter` can change this setting of a queue that exists.
    """
    if alterable:
        text = "none" if want is None else f"{want:.15g}" if isinstance(want, float) else want
        option = f"--{setting.replace('_', '-')} {text}"
        cure = (
            f'Change the queue, with what it holds: "mqcore queues alter {queue} {option}" or '
            "broker.alter(...)"
        )
    else:
        cure = (
            f"The broker fixes {setting} when a queue is made: redrive or consume what the "
            f'queue holds, and delete it with "mqcore queues delete {queue}"'
        )

    return TopologyMismatch(
        f"queue {queue!r} exists with {setting}={have!r}, but the code declares "
        f"{setting}={want!r}. {cure}. "
        f"Or declare {setting}={have!r} in the code, or take the queue as it is with declare=False"
    )


def not_alterable(queue: str, setting: str, have: object, want: object) -> TopologyMismatch:
    """Return the error of `SupportsAlter.alter` for a setting that the broker cannot change.

    The wanted value may come from code, from the settings or from the command line.
    """
    return TopologyMismatch(
        f"queue {queue!r} has {setting}={have!r}, which cannot be altered to {want!r}: the broker "
        f"fixes {setting} when a queue is made. Redrive or consume what the queue holds, delete it "
        f'with "mqcore queues delete {queue}", and declare it with {setting}={want!r}'
    )


# Routers


def check_router_kinds(existing: Iterable[Binding], added: Iterable[Binding]) -> None:
    """Raise `TopologyMismatch` when a router would have bindings of two kinds (G15)."""
    kinds = {binding.router: binding.kind for binding in existing}

    for binding in added:
        kind = kinds.setdefault(binding.router, binding.kind)
        if kind != binding.kind:
            raise router_mismatch(binding.router, kind, binding.kind)


def router_mismatch(router: str, have: str, want: str) -> TopologyMismatch:
    """Return the error for a router that exists with another kind than the one declared."""
    return TopologyMismatch(
        f"router {router!r} exists with kind={have!r}, but the code declares kind={want!r}. "
        "Use one kind everywhere, choose another name, or remove the router's bindings first"
    )


# Messages


def expiry_of(out: Outgoing, queue_ttl: float | None, now: float) -> float | None:
    """Return when a message expires that is stored now, None for never (G6).

    The ttl of the queue counts for a published message (hop 0); a Move brings its own expiry.
    """
    message = out.message
    expires = message.expires_at if out.ttl is None else now + out.ttl

    if queue_ttl is None or message.hop:
        return expires
    return now + queue_ttl if expires is None else min(expires, now + queue_ttl)


def overflowed(message: Message, queue: str, at: float) -> Message:
    """Return the dead letter of a message that a full queue has evicted (G11, G12).

    `at` is the time of day, in seconds since the epoch.
    """
    death = Death(
        reason=Reason.OVERFLOW,
        queue=queue,
        attempts=message.attempt - 1,
        first_at=message.failed_at or at,
        last_at=at,
    )
    return message.moved(queue, attempt=1, expires_at=None, failed_at=None, death=death)


# Connections


def split_url(url: str) -> SplitResult:
    """Return the parts of a broker's URL, which may name several hosts: `amqp://one,[::1]:5672/`.

    As `urllib.parse.urlsplit`, of which later versions refuse an address in brackets behind another
    host (CVE-2024-11168). Use `netloc` with `split_hosts`. Raises `ValueError`.
    """
    scheme, mark, rest = url.partition("://")
    netloc = re.split(r"[/?#]", rest, maxsplit=1)[0]

    parts = urlsplit(f"{scheme}{mark}{rest[len(netloc) :]}")
    return parts._replace(netloc=netloc)


def split_hosts(netloc: str, port: int) -> tuple[tuple[str, int], ...]:
    """Return the hosts and ports in the network part of a URL: `user:password@one:1,two`.

    A host without a port gets `port`, and an empty list is `localhost`. Raises
    `ConfigurationError`, without secrets, for a host or port that is not valid.
    """
    try:
        parts = [urlsplit(f"//{place}") for place in netloc.rpartition("@")[2].split(",")]
        return tuple((part.hostname or "localhost", part.port or port) for part in parts)
    except ValueError:
        raise ConfigurationError(
            "the URL names a host or a port that is not valid: write host:port, with a port from "
            "1 to 65535, and commas between several hosts"
        ) from None


def tls_context(cafile: Path | None, certfile: Path | None, keyfile: Path | None) -> ssl.SSLContext:
    """Return a TLS context that checks names and certificates.

    Raises `ConfigurationError` for a file that cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=cafile)
        if certfile is not None:
            context.load_cert_chain(certfile, keyfile)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"TLS: cafile, certfile or keyfile cannot be used: {error}"
        ) from None
    return context
