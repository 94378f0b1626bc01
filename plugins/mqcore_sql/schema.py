"""The versions of the tables: creating them, upgrading them, and refusing what is not ours."""

import secrets

from mqcore.spi import ConfigurationError
from mqcore_sql.database import TABLES, Database

__all__ = ["VERSION", "instance_of", "prepare"]

VERSION = 1
"""The version that this code reads and writes."""
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
            database.create(version)
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
