"""Forgetting the names of the deduplication window, a whole table at a time.

Names go into one of two tables for a period as long as the window, then into the other one. When a
table's turn comes again, all that it holds is older than a window, and it is emptied at once. A
name that is still in a table after the window is ignored.
"""

from mqcore_sql.database import Database

__all__ = ["is_due", "period", "rotate"]

_EPOCH = "SELECT value, {now} FROM {meta} WHERE key = 'epoch'"
_SET_EPOCH = "UPDATE {meta} SET value = :epoch WHERE key = 'epoch'"


def is_due(database: Database, window: int) -> bool:
    """Return whether a period has ended; `window` is in microseconds."""
    epoch, now = period(database)
    return epoch < now // window


def period(database: Database) -> tuple[int, int]:
    """Return the number of the period, as it is stored, and the time."""
    ((epoch, now),) = database.query(_EPOCH)
    return epoch, now


def rotate(database: Database, window: int) -> int:
    """Begin the next period if it is due, and return its number; inside a transaction.

    It comes before the first name of a period, or names would be in a table that is emptied early.
    """
    database.lock_topology()
    epoch, now = period(database)
    current = now // window
    if epoch >= current:
        return epoch  # another process was faster

    if epoch + 1 < current:
        database.empty_names(1 - current % 2)
    database.empty_names(current % 2)
    database.change(_SET_EPOCH, epoch=current)
    return current
