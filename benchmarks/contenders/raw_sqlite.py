"""The raw means on a file: sqlite3 with `synchronous=FULL`, 100 rows a claim, no decoding."""

import json
import sqlite3
from pathlib import Path

from common import BODY, PREFETCH, WINDOW, Job, run

_CREATE = "CREATE TABLE messages (id INTEGER PRIMARY KEY, token INTEGER, body BLOB NOT NULL)"
_INDEX = "CREATE INDEX ready ON messages (id) WHERE token IS NULL"
_INSERT = "INSERT INTO messages (body) VALUES (?)"
_CLAIM = """
    UPDATE messages SET token = 1
    WHERE id IN (SELECT id FROM messages WHERE token IS NULL ORDER BY id LIMIT ?)
    RETURNING id, body"""
_DELETE = "DELETE FROM messages WHERE id IN (SELECT value FROM json_each(?))"


def _open(job: Job) -> sqlite3.Connection:
    """Make a file with one table."""
    folder = Path(job.url.removeprefix("sqlite://")).parent
    connection = sqlite3.connect(folder / f"{job.queue}.db", isolation_level=None)
    for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", _CREATE, _INDEX):
        connection.execute(statement).fetchall()
    return connection


def one_by_one(job: Job) -> None:
    """Insert, each in a transaction of its own."""
    connection = _open(job)
    job.start()
    for _ in range(job.count):
        connection.execute(_INSERT, [BODY])
    job.stop()


def _fill(connection: sqlite3.Connection, count: int) -> None:
    for start in range(0, count, WINDOW):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(_INSERT, [[BODY]] * min(WINDOW, count - start))
        connection.execute("COMMIT")


def bulk(job: Job) -> None:
    """Insert batches, each in a transaction."""
    connection = _open(job)
    job.start()
    _fill(connection, job.count)
    job.stop()


def drain(job: Job) -> None:
    """Claim 100 at a time, in one transaction with the deletes of the claim before."""
    connection = _open(job)
    _fill(connection, job.count)
    job.start()
    done: list[int] = []

    while job.handled < job.count:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(_DELETE, [json.dumps(done)])
        rows = connection.execute(_CLAIM, [PREFETCH // 2]).fetchall()
        connection.execute("COMMIT")
        done = [number for number, _ in rows]
        for _ in rows:
            job.count_one()


SCENARIOS = {"one by one": one_by_one, "bulk": bulk, "drain": drain}

if __name__ == "__main__":
    run(SCENARIOS)
