"""PostgreSQL, by psycopg: connecting, and the statements of its own."""

import os
import re
import select
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar

import psycopg
from psycopg import sql as names

from mqcore.spi import ConfigurationError, ConnectionLost, Durability, ErrorKind
from mqcore_sql.database import TABLES, Columns, CommitUnknown, Database
from mqcore_sql.options import PostgresOptions
from mqcore_sql.records import Claimed, Row
from mqcore_sql.statements import END_LEASES, HAS_LEASE, LOCK_QUEUES

__all__ = ["STORE_INPUT", "PostgresDatabase"]

_OLDEST = 140000
"""`server_version_num` of the first version that the contract may hold on."""
_PARAMETER = re.compile(r"(?<!:):([a-z]\w*)")
_ENDED_EVERY = 0.2
"""Seconds between two searches for leases of one queue that have ended."""
_NOTIFY_EVERY, _HINT = 0.05, 0.1
"""Seconds between two notifications, and how long one is a reason to look."""
_VACUUM_EVERY, _DEAD = 5.0, 5_000
"""Seconds between two vacuums, and how many dead rows are worth one."""
_COUNTED = 20.0
"""Seconds after a write in which the server counts what it has left, or another process writes."""
_PINNED = 60.0
"""Seconds after which another transaction is reported: no dead row can be removed meanwhile."""
_LOST = ("08", "57P", "25006", "25P03", "25P04")
"""Beginnings of error codes after which to reconnect: the session ended, or its server was demoted.

The last two are time limits of the server for a transaction, which end the session.
"""
_CERTAIN = ("40001", "40P01", "53", "55", "57014")
"""Beginnings of error codes of transactions that were rolled back."""
_KINDS = {
    "53100": ErrorKind.FULL,
    "54": ErrorKind.TOO_LARGE,
    "28": ErrorKind.DENIED,
    "42501": ErrorKind.DENIED,
    **dict.fromkeys((*_LOST, *_CERTAIN), ErrorKind.TRANSIENT),
}
_REFUSALS = {
    r"authentication failed|no password supplied": ErrorKind.DENIED,
    r"no pg_hba\.conf entry|permission denied": ErrorKind.DENIED,
    r'role ".*" (does not exist|is not permitted to log in)': ErrorKind.DENIED,
    r'database ".*" does not exist': ErrorKind.PERMANENT,
}
"""Why a server refuses a session: psycopg has the text of the error alone, and no code."""
_SESSION = """
    SET default_transaction_isolation = 'read committed';
    SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_sort = off;
    SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off;
    SET jit = off"""
"""What each session needs. A stricter level of the role would let statements fail that wait for
each other. Each statement is made for one index, and is planned once. The statistics of a table of
queues are always old: by them the server would choose to read all that is ready or leased.
"""
_NOW = "(extract(epoch FROM statement_timestamp()) * 1000000)::bigint"
_STORAGE = """
    WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02,
          autovacuum_vacuum_threshold = 500, autovacuum_vacuum_cost_delay = 0)"""
_TABLES = """
    SELECT relname FROM pg_class
    WHERE relkind IN ('r', 'p') AND relname {any:names}
          AND relnamespace = (SELECT oid FROM pg_namespace
                              WHERE nspname = coalesce(:schema, current_schema()))"""
_SCHEMA = "SELECT 1 FROM pg_namespace WHERE nspname = :schema"
_INPUT = """
    WITH input AS MATERIALIZED (
        SELECT nextval('{{numbers}}') AS id, rows.*
        FROM unnest(%(queue)b::bigint[], %(rank)b::smallint[], %(delay)b::bigint[],
                    %(ttl)b::bigint[], %(expires)b::bigint[], %(name)b::bytea[],
                    %(meta)b::text[], %(body)b::bytea[])
             WITH ORDINALITY AS rows (queue, rank, delay, ttl, ends, name, meta, body, number)),"""
