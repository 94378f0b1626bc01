"""Transactions of an application, on the bare client libraries."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Psycopg", "Sqlite"]

_PARAMETER = re.compile(r"(?<!:):([a-z]\w*)")


class Sqlite:
    """A transaction on a connection of `sqlite3`, which begins it with the first change."""

    dialect = "sqlite"

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection

    def execute(self, statement: str, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        return self.connection.execute(statement, values).fetchall()


class Psycopg:
    """A transaction on a connection of `psycopg`."""

    dialect = "postgresql"

    def __init__(self, connection: Any) -> None:
        self.connection = connection

    def execute(self, statement: str, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        cursor = self.connection.execute(_PARAMETER.sub(r"%(\1)s", statement), values)
        return cursor.fetchall() if cursor.description else ()
