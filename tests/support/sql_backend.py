"""The backend of a database's URL, with the options of the URL: for processes of tests."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

if TYPE_CHECKING:
    from mqcore_sql.driver import SqlBackend

__all__ = ["backend_of"]


def backend_of(url: str) -> SqlBackend:
    """Return it, not yet open. Only what the scheme needs is imported."""
    parts = urlsplit(url)
    module, name = (
        ("sqlite_backend", "SqliteBackend")
        if parts.scheme == "sqlite"
        else ("postgres_backend", "PostgresBackend")
    )
    kind: type[SqlBackend] = getattr(import_module(f"mqcore_sql.{module}"), name)
    options = kind.Options.model_validate(dict(parse_qsl(parts.query)))
    return kind(url.partition("?")[0], options)
