"""The statements of the task store that both databases read.

`mqcore_sql.database` explains the fields in braces. Times are in seconds, and `:time` is the time
of the transaction. The rows of a tree are next to each other, because their ids begin with its own.
"""

from mqcore.tasks.spi import ENDED
from mqcore_sql.tasks.columns import COLUMNS

_LIVE = "kind = 'task' AND state IN ('scheduled', 'queued', 'running', 'retrying')"
"""As in the condition of the index, word by word: SQLite compares the texts."""
_ENDED = f"state IN ({', '.join(sorted(repr(str(state)) for state in ENDED))})"
_NODE = ", ".join(f"t.{name}" for name in COLUMNS)
NODES = f"SELECT {_NODE} FROM {{tasks}} AS t WHERE t.id {{any:ids}}"
LOCK_ROOTS = f"""
    SELECT {_NODE}, {{now}} FROM {{tasks}} AS t WHERE t.id {{any:ids}} ORDER BY t.id {{locked}}"""
"""The first statement of a transaction: what it reads afterwards is not changed by others."""

# The outbox

_ENTRY = "e.key, e.node, e.run, e.start, e.written"
ENTRY = f"SELECT {_ENTRY} FROM {{task_outbox}} AS e WHERE e.key = :key"
_WITH_NODE = f"""
    SELECT {_ENTRY}, {_NODE} FROM {{task_outbox}} AS e LEFT JOIN {{tasks}} AS t ON t.id = e.node"""
ENTRIES = f"{_WITH_NODE} WHERE e.key {{any:keys}}"
OUTBOX = f"{_WITH_NODE} WHERE e.written < :before ORDER BY e.written, e.key LIMIT :limit"
REMOVE_ENTRIES = """
    DELETE FROM {task_outbox} WHERE key IN (
        SELECT key FROM {task_outbox} WHERE key {any:keys} ORDER BY key {locked})"""

# Claims and schedules

HOLDERS = "SELECT key, task FROM {task_claims} WHERE key {any:keys} ORDER BY key {locked}"
"""Locked: who leaves a key and who lines up for it do not miss each other."""
REMOVE_CLAIMS = "DELETE FROM {task_claims} WHERE key {any:keys}"
SCHEDULE = """
    SELECT name, version, next_at, definition FROM {task_schedules} WHERE name = :name {locked}"""
SCHEDULES = "SELECT name, version, next_at, definition FROM {task_schedules}"

# Rates and slots

LIMITS = "SELECT key, value FROM {task_limits} WHERE key {any:keys} ORDER BY key {locked}"
REMOVE_LIMITS = "DELETE FROM {task_limits} WHERE key {any:keys}"
REMOVE_OLD_LIMITS = "DELETE FROM {task_limits} WHERE until < :before"
LINE = """
    SELECT task, since FROM {task_lines} WHERE key = :key ORDER BY since, task LIMIT :limit"""
LEAVE_LINE = "DELETE FROM {task_lines} WHERE key = :key AND task {any:tasks}"

# Workers

_ALIVE = "w.at + w.ttl > :time"
ALIVE = f"SELECT 1 FROM {{task_workers}} AS w WHERE w.name = :worker AND {_ALIVE}"
BEAT = """
    INSERT INTO {task_workers} (name, ttl, info, at) VALUES (:worker, :ttl, :info, :time)
    ON CONFLICT (name) DO UPDATE SET ttl = excluded.ttl, info = excluded.info, at = excluded.at"""
REMOVE_BEATS = "DELETE FROM {task_workers} WHERE at + ttl < :before"
WORKERS = "SELECT name, ttl, info, at FROM {task_workers}"
ASKED = "SELECT id FROM {tasks} WHERE cancel <> 'no' AND worker <> '' AND worker = :worker"

# What is lost or old

LATE = f"""
    SELECT id FROM {{tasks}} AS t
    WHERE {_LIVE} AND due < :before
          AND NOT (state = 'running' AND EXISTS (
              SELECT 1 FROM {{task_workers}} AS w WHERE w.name = t.worker AND {_ALIVE}))
    ORDER BY due LIMIT :limit"""
ALL_LIVE = f"SELECT id FROM {{tasks}} WHERE {_LIVE} ORDER BY due LIMIT :limit"
ABANDONED = f"""
    SELECT id FROM {{tasks}}
    WHERE is_sealed = 0 AND seal_by < :time AND NOT {_ENDED} ORDER BY seal_by LIMIT :limit"""
_BELOW = (
    "{node} > {root} || '.' AND {node} < {root} || '/'",
    "{node} > {root} || '~' AND {node} < {root} || '\N{DELETE}'",
)
"""The ids below a root go on with `.` or `~`. Each condition is one range of the primary key."""
_IS_OPEN = f"({_LIVE} OR is_sealed = 0 AND NOT {_ENDED})"


def _open_below(root: str) -> str:
    """Return a condition: something below a root is live."""
    ranges = (condition.format(node="t.id", root=root) for condition in _BELOW)
    return " OR ".join(
        f"EXISTS (SELECT 1 FROM {{tasks}} AS t WHERE {ids} AND {_IS_OPEN})" for ids in ranges
    )


OLD = f"""
    SELECT r.id FROM {{tasks}} AS r
    WHERE parent = '' AND ended > 0 AND ended < :before AND {_ENDED}
          AND NOT ({_open_below("r.id")})
    ORDER BY ended LIMIT :limit {{skipping}}"""
ENDED_ROOTS = f"""
    SELECT id FROM {{tasks}}
    WHERE parent = '' AND ended > 0 AND ended >= :after AND ended < :before AND {_ENDED}
    ORDER BY ended DESC, id DESC LIMIT :limit OFFSET :start"""
IS_OPEN = f"SELECT 1 WHERE {_open_below(':root')}"
"""Asked again when the root is locked: a redrive may have begun before."""
REMOVE_TREE = (
    "DELETE FROM {tasks} WHERE id = :root",
    *(f"DELETE FROM {{tasks}} WHERE {ids.format(node='id', root=':root')}" for ids in _BELOW),
)
CLEAR = "DELETE FROM {}"
