"""The versions of the tables: creating them, upgrading them, and refusing what is not ours."""

import secrets

from mqcore.spi import ConfigurationError
from mqcore_sql.database import TABLES, Database

__all__ = ["VERSION", "instance_of", "prepare"]

VERSION = 3
"""The version that this code reads and writes."""
_TABLES = """
    CREATE TABLE {meta} (key text PRIMARY KEY, value bigint NOT NULL) {keyed};
    INSERT INTO {meta} (key, value) VALUES ('schema', 1), ('epoch', 0);
    CREATE TABLE {queues} (
        id {counted}, name text NOT NULL UNIQUE, role text NOT NULL, ttl double precision,
        max_length bigint, overflow text NOT NULL, dead_letter text, retention double precision,
        owner text, used bigint NOT NULL, published bigint NOT NULL, settled bigint NOT NULL);
    CREATE TABLE {messages} (
        id {number} PRIMARY KEY, queue bigint NOT NULL, rank smallint NOT NULL,
        place bigint NOT NULL, token bigint, until bigint, expires bigint,
        redelivered smallint NOT NULL DEFAULT 0, takeovers integer NOT NULL DEFAULT 0,
        noted smallint NOT NULL DEFAULT 0, started smallint NOT NULL DEFAULT 0,
        meta text NOT NULL, body {bytes} NOT NULL) {storage};
    CREATE INDEX {prefix}_messages_ready ON {messages} (queue, rank, place, id)
        WHERE token IS NULL;
    CREATE INDEX {prefix}_messages_leased ON {messages} (queue, until) WHERE token IS NOT NULL;
    CREATE INDEX {prefix}_messages_expiring ON {messages} (queue, expires)
        WHERE expires IS NOT NULL AND token IS NULL;
    CREATE TABLE {names0} (
        queue bigint NOT NULL, name {bytes} NOT NULL, number bigint NOT NULL, at bigint NOT NULL,
        PRIMARY KEY (queue, name)) {keyed};
    CREATE TABLE {names1} (
        queue bigint NOT NULL, name {bytes} NOT NULL, number bigint NOT NULL, at bigint NOT NULL,
        PRIMARY KEY (queue, name)) {keyed};
    CREATE TABLE {bindings} (
        record text PRIMARY KEY, router text NOT NULL, queue text NOT NULL) {keyed}"""
"""Version 1. `Database.words` has what the two databases write differently."""
_TASK_TABLES = """
    CREATE TABLE {tasks} (
        id text {exact} PRIMARY KEY, kind text NOT NULL DEFAULT 'task',
        parent text NOT NULL DEFAULT '', place integer NOT NULL DEFAULT 0,
        state text NOT NULL DEFAULT 'waiting', run integer NOT NULL DEFAULT 0,
        name text NOT NULL DEFAULT '', queue text NOT NULL DEFAULT '', priority integer,
        payload {bytes} NOT NULL DEFAULT {empty}, delay double precision NOT NULL DEFAULT 0,
        ttl double precision, unique_key text NOT NULL DEFAULT '',
        attempt integer NOT NULL DEFAULT 0, token text NOT NULL DEFAULT '',
        worker text NOT NULL DEFAULT '', copies integer NOT NULL DEFAULT 0,
        due double precision NOT NULL DEFAULT 0, progress {bytes} NOT NULL DEFAULT {empty},
        progress_number integer NOT NULL DEFAULT 0, size integer NOT NULL DEFAULT 0,
        done integer NOT NULL DEFAULT 0, bad integer NOT NULL DEFAULT 0,
        is_sealed integer NOT NULL DEFAULT 1, seal_by double precision NOT NULL DEFAULT 0,
        policy text NOT NULL DEFAULT 'fail', cancel text NOT NULL DEFAULT 'no',
        is_counted integer NOT NULL DEFAULT 0, input text NOT NULL DEFAULT '',
        result {bytes}, reason text NOT NULL DEFAULT '',
        ended double precision NOT NULL DEFAULT 0) {storage};
    CREATE INDEX {prefix}_tasks_open ON {tasks} (due)
        WHERE kind = 'task' AND state IN ('scheduled', 'queued', 'running', 'retrying');
    CREATE INDEX {prefix}_tasks_unsealed ON {tasks} (seal_by) WHERE is_sealed = 0;
    CREATE INDEX {prefix}_tasks_asked ON {tasks} (worker) WHERE cancel <> 'no' AND worker <> '';
    CREATE INDEX {prefix}_tasks_ended ON {tasks} (ended) WHERE parent = '' AND ended > 0;
    CREATE TABLE {task_outbox} (
        key text {exact} PRIMARY KEY, node text NOT NULL, run integer NOT NULL, start integer,
        written double precision NOT NULL) {keyed};
    CREATE INDEX {prefix}_task_outbox_written ON {task_outbox} (written, key);
    CREATE TABLE {task_claims} (key text {exact} PRIMARY KEY, task text NOT NULL) {keyed};
    CREATE TABLE {task_schedules} (
        name text {exact} PRIMARY KEY, version bigint NOT NULL, next_at double precision,
        definition {bytes} NOT NULL);
    CREATE TABLE {task_workers} (
        name text {exact} PRIMARY KEY, ttl double precision NOT NULL, info {bytes} NOT NULL,
        at double precision NOT NULL) {keyed}"""