STORE_INPUT = """
    fresh AS (
        INSERT INTO {{names{current}}} AS known (queue, name, number, at)
        SELECT queue, name, id, {{now}} FROM input
        WHERE name IS NOT NULL
              AND NOT EXISTS (SELECT 1 FROM {{names{other}}} AS old
                              WHERE old.queue = input.queue AND old.name = input.name
                                    AND old.at > {{now}} - :window)
        ORDER BY queue, name
        ON CONFLICT (queue, name) DO UPDATE SET number = excluded.number, at = excluded.at
        WHERE known.at <= {{now}} - :window
        RETURNING number),
    chosen AS (
        SELECT *, coalesce({{now}} + ttl, ends) AS expires FROM input
        WHERE name IS NULL OR id IN (SELECT number FROM fresh)),
    stored AS (
        INSERT INTO {{messages}} (id, queue, rank, place, expires, meta, body)
        SELECT id, queue, rank,
               CASE WHEN delay > 0 THEN least({{now}} + delay, expires) ELSE {{now}} END,
               expires, meta, body
        FROM chosen ORDER BY number)
    SELECT number FROM chosen"""
"""Stores the rows of `input`. `format` fills in which table of names is in use.

Names in their order, so that two batches with the same ones wait for each other and no more.
"""
_KNOWN = """
    SELECT asked.number
    FROM unnest(%(queue)b::bigint[], %(name)b::bytea[], %(since)b::bigint[])
         WITH ORDINALITY AS asked (queue, name, since, number)
    JOIN (SELECT * FROM {names0} UNION ALL SELECT * FROM {names1}) AS known
         ON known.queue = asked.queue AND known.name = asked.name
    WHERE known.number > asked.since AND known.at > {now} - %(window)s"""
_CLAIM = """
    WITH chosen AS MATERIALIZED (
        SELECT ready.id FROM generate_series(0, 10) AS ranks (rank), LATERAL (
            SELECT id FROM {messages}
            WHERE queue = :queue AND rank = ranks.rank AND token IS NULL AND place <= {now}
            ORDER BY place, id LIMIT :limit FOR UPDATE SKIP LOCKED) AS ready
        LIMIT :limit)
    UPDATE {messages} AS m SET token = :token, until = {now} + :lease
    FROM chosen WHERE m.id = chosen.id
    RETURNING m.id, rank, place, expires, redelivered, takeovers, started, meta, body, {now}"""
_DEAD_ROWS = """
    SELECT n_dead_tup FROM pg_stat_all_tables WHERE relid = to_regclass(:table) AND
        pg_has_role((SELECT relowner FROM pg_class WHERE oid = to_regclass(:table)), 'USAGE')"""
_SNAPSHOTS = """
    SELECT pid, extract(epoch FROM clock_timestamp() - xact_start)::float8, state, usename,
           coalesce(nullif(application_name, ''), 'unnamed')
    FROM pg_stat_activity
    WHERE (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND pid <> pg_backend_pid()
          AND datname = current_database() AND backend_type = 'client backend'
          AND xact_start < clock_timestamp() - make_interval(secs => :age)
    ORDER BY xact_start LIMIT 3"""
"""What has written keeps dead rows as well, by its number and without a snapshot."""
_PREPARED = """
    SELECT gid, extract(epoch FROM clock_timestamp() - prepared)::float8 FROM pg_prepared_xacts
    WHERE database = current_database()
          AND prepared < clock_timestamp() - make_interval(secs => :age)
    ORDER BY prepared LIMIT 3"""


