"""The statements that both databases read; `database` explains the fields in braces.

A message has a *rank* (10 minus its priority) and a *place*, the moment when it is or becomes
ready. While it is leased it has a token, and `until` says when the lease ends. All moments are in
microseconds. A delayed message needs no other table, and nothing moves it when it falls due.
"""

RANKS = "(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)"
"""Naming each rank lets an index find the ready rows of each, whatever is delayed above them."""
_EACH_RANK = "(VALUES (0), (1), (2), (3), (4), (5), (6), (7), (8), (9), (10)) AS ranks"
_READY = f"queue = :queue AND rank IN {RANKS} AND token IS NULL AND place <= {{now}}"
_CLAIMED = "id, rank, place, expires, redelivered, takeovers, started, meta, body, {now}"
_LEASED = "+queue = :queue AND token IS NOT NULL AND +until > {now}"
"""For a search by number: the signs keep the index of all leases of the queue out of it."""
_OF_QUEUES = """id IN (SELECT id FROM {messages} WHERE queue {any:ids} AND token IS NULL
           UNION ALL SELECT id FROM {messages} WHERE queue {any:ids} AND token IS NOT NULL)"""
"""Each index holds a part of a queue. A condition that fits neither reads every queue's rows."""


def _of_each_rank(condition: str) -> str:
    """Return a query for the numbers of the first messages of each rank.

    One search for all ranks would read and sort everything that is delayed.
    """
    first = f"""
        SELECT id FROM (
            SELECT id FROM {{messages}}
            WHERE queue = :queue AND rank = RANK AND token IS NULL AND {condition}
            ORDER BY place, id LIMIT :limit) AS firsts"""
    return " UNION ALL ".join(first.replace("RANK", str(rank)) for rank in range(11))


# Queues

_EPOCH = "(SELECT value FROM {meta} WHERE key = 'epoch')"
"""The period of the deduplication window; `rotation` explains it."""
_SPEC = "id, name, role, ttl, max_length, overflow, dead_letter, retention"
QUEUES = f"""
    SELECT {_SPEC}, {{now}}, {_EPOCH}
    FROM {{queues}} WHERE name {{any:queues}} ORDER BY id {{shared}}"""
QUEUES_OF = f"SELECT {_SPEC}, published, settled FROM {{queues}} WHERE name {{any:queues}}"
QUEUES_ALL = f"SELECT {_SPEC}, published, settled FROM {{queues}} ORDER BY name"
LOCK_QUEUES = "SELECT id FROM {queues} WHERE id {any:ids} ORDER BY id {bounded}"
LOCK_QUEUES_TO_DELETE = "SELECT id FROM {queues} WHERE id {any:ids} ORDER BY id {alone}"
ADD_QUEUE = """
    INSERT INTO {queues} (name, role, ttl, max_length, overflow, dead_letter, retention, owner,
                          used, published, settled)
    VALUES (:name, :role, :ttl, :max_length, :overflow, :dead_letter, :retention, :owner,
            {now}, 0, 0)"""
ALTER = """
    UPDATE {queues} SET ttl = :ttl, max_length = :max_length, overflow = :overflow,
                        retention = :retention WHERE id = :queue"""
TOUCH = "UPDATE {queues} SET used = {now} WHERE id = :queue"
PUBLISHED = "UPDATE {queues} SET published = published + :number WHERE id = :queue"
SETTLED = "UPDATE {queues} SET settled = settled + :number WHERE id = :queue"
OWNED = "SELECT id, name FROM {queues} WHERE owner = :owner"
IDLE_TEMPORARY = """
    SELECT id, name FROM {queues} WHERE role = 'temporary' AND used < {now} - :idle"""
EXISTS = "SELECT 1 FROM {queues} WHERE id = :queue"
HOLDS_ANY = f"SELECT 1 FROM {{messages}} WHERE {_OF_QUEUES} LIMIT 1"
DELETE_QUEUE = "DELETE FROM {queues} WHERE id {any:ids}"
DELETE_QUEUE_MESSAGES = f"DELETE FROM {{messages}} WHERE {_OF_QUEUES}"
DELETE_QUEUE_NAMES = tuple(
    f"DELETE FROM {{{name}}} WHERE queue {{any:ids}}" for name in ("names0", "names1")
)
FORGET_SOME_NAMES = tuple(
    f"""
    DELETE FROM {{{name}}} WHERE (queue, name) IN (
        WITH chosen AS MATERIALIZED (
            SELECT queue, name FROM {{{name}}} WHERE queue {{any:ids}} LIMIT :limit)
        SELECT queue, name FROM chosen)"""
    for name in ("names0", "names1")
)
DELETE_QUEUE_BINDINGS = "DELETE FROM {bindings} WHERE queue {any:names}"

# Bindings

BINDINGS = "SELECT record FROM {bindings} ORDER BY record"
BINDINGS_OF = "SELECT record FROM {bindings} WHERE router = :router ORDER BY record"
ADD_BINDING = """
    INSERT INTO {bindings} (record, router, queue) VALUES (:record, :router, :queue)
    ON CONFLICT (record) DO NOTHING"""
DELETE_BINDING = "DELETE FROM {bindings} WHERE record = :record"

# Leases

END_LEASES = """
    UPDATE {messages} SET token = NULL, until = NULL, redelivered = 1, takeovers = takeovers + 1,
                          started = CASE WHEN noted = 1 THEN 1 ELSE started END, noted = 0
    WHERE id IN (SELECT id FROM {messages}
                 WHERE queue = :queue AND token IS NOT NULL AND until <= {now} {skipping})"""
LOCK = f"""
    SELECT id, token FROM {{messages}} WHERE {_LEASED} AND id {{any:ids}} ORDER BY id {{locked}}"""