"""Version 2: the task store. A default is that of the field of a `Node`, so it is not written."""
_LIMITS_OF_TASKS = """
    ALTER TABLE {tasks} ADD COLUMN turn double precision NOT NULL DEFAULT 0;
    ALTER TABLE {tasks} ADD COLUMN slot text NOT NULL DEFAULT '';
    ALTER TABLE {tasks} ADD COLUMN follows integer NOT NULL DEFAULT 0;
    CREATE TABLE {task_limits} (
        key text {exact} PRIMARY KEY, value {bytes} NOT NULL, until double precision) {keyed};
    CREATE TABLE {task_lines} (
        key text {exact} NOT NULL, since double precision NOT NULL, task text {exact} NOT NULL,
        PRIMARY KEY (key, since, task)) {keyed}"""
"""Version 3: rates, slots, lines of tasks that wait for a key, and calls that follow an end."""
_MIGRATIONS = {1: _TABLES, 2: _TASK_TABLES, 3: _LIMITS_OF_TASKS}
_VERSION = "SELECT value FROM {meta} WHERE key = 'schema'"
_SET_VERSION = "UPDATE {meta} SET value = :version WHERE key = 'schema'"

_INSTANCE = "SELECT value FROM {meta} WHERE key = 'instance'"
_ADD_INSTANCE = """
    INSERT INTO {meta} (key, value) VALUES ('instance', :instance)
    ON CONFLICT (key) DO NOTHING"""


def prepare(database: Database, *, migrate: bool) -> tuple[int, int]:
    """Bring the tables to `VERSION`; return the versions before and after. 0 is: no tables.

    Raises `ConfigurationError` when they are newer than this code, when a table of another
    application has one of our names, or when they would have to be changed without `migrate`.
    """
    before = _version(database)
    if before == VERSION:
        return before, before
    if not migrate:
        raise ConfigurationError(
            f"the tables of mqcore in this {database.product} database have version {before}, and "
            f"this version of mqcore needs {VERSION}. Run: mqcore sql upgrade URL"
        )

    with database.migration():
        before = _version(database)  # another process may have been faster
        for version in range(before + 1, VERSION + 1):
            database.create(_MIGRATIONS[version])
            database.change(_SET_VERSION, version=version)
    return before, VERSION


def _version(database: Database) -> int:
    """Return the version of the tables. Raises `ConfigurationError` where they are not usable."""
    tables = database.has_tables()
    if not tables:
        return 0
    if len(tables) < len(TABLES):
        names = ", ".join(database.table(name) for name in tables)
        raise ConfigurationError(
            f"the {database.product} database has tables with our names that mqcore did not make: "
            f"{names}. Choose another prefix for mqcore's tables, for instance ?prefix=queue"
        )

    version = int(database.query(_VERSION)[0][0])
    if version > VERSION:
        raise ConfigurationError(
            f"the tables of mqcore in this {database.product} database have version {version}, and "
            f"this version of mqcore knows {VERSION} at most. Upgrade mqcore in this process"
        )
    return version


def instance_of(database: Database) -> int:
    """Return the random number by which a database is known, in whatever way it is reached."""
    if not (found := database.query(_INSTANCE)):
        with database.transaction():
            database.change(_ADD_INSTANCE, instance=secrets.randbits(62) + 1)
        found = database.query(_INSTANCE)  # another process may have been faster
    return int(found[0][0])
