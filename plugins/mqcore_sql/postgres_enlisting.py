"""Publishing in the transactions of an application on PostgreSQL."""

import base64
import json
from collections.abc import Mapping, Sequence
from typing import ClassVar

from mqcore.spi import Clock, Transaction
from mqcore_sql.database import TABLES, Database
from mqcore_sql.enlisting import Enlister, Facts
from mqcore_sql.options import SqlOptions
from mqcore_sql.postgres import STORE_INPUT
from mqcore_sql.records import Row

__all__ = ["PostgresEnlister"]

_EXISTS = "SELECT 1 WHERE to_regclass(CAST(:name AS text)) IS NOT NULL"
_FACTS = "SELECT key, value FROM {meta} WHERE key IN ('schema', 'instance')"
_DATABASE = "SELECT CAST(oid AS bigint) FROM pg_database WHERE datname = current_database()"
_INPUT = """
    WITH input AS MATERIALIZED (
        SELECT nextval('{{numbers}}') AS id, given.number, given.queue, given.rank, given.delay,
               given.ttl, given.expires AS ends, decode(given.name, 'hex') AS name, given.meta,
               decode(given.body, 'base64') AS body
        FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS given (
            number bigint, queue bigint, rank smallint, delay bigint, ttl bigint, expires bigint,
            name text, meta text, body text)),"""
"""All rows as one JSON text."""


class PostgresEnlister(Enlister):
    """Stores messages in transactions of one PostgreSQL database."""

    dialect = "postgresql"
    words: ClassVar[Mapping[str, str]] = {
        "now": "CAST(extract(epoch FROM statement_timestamp()) * 1000000 AS bigint)",
        "shared": "FOR KEY SHARE",
    }

    def __init__(
        self, database: Database, options: SqlOptions, clock: Clock, schema: str | None
    ) -> None:
        self._schema = schema
        super().__init__(database, options, clock)

    def _table_names(self, database: Database, own: Transaction) -> dict[str, str]:
        """Return the names with their schema: the application may search others."""
        schema = self._schema
        if schema is None:
            schema = str(own.execute("SELECT CAST(current_schema() AS text)", {})[0][0])
        quoted = '"' + schema.replace('"', '""') + '"'
        names = (*TABLES, "numbers")
        return {name: f"{quoted}.{database.prefix}_{name}" for name in names}

    def _place(self, transaction: Transaction) -> tuple[int, ...]:
        """Return the number of the database: a copy of it in the same server has another one."""
        return (int(transaction.execute(_DATABASE, {})[0][0]),)

    def _facts(self, transaction: Transaction) -> Facts:
        """Look for the table first: a statement that fails would end the transaction."""
        if not transaction.execute(_EXISTS, {"name": self._tables["meta"]}):
            return {}
        return {str(key): int(value) for key, value in self._run(transaction, _FACTS)}

    @staticmethod
    def _any_of(name: str) -> str:
        return f"IN (SELECT jsonb_array_elements_text(CAST(:{name} AS jsonb)))"

    def _store(self, transaction: Transaction, rows: Sequence[Row], current: int) -> set[int]:
        """Store all rows by one statement and one parameter, which any client library can send."""
        records = [
            {
                **row._asdict(),
                "name": None if row.name is None else row.name.hex(),
                "body": base64.b64encode(row.body).decode(),
                "number": number,
            }
            for number, row in enumerate(rows)
        ]
        statement = (_INPUT + STORE_INPUT).format(current=current, other=1 - current)
        found = self._run(transaction, statement, rows=json.dumps(records), window=self._window)
        return {int(number) for (number,) in found}
