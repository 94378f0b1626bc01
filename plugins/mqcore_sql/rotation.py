"""Forgetting the names of the deduplication window, a whole table at a time.

Names go into one of two tables for a period as long as the window, then into the other one. When a
table's turn comes again, all that it holds is older than a window, and it is emptied at once. A
name that is still in a table after the window is ignored. Processes may have different windows:
the longest that any has had is the period of all.
"""

from mqcore_sql.database import Database

__all__ = ["is_due", "lengthen", "rotate"]

_PERIOD = """
    SELECT value, {now}, (SELECT coalesce(max(value), 0) FROM {meta} WHERE key = 'window')
    FROM {meta} WHERE key = 'epoch'"""
_SET = """
    INSERT INTO {meta} (key, value) VALUES (:key, :value)
    ON CONFLICT (key) DO UPDATE SET value = excluded.value"""


def lengthen(database: Database, window: int) -> int:
    """Note a window, in microseconds; return the length of a period."""
    _, _, stored = _read(database)
    if stored >= window:
        return stored
    with database.transaction():
        database.lock_topology()
        epoch, now, stored = _read(database)
        if stored < window:
            database.change(_SET, key="window", value=window)
            # one more, or the next period could begin before the names of this one are old enough
            database.change(_SET, key="epoch", value=epoch and now // window + 1)
    return max(stored, window)


def is_due(database: Database, window: int) -> bool:
    """Return whether a period has ended; `window` is in microseconds."""
    epoch, now, stored = _read(database)
    return epoch < now // max(stored, window)


def rotate(database: Database, window: int) -> tuple[int, int]:
    """Begin the next period if it is due; return its number and length. Inside a transaction.

    It comes before the first name of a period, or names would be in a table that is emptied early.
    """
    database.lock_topology()
    epoch, now, stored = _read(database)
    period = max(stored, window)
    current = now // period
    if epoch >= current:
        return epoch, period  # another process was faster, or has a longer window

    if epoch + 1 < current:
        database.empty_names(1 - current % 2)
    database.empty_names(current % 2)
    database.change(_SET, key="epoch", value=current)
    return current, period


def _read(database: Database) -> tuple[int, int, int]:
    """Return the number of the period, the time, and the longest window."""
    ((epoch, now, window),) = database.query(_PERIOD)
    return epoch, now, window
