"""An application's own process on the file of mqcore: `python … URL sqlalchemy|sqlite3 N`.

Each of its N transactions reads a number and writes the next one, as applications do.
"""

import sqlite3
import sys
from contextlib import closing

from mqcore_sql.share import SharedConnection, share

READ = "SELECT value FROM totals"
WRITE = "UPDATE totals SET value = ?"


def by_sqlite3(path: str, number: int) -> None:
    with closing(
        sqlite3.connect(path, factory=SharedConnection, isolation_level=None, timeout=60)
    ) as connection:
        for _ in range(number):
            connection.execute("BEGIN")
            (value,) = connection.execute(READ).fetchone()
            connection.execute(WRITE, [value + 1])
            connection.execute("COMMIT")


def by_sqlalchemy(path: str, number: int) -> None:
    from sqlalchemy import create_engine, text  # noqa: PLC0415 - an extra
    from sqlalchemy.orm import Session  # noqa: PLC0415 - as above

    engine = share(create_engine(f"sqlite:///{path}", connect_args={"timeout": 60}))
    for _ in range(number):
        with Session(engine) as session, session.begin():
            session.execute(text("UPDATE totals SET value = value + 1"))
            session.execute(text(READ)).one()
    engine.dispose()


if __name__ == "__main__":
    kind = by_sqlite3 if sys.argv[2] == "sqlite3" else by_sqlalchemy
    kind(sys.argv[1], int(sys.argv[3]))