class PostgresDatabase(Database):
    """One connection to a server."""

    product = "PostgreSQL"
    words: ClassVar[dict[str, str]] = {
        "now": _NOW,
        "shared": "FOR KEY SHARE",
        "locked": "FOR UPDATE",
        "bounded": "FOR NO KEY UPDATE",
        "alone": "FOR UPDATE",
        "skipping": "FOR UPDATE SKIP LOCKED",
        "number": "bigint",
        "counted": "bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        "bytes": "bytea",
        "exact": 'COLLATE "C"',
        "empty": "''",
        "keyed": "",
        "storage": _STORAGE,
    }
    counts_totals = False

    def __init__(self, url: str, options: PostgresOptions) -> None:
        super().__init__(options.prefix)
        self._url, self._options = url, options
        self._connection: psycopg.Connection[Any] | None = None
        self._socket = -1
        self._ended: dict[int, float] = {}
        self._notified = self._hinted = self._vacuumed = self._written = 0.0
        self._listens = False
        self._may_truncate = False

    @staticmethod
    def any_of(name: str) -> str:
        """Return a comparison with the elements of an array."""
        return f"= ANY(:{name})"

    def text(self, statement: str) -> str:
        """Return a statement with psycopg's parameters."""
        if (found := self._texts.get(statement)) is None:
            found = super().text(statement).replace("{numbers}", self.table("numbers"))
            found = self._texts[statement] = _PARAMETER.sub(r"%(\1)s", found)
        return found

    def table(self, name: str) -> str:
        """Return the name of a table, with its schema where one was given."""
        schema = self._options.schema_name
        return super().table(name) if schema is None else f'"{schema}".{super().table(name)}'

    # Opening

    def open(self) -> None:
        """Connect."""
        self._listens = False
        self._ended.clear()
        self._connection = psycopg.connect(
            self._options.conninfo(self._url), autocommit=True, application_name="mqcore"
        )
        self._connection.execute(_SESSION)
        self._socket = self._connection.pgconn.socket
        if self._connection.info.server_version < _OLDEST:
            raise ConfigurationError(
                f"{self._title()} is too old: mqcore needs PostgreSQL 14 or newer"
            )

    def prepared(self) -> None:
        """Ask whether this role may empty a table at once."""
        statement = "SELECT has_table_privilege(:table, 'TRUNCATE')"
        self._may_truncate = bool(self.query(statement, table=self.table("names0"))[0][0])

    def close(self) -> None:
        """Disconnect."""
        connection, self._connection = self._connection, None
        self._socket = -1
        if connection is not None:
            with suppress(Exception):
                connection.close()

    def abort(self) -> None:
        """Shut the socket down, so that a call that waits for the server raises."""
        if self._socket >= 0:
            with suppress(OSError), socket.socket(fileno=os.dup(self._socket)) as cut:
                cut.shutdown(socket.SHUT_RDWR)

    def _title(self) -> str:
        version = self._opened.info.parameter_status("server_version") or ""
        return f"PostgreSQL {version.partition(' ')[0]}"

    def server(self) -> tuple[str, Durability, dict[str, float | str | bool]]:
        """Return what a confirmed message survives, by the server's settings."""
        settings = ("fsync", "full_page_writes", "synchronous_commit")
        statement = "SELECT name, setting FROM pg_settings WHERE name {any:names}"
        found = dict(self.query(statement, names=list(settings)))
        reasons: dict[str, float | str | bool] = {name: found.get(name, "") for name in settings}
        if found.get("synchronous_commit") == "off" or "off" in found.values():
            reasons["warning"] = (
                "a power cut may lose confirmed messages. Set fsync, full_page_writes and "
                "synchronous_commit to on for the role of mqcore"
            )
            return self._title(), Durability.PROCESS, reasons
        return self._title(), Durability.MACHINE, reasons

    # Schema

    @contextmanager
    def migration(self) -> Iterator[None]:
        """Take the lock before the transaction, which would not see what others have created."""
        self.query("SELECT pg_advisory_lock(:key)", key=self._key())
        try:
            with self.transaction():
                yield
        finally:
            with suppress(psycopg.Error):
                self.query("SELECT pg_advisory_unlock(:key)", key=self._key())

    def create(self, statements: str) -> None:
        """Run a migration, in the transaction that is open."""
        schema = self._options.schema_name
        try:
            # IF NOT EXISTS would ask for the right to create one in any case
            if schema is not None and not self.query(_SCHEMA, schema=schema):
                self._opened.execute(names.SQL("CREATE SCHEMA {}").format(names.Identifier(schema)))
            self._opened.execute(self.text(statements))
            self._opened.execute(self.text("CREATE SEQUENCE IF NOT EXISTS {numbers}"))
        except psycopg.errors.InsufficientPrivilege as error:
            raise psycopg.errors.InsufficientPrivilege(
                f"this role cannot create the tables of mqcore: {error}. Run `mqcore sql upgrade "
                "URL` once with a role that may"
            ) from error

    def has_tables(self) -> list[str]:
        """Return those of `TABLES` that exist."""
        listed = [f"{self.prefix}_{name}" for name in TABLES]
        rows = self.query(_TABLES, schema=self._options.schema_name, names=listed)
        found = {name for (name,) in rows}
        return [name for name in TABLES if f"{self.prefix}_{name}" in found]

    def lock_topology(self) -> None:
        """Wait until no other process changes queues or bindings."""
        self.query("SELECT pg_advisory_xact_lock(:key)", key=self._key() + 1)

    def _key(self) -> int:
        """Return the number of the advisory locks of this schema and prefix."""
        statement = "SELECT hashtext('mqcore ' || :name)::bigint * 4"
        return int(self.query(statement, name=self.table("queues"))[0][0])

    # Statements

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[None]:  # noqa: ARG002 - a claim outlives a restart of the server
        """Commit at the end."""
        connection = self._opened
        self._written = time.monotonic()
        connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED")
        try:
            yield
        except BaseException:
            with suppress(psycopg.Error):
                connection.execute("ROLLBACK")
            raise
        try:
            ended = connection.execute("COMMIT").statusmessage
        except psycopg.Error as error:
            if (error.sqlstate or "").startswith(_CERTAIN):
                raise
            raise CommitUnknown(f"PostgreSQL has not confirmed a commit: {error}") from error
        if ended != "COMMIT":  # the server answers ROLLBACK when a statement has failed
            raise psycopg.errors.InFailedSqlTransaction(f"the server answered {ended} to COMMIT")

    def query(self, statement: str, **values: Any) -> list[tuple[Any, ...]]:
        """Run a statement and return its rows."""
        return self._opened.execute(self.text(statement), values).fetchall()

    def change(self, statement: str, **values: Any) -> int:
        """Run a statement and return how many rows it has changed."""
        return self._opened.execute(self.text(statement), values).rowcount

    def time(self) -> float:
        """Return the time of the server."""
        return float(self.query("SELECT {now}")[0][0]) / 1e6

    def insert(self, table: str, columns: Columns, *, replace: bool = False) -> None:
        """Insert rows in one statement."""
        named, rows = ", ".join(columns), self._unnested(columns)
        statement = f"INSERT INTO {{{table}}} ({named}) SELECT * FROM {rows}"
        if replace:
            statement += self.replacing(columns)
        self.change(statement, **{name: list(values) for name, (_, values) in columns.items()})

    def update(self, table: str, columns: Columns) -> int:
        """Write columns of rows in one statement."""
        key, *names = columns
        changes = ", ".join(f"{name} = given.{name}" for name in names)
        rows = f"{self._unnested(columns)} AS given ({', '.join(columns)})"
        statement = f"UPDATE {{{table}}} AS t SET {changes} FROM {rows} WHERE t.{key} = given.{key}"
        return self.change(
            statement, **{name: list(values) for name, (_, values) in columns.items()}
        )

    @staticmethod
    def _unnested(columns: Columns) -> str:
        arrays = (f":{name}::{kind}[]" for name, (kind, _) in columns.items())
        return f"unnest({', '.join(arrays)})"

    @property
    def _opened(self) -> psycopg.Connection[Any]:
        if self._connection is None:
            raise ConnectionLost("the connection to PostgreSQL is closed; open it first")
        return self._connection

    # Messages

    def empty_names(self, number: int) -> None:
        """Empty a table of names: at once, unless an application's transaction is using it.

        Waiting for that one would make all publishers wait. What it has not committed yet stays
        until the next time, and is ignored when it is older than the window.
        """
        connection = self._opened
        if self._may_truncate:
            connection.execute("SAVEPOINT emptying")
            try:
                connection.execute(
                    self.text(f"LOCK TABLE {{names{number}}} IN ACCESS EXCLUSIVE MODE NOWAIT")
                )
            except psycopg.errors.LockNotAvailable:
                connection.execute("ROLLBACK TO emptying")
            else:
                connection.execute(self.text(f"TRUNCATE {{names{number}}}"))
                return
        connection.execute(self.text(f"DELETE FROM {{names{number}}}"))

    def check_room(self) -> None:
        """Do nothing: the server refuses by itself."""

    def store(self, rows: Sequence[Row], current: int, window: int) -> set[int]:
        """Remember the names and insert the rows, in one statement."""
        if not rows:
            return set()
        columns = dict(zip(Row._fields, map(list, zip(*rows, strict=True)), strict=True))
        statement = (_INPUT + STORE_INPUT).format(current=current, other=1 - current)
        return {number - 1 for (number,) in self.query(statement, window=window, **columns)}

    def known(self, names: Sequence[tuple[int, bytes, int]], window: int) -> set[int]:
        """Look all names up in one statement."""
        queue, name, since = map(list, zip(*names, strict=True))
        found = self.query(_KNOWN, queue=queue, name=name, since=since, window=window)
        return {number - 1 for (number,) in found}

    def claim(
        self, queue: int, limit: int, token: int, lease: int, *, alone: bool
    ) -> list[Claimed]:
        """Lease in one statement; leases that have ended are looked for now and then."""
        if alone:
            return self._claim_alone(queue, limit, token, lease)
        now = time.monotonic()
        if now - self._ended.get(queue, 0.0) > _ENDED_EVERY:
            self._ended[queue] = now
            self.change(END_LEASES, queue=queue)
        rows = self.query(_CLAIM, queue=queue, limit=limit, token=token, lease=lease)
        return sorted(map(Claimed._make, rows), key=lambda row: (row.rank, row.place, row.id))

    def _claim_alone(self, queue: int, limit: int, token: int, lease: int) -> list[Claimed]:
        """Lease while no other consumer does: each locks the queue's row, then looks."""
        if self.query(HAS_LEASE, queue=queue):
            return []
        with self.transaction():
            self.query(LOCK_QUEUES, ids=[queue])
            self.change(END_LEASES, queue=queue)
            if self.query(HAS_LEASE, queue=queue):
                return []
            rows = self.query(_CLAIM, queue=queue, limit=limit, token=token, lease=lease)
        return sorted(map(Claimed._make, rows), key=lambda row: (row.rank, row.place, row.id))

    # Watching

    def changed(self) -> bool:
        """Return whether a notification came, which shows a change that may not be the last."""
        connection, now = self._opened, time.monotonic()
        if not self._listens:
            connection.execute(names.SQL("LISTEN {}").format(self._channel()))
            connection.add_notify_handler(lambda _: self._hint())
            self._listens = True
        connection.pgconn.consume_input()
        while connection.pgconn.notifies() is not None:
            self._hint()
        return now < self._hinted

    def may_have_changed(self) -> bool:
        """Return whether the server has sent something, or a notification is still fresh."""
        if not self._listens or time.monotonic() < self._hinted:
            return True
        try:
            return bool(select.select([self._socket], [], [], 0)[0])
        except (OSError, ValueError):
            return True  # it was closed, as the call that is due will find

    def _hint(self) -> None:
        self._hinted = time.monotonic() + _HINT

    def notify(self) -> None:
        """Notify after the commit: inside it, all commits of the server would queue for it."""
        now = time.monotonic()
        if now - self._notified > _NOTIFY_EVERY:
            self._notified = now
            with suppress(psycopg.Error):  # it is a hint
                self._opened.execute(names.SQL("NOTIFY {}").format(self._channel()))

    def _channel(self) -> names.Identifier:
        return names.Identifier(self.table("queues"))

    def beat(self) -> None:
        """Vacuum the table of messages: the server's own vacuum comes once a minute at most."""
        now = time.monotonic()
        if now - self._vacuumed < _VACUUM_EVERY or now - self._written > _COUNTED:
            return
        self._vacuumed = now
        dead = self.query(_DEAD_ROWS, table=self.table("messages"))
        if not dead or dead[0][0] < _DEAD:
            return
        key = self._key() + 2
        if self.query("SELECT pg_try_advisory_lock(:key)", key=key)[0][0]:
            try:
                self._opened.execute(self.text("VACUUM (TRUNCATE OFF, SKIP_LOCKED) {messages}"))
            finally:
                self.query("SELECT pg_advisory_unlock(:key)", key=key)

    def problems(self) -> list[str]:
        """Report old transactions, which keep dead rows from being removed."""
        effect = "Until it ends, no dead row of mqcore's tables is removed, and claims get slower"
        sessions = [
            f"process {pid} of the server (role {role}, application {name}, {state}) has been in "
            f"a transaction for {age:.0f} s. {effect}. End it with SELECT "
            f"pg_terminate_backend({pid}), and let the application commit or roll back sooner"
            for pid, age, state, role, name in self.query(_SNAPSHOTS, age=_PINNED)
        ]
        return sessions + [
            f"the transaction {name!r} has been prepared for {age:.0f} s. {effect}. End it with "
            f"COMMIT PREPARED or ROLLBACK PREPARED"
            for name, age in self.query(_PREPARED, age=_PINNED)
        ]

    def is_lost(self, error: BaseException) -> bool:
        """Return whether the connection is broken, or the server is another one now."""
        if isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(_LOST):
            return True
        return self._connection is not None and self._connection.closed

    @staticmethod
    def kind(error: BaseException) -> ErrorKind:
        """Return the kind of an error of psycopg."""
        if not isinstance(error, psycopg.Error):
            return ErrorKind.PERMANENT
        code = error.sqlstate or ""
        for beginning, kind in _KINDS.items():
            if code.startswith(beginning):
                return kind
        if code or not isinstance(error, psycopg.OperationalError):
            return ErrorKind.PERMANENT
        refused = (kind for text, kind in _REFUSALS.items() if re.search(text, str(error)))
        return next(refused, ErrorKind.TRANSIENT)
