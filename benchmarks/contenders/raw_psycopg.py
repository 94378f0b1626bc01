"""The raw client of PostgreSQL: psycopg on a small table, 100 rows a claim, no ids, no decoding."""

import psycopg
from common import BODY, PREFETCH, WINDOW, Job, run
from psycopg import sql

Connection = psycopg.Connection[tuple[object, ...]]
_CREATE = """
    CREATE TABLE {table} (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, until timestamptz, body bytea NOT NULL)
    WITH (fillfactor = 50)"""
_INSERT = "INSERT INTO {table} (body) SELECT unnest(%b::bytea[])"
_CLAIM = """
    UPDATE {table} SET until = now() + interval '30 s'
    WHERE id IN (SELECT id FROM {table} WHERE until IS NULL OR until < now()
                 ORDER BY id LIMIT %b FOR UPDATE SKIP LOCKED)
    RETURNING id, body"""
_DELETE = "DELETE FROM {table} WHERE id = ANY(%b)"


def _open(job: Job) -> tuple[Connection, dict[str, sql.Composed]]:
    """Connect, and make a table; return the statements for it."""
    connection = psycopg.connect(job.url, autocommit=True)
    name = sql.Identifier(job.queue)
    connection.execute(sql.SQL(_CREATE).format(table=name))
    texts = {"insert": _INSERT, "claim": _CLAIM, "delete": _DELETE}
    return connection, {word: sql.SQL(text).format(table=name) for word, text in texts.items()}


def one_by_one(job: Job) -> None:
    """Insert, each in a transaction of its own."""
    connection, texts = _open(job)
    job.start()
    for _ in range(job.count):
        connection.execute(texts["insert"], [[BODY]])
    job.stop()


def _fill(connection: Connection, texts: dict[str, sql.Composed], count: int) -> None:
    for start in range(0, count, WINDOW):
        connection.execute(texts["insert"], [[BODY] * min(WINDOW, count - start)])


def bulk(job: Job) -> None:
    """Insert arrays."""
    connection, texts = _open(job)
    job.start()
    _fill(connection, texts, job.count)
    job.stop()


def drain(job: Job) -> None:
    """Claim 100 at a time; the rows of the claim before are deleted in the same pipeline."""
    connection, texts = _open(job)
    _fill(connection, texts, job.count)
    connection.execute(sql.SQL("ANALYZE {}").format(sql.Identifier(job.queue)))
    job.start()
    done: list[object] = []

    while job.handled < job.count:
        with connection.pipeline():
            connection.execute(texts["delete"], [done])
            claimed = connection.execute(texts["claim"], [PREFETCH // 2])
        rows = claimed.fetchall()
        done = [row[0] for row in rows]
        for _ in rows:
            job.count_one()


SCENARIOS = {"one by one": one_by_one, "bulk": bulk, "drain": drain}

if __name__ == "__main__":
    run(SCENARIOS)