HELD = f"SELECT id, token FROM {{messages}} WHERE {_LEASED} AND id {{any:ids}}"
HAS_LEASE = """
    SELECT 1 FROM {messages} WHERE queue = :queue AND token IS NOT NULL AND until > {now}
    LIMIT 1"""
DELETE = "DELETE FROM {messages} WHERE id {any:ids}"
ACKNOWLEDGE = "DELETE FROM {messages} WHERE id = :id AND token = :token RETURNING id"
SETTLED_ONE = """
    UPDATE {queues} SET settled = settled + 1
    WHERE id = (SELECT queue FROM {messages} WHERE id = :id AND token = :token)"""
RELEASE = """
    UPDATE {messages} SET token = NULL, until = NULL, redelivered = 1, noted = 0
    WHERE id {any:ids}"""
GIVE_BACK = "UPDATE {messages} SET token = NULL, until = NULL, noted = 0 WHERE id {any:ids}"
LOSE = """
    UPDATE {messages} SET token = NULL, until = NULL, redelivered = 1, takeovers = takeovers + 1,
                          started = CASE WHEN noted = 1 THEN 1 ELSE started END, noted = 0
    WHERE id {any:ids}"""
RENEW = "UPDATE {messages} SET until = {now} + :lease WHERE id {any:ids}"
NOTE_START = "UPDATE {messages} SET noted = 1 WHERE id {any:ids}"
SWEEP = f"""
    WITH expired AS MATERIALIZED (
        SELECT id FROM {{messages}}
        WHERE queue = :queue AND token IS NULL AND expires <= {{now}}
        ORDER BY expires LIMIT :limit {{skipping}})
    UPDATE {{messages}} SET token = :token, until = {{now}} + :lease
    WHERE id IN (SELECT id FROM expired)
    RETURNING {_CLAIMED}"""
"""Materialized: PostgreSQL may run a subquery again for each row, and so exceed its limit."""
TAKE = f"""
    UPDATE {{messages}} SET token = :token, until = {{now}} + :lease
    WHERE id IN (SELECT id FROM {{messages}}
                 WHERE +queue = :queue AND token IS NULL AND id {{any:ids}} ORDER BY id {{locked}})
    RETURNING {_CLAIMED}"""

# Looking

NEXT_EVENTS = f"""
    SELECT name, {{now}}, {_EPOCH},
           (SELECT min(earliest) FROM (
                SELECT (SELECT place FROM {{messages}}
                        WHERE queue = q.id AND rank = ranks.column1 AND token IS NULL
                        ORDER BY place LIMIT 1) AS earliest
                FROM {_EACH_RANK}) AS places),
           (SELECT until FROM {{messages}} WHERE queue = q.id AND token IS NOT NULL
            ORDER BY until LIMIT 1)
    FROM {{queues}} AS q WHERE name {{any:queues}}"""
"""Of each queue: when its first message is or becomes ready, and when its first lease ends."""
COUNT_READY = f"""
    SELECT count(*) FROM (SELECT 1 FROM {{messages}} WHERE {_READY} LIMIT :limit) AS ready"""
_NUMBER = "(SELECT count(*) FROM {messages} WHERE queue = q.id AND token IS"
COUNT = f"""
    SELECT id, {_NUMBER} NULL AND rank IN {RANKS} AND place <= {{now}})
               + {_NUMBER} NOT NULL AND until <= {{now}}),
           {_NUMBER} NOT NULL AND until > {{now}}),
           {_NUMBER} NULL AND rank IN {RANKS} AND place > {{now}})
    FROM {{queues}} AS q WHERE id {{any:ids}}"""
WORST = """
    SELECT id, rank, meta, body, expires FROM {messages}
    WHERE queue = :queue AND rank = :rank AND token IS NULL AND place <= {now}
    ORDER BY place, id LIMIT :limit {skipping}"""
"""The oldest ready messages of one rank, for `overflow="dead_letter"`."""
_PAGE = "SELECT id, rank, place, expires, meta, body, {now} FROM {messages}"
_READY_AFTER = "place <= {now} AND (rank, place, id) > (:rank, :place, :id)"
_DELAYED_AFTER = "place > {now} AND place >= :place AND (place > :place OR id > :id)"
"""Not as a comparison of pairs: PostgreSQL would search by that, and read what is ready as well."""
BROWSE_READY = f"""
    {_PAGE} WHERE id IN ({_of_each_rank(_READY_AFTER)})
    ORDER BY rank, place, id LIMIT :limit"""
BROWSE_DELAYED = f"""
    {_PAGE} WHERE id IN ({_of_each_rank(_DELAYED_AFTER)})
    ORDER BY place, id LIMIT :limit"""
PURGE = f"DELETE FROM {{messages}} WHERE (token IS NULL OR until <= {{now}}) AND {_OF_QUEUES}"
NEWEST = "SELECT COALESCE(max(id), 0) FROM {messages}"
PURGE_SOME = """
    DELETE FROM {messages} WHERE id IN (
        WITH chosen AS MATERIALIZED (
            SELECT id FROM {messages}
            WHERE queue {any:ids} AND token IS NULL AND id <= :id LIMIT :limit {skipping})
        SELECT id FROM chosen)"""
"""Materialized: PostgreSQL would choose again for each row."""
HAS_OLD = f"""
    SELECT 1 FROM {{messages}}
    WHERE queue = :queue AND rank IN {RANKS} AND token IS NULL AND place <= {{now}} - :age
    LIMIT 1"""
FORGET_OLD = f"""
    DELETE FROM {{messages}} WHERE id IN (
        SELECT id FROM {{messages}}
        WHERE queue = :queue AND rank IN {RANKS} AND token IS NULL AND place <= {{now}} - :age
        LIMIT 1000 {{skipping}})"""
