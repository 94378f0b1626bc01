"""The versions of the tables: creating them, upgrading them, and refusing what is not ours."""

import secrets

from mqcore.spi import ConfigurationError
from mqcore_sql.database import TABLES, Database

__all__ = ["VERSION", "instance_of", "prepare"]

VERSION = 1
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
_MIGRATIONS = {1: _TABLES}
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
