"""Publishing inside Django's transactions.

    from mqcore.django import publish_on_commit

    with transaction.atomic():
        order = Order.objects.create(...)
        publish_on_commit(broker, orders, {"id": order.pk})

The message is a row in Django's own database until the transaction commits: it is not lost when the
process dies right after, and its id is known before. The broker is that database itself, or has it
as its outbox: `Broker.connect("redis://localhost", outbox=database_url())`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, Unpack
from urllib.parse import quote, urlencode

from mqcore.errors import ConfigurationError

if TYPE_CHECKING:
    from mqcore.publishing.options import PublishOptions, Receipt, Target
    from mqcore.sync import Broker

__all__ = ["database_url", "publish_on_commit"]

T = TypeVar("T")
_SSL = ("sslmode", "sslrootcert", "sslcert", "sslkey")


def publish_on_commit(
    broker: Broker,
    to: Target[T],
    payload: T,
    *,
    using: str | None = None,
    **options: Unpack[PublishOptions],
) -> Receipt:
    """Publish one payload when the transaction of a Django database commits, and not before.

    `using` is the alias of the database, `default` by default. Options and errors are those of
    `Broker.publish`. Outside `transaction.atomic()` the message is published at once. Raises
    `ConfigurationError` when the database is neither the broker nor its outbox.
    """
    from django.db import DEFAULT_DB_ALIAS, connections, transaction  # noqa: PLC0415 - an extra

    if "session" in options:
        raise ConfigurationError(
            "publish_on_commit takes no session: it uses Django's connection. Name its alias with "
            "using="
        )
    alias = DEFAULT_DB_ALIAS if using is None else using
    connection = options["session"] = connections[alias]
    if connection.in_atomic_block or not connection.get_autocommit():
        return broker.publish(to, payload, **options)
    with transaction.atomic(using=alias):
        return broker.publish(to, payload, **options)


def database_url(using: str | None = None) -> str:
    """Return the URL of a Django database, for `Broker.connect` and its `outbox`.

    Raises `ConfigurationError` for a database that mqcore does not serve. The URL has the password:
    do not print it.
    """
    from django.db import DEFAULT_DB_ALIAS, connections  # noqa: PLC0415 - an extra

    alias = DEFAULT_DB_ALIAS if using is None else using
    connection = connections[alias]
    settings: dict[str, Any] = connection.settings_dict
    if connection.vendor == "sqlite":
        return _sqlite_url(alias, str(settings["NAME"]))
    if connection.vendor == "postgresql":
        return _postgresql_url(settings)
    raise ConfigurationError(
        f"the database {alias!r} of Django is {connection.vendor!r}; mqcore serves SQLite and "
        "PostgreSQL"
    )


def _sqlite_url(alias: str, name: str) -> str:
    if ":memory:" in name or "mode=memory" in name:
        raise ConfigurationError(
            f"the database {alias!r} of Django is in memory, where no other connection can reach "
            "it. In tests, name a file: DATABASES[...]['TEST'] = {'NAME': ...}"
        )
    return f"sqlite:///{quote(name)}"


def _postgresql_url(settings: dict[str, Any]) -> str:
    options = settings.get("OPTIONS", {})
    user, password = settings.get("USER"), settings.get("PASSWORD")
    host, port = settings.get("HOST") or "", settings.get("PORT")

    account = quote(str(user), safe="") if user else ""
    if password:
        account += f":{quote(str(password), safe='')}"
    place = quote(str(host), safe="[]:") if str(host).startswith("[") else quote(str(host), safe="")
    if port:
        place += f":{port}"
    query = urlencode({name: str(options[name]) for name in _SSL if name in options})
    name = quote(str(settings.get("NAME") or ""), safe="")
    return f"postgresql://{account}{'@' if account else ''}{place}/{name}{query and '?'}{query}"
