"""The open transaction of an application: SQLAlchemy's sessions and connections, and Django's.

`within` runs work in it, and `at_end` calls back after it. Nothing here imports SQLAlchemy or
Django unless the application has.
"""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from mqcore.errors import ConfigurationError
from mqcore.rules.checks import described

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mqcore.spi import Transaction

__all__ = ["Handle", "handle_of"]

R = TypeVar("R")
_PARAMETER = re.compile(r"(?<!:):([a-z]\w*)")
_SOON = 0.05
_NOT_USABLE = (
    "session= takes a Session, AsyncSession, Connection or AsyncConnection of SQLAlchemy, or "
    "Django's connection (django.db.connection), not {what}"
)


class Handle:
    """What `session=` was given, as something in which messages can be enlisted."""

    is_async = False
    """Whether its work has to be awaited, with `run_async`."""
    ends_in = 0.0
    """Seconds after `at_end` has called until the transaction has ended."""

    def run(self, work: Callable[[Transaction], R]) -> R:
        """Run work in the transaction, in this thread."""
        raise NotImplementedError

    async def run_async(self, work: Callable[[Transaction], R]) -> R:
        """Run work in the transaction of an asynchronous client library."""
        return self.run(work)

    def at_end(self, call: Callable[[], None]) -> None:
        """Call after the transaction has ended, where that can be known; from any thread."""


def handle_of(session: object) -> Handle:
    """Return the handle of a session or connection, in the thread that uses it.

    What stands for the connection of a thread or a task, such as a `scoped_session`, is resolved
    now. Raises `ConfigurationError` for anything else.
    """
    if isinstance(session, Handle):
        return session
    if "sqlalchemy" in sys.modules and (found := _sqlalchemy_handle(session)) is not None:
        return found
    if "django.db" in sys.modules and (found := _django_handle(session)) is not None:
        return found
    raise ConfigurationError(_NOT_USABLE.format(what=described(session)))


# SQLAlchemy


def _sqlalchemy_handle(session: Any) -> Handle | None:
    from sqlalchemy import Connection  # noqa: PLC0415 - an extra
    from sqlalchemy.ext.asyncio import (  # noqa: PLC0415 - an extra
        AsyncConnection,
        AsyncSession,
        async_scoped_session,
    )
    from sqlalchemy.orm import Session, scoped_session  # noqa: PLC0415 - an extra

    if isinstance(session, (scoped_session, async_scoped_session)):
        session = session()
    if isinstance(session, AsyncSession):
        return _AsyncSqlalchemy(session, session.sync_session)
    if isinstance(session, AsyncConnection):
        return _AsyncSqlalchemy(session, session.sync_connection)
    return _Sqlalchemy(session) if isinstance(session, (Session, Connection)) else None


class _Sqlalchemy(Handle):
    """A `Session` or a `Connection`."""

    def __init__(self, inner: Any) -> None:
        from sqlalchemy.orm import Session  # noqa: PLC0415 - an extra

        self._inner = inner
        # a connection tells of its commit before it begins
        self.ends_in = 0.0 if isinstance(inner, Session) else _SOON

    def run(self, work: Callable[[Transaction], R]) -> R:
        """Run work on the connection that the session uses for this transaction."""
        from sqlalchemy.orm import Session  # noqa: PLC0415 - an extra

        is_session = isinstance(self._inner, Session)
        connection = self._inner.connection() if is_session else self._inner
        _check_transaction(connection)
        return work(_SqlalchemyTransaction(connection))

    def at_end(self, call: Callable[[], None]) -> None:
        """Call at the end of the outermost transaction."""
        inner = self._inner
        if inner in _waiting:
            _waiting[inner].append(call)
        else:
            _waiting[inner] = [call]
            _listen(inner)


_waiting: WeakKeyDictionary[Any, list[Callable[[], None]]] = WeakKeyDictionary()
"""What to call at the end of the transaction of a session or connection, if there is one."""


def _listen(inner: Any) -> None:
    """Listen to the ends of transactions. SQLAlchemy cannot end a listener from inside of it."""
    from sqlalchemy import event  # noqa: PLC0415 - an extra
    from sqlalchemy.orm import Session  # noqa: PLC0415 - an extra

    if isinstance(inner, Session):
        event.listen(inner, "after_transaction_end", _session_ended)
    else:
        event.listen(inner, "commit", _ended)
        event.listen(inner, "rollback", _ended)


def _session_ended(session: Any, transaction: Any) -> None:
    if transaction.parent is None:
        _ended(session)


def _ended(inner: Any) -> None:
    calls = _waiting.get(inner, [])
    while calls:
        calls.pop()()


class _AsyncSqlalchemy(_Sqlalchemy):
    """An `AsyncSession` or an `AsyncConnection`."""

    is_async = True

    def __init__(self, outer: Any, inner: Any) -> None:
        super().__init__(inner)
        self._outer = outer

    async def run_async(self, work: Callable[[Transaction], R]) -> R:
        """Run work where the asynchronous library looks like a blocking one."""
        result: R = await self._outer.run_sync(lambda _: self.run(work))
        return result


class _SqlalchemyTransaction:
    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.dialect = str(connection.dialect.name)

    def execute(self, statement: str, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        from sqlalchemy import text  # noqa: PLC0415 - an extra

        result = self._connection.execute(text(statement), dict(values))
        return result.fetchall() if result.returns_rows else ()


def _check_transaction(connection: Any) -> None:
    """Refuse a connection on which each statement is committed by itself."""
    options = connection.get_execution_options()
    level = options.get("isolation_level") or getattr(
        connection.dialect, "_on_connect_isolation_level", None
    )
    driver = getattr(connection.connection, "dbapi_connection", None)
    if level == "AUTOCOMMIT" or getattr(driver, "autocommit", False) is True:
        raise ConfigurationError(
            "session= is in autocommit mode, so there is no transaction that a message could join. "
            "Begin one on an engine without isolation_level='AUTOCOMMIT', or publish without "
            "session="
        )


# Django


def _django_handle(connection: Any) -> Handle | None:
    from django.db import connections  # noqa: PLC0415 - an extra
    from django.db.backends.base.base import BaseDatabaseWrapper  # noqa: PLC0415 - an extra
    from django.utils.connection import ConnectionProxy  # noqa: PLC0415 - an extra

    if isinstance(connection, ConnectionProxy):
        connection = connections[connection.alias]
    return _Django(connection) if isinstance(connection, BaseDatabaseWrapper) else None


class _Django(Handle):
    """A connection of Django, inside `transaction.atomic()`."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def run(self, work: Callable[[Transaction], R]) -> R:
        """Run work on the connection. Raises `ConfigurationError` outside a transaction."""
        connection = self._connection
        if not connection.in_atomic_block and connection.get_autocommit():
            raise ConfigurationError(
                f"Django's connection {connection.alias!r} is in autocommit mode, so there is no "
                "transaction that a message could join. Publish inside transaction.atomic(), or "
                "use mqcore.django.publish_on_commit"
            )
        return work(_DjangoTransaction(connection))

    def at_end(self, call: Callable[[], None]) -> None:
        """Call after the commit of the outermost `atomic`."""
        if self._connection.in_atomic_block:
            self._connection.on_commit(call, robust=True)


class _DjangoTransaction:
    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.dialect = str(connection.vendor)

    def execute(self, statement: str, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        with self._connection.cursor() as cursor:
            cursor.execute(_PARAMETER.sub(r"%(\1)s", statement), dict(values))
            return cursor.fetchall() if cursor.description else ()
