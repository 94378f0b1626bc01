"""`mqcore.django`: publishing inside Django's transactions, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from support.databases import AppDatabase, app_database

from mqcore import ConfigurationError, PublishFailed, Queue, Settings, ValidationError
from mqcore import sync as blocking
from mqcore.broker import session_of
from mqcore.contract.brokers import Server
from mqcore.testing import memory_url

django = pytest.importorskip("django", reason="pip install 'mqcore[django]'")
from django.conf import settings  # noqa: E402 - an extra
from django.db import IntegrityError, connections, transaction  # noqa: E402 - an extra

from mqcore.django import database_url, publish_on_commit  # noqa: E402 - it needs Django

pytestmark = pytest.mark.timeout(120)
orders = Queue("orders", dict[str, int])


@pytest.fixture(params=["sqlite", "postgresql"])
def database(
    request: pytest.FixtureRequest, tmp_path: Path, broker_server: Callable[[str], Server]
) -> AppDatabase:
    return app_database(request.param, tmp_path, broker_server)


@pytest.fixture
def connection(database: AppDatabase) -> Iterator[Any]:
    """Django's default connection, to this test's database."""
    if database.product == "sqlite":
        options = {"ENGINE": "django.db.backends.sqlite3", "NAME": database.place}
    else:
        account, _, place = database.place.rpartition("@")
        host, _, name = place.partition("/")
        user, _, password = account.partition(":")
        address, _, port = host.partition(":")
        options = {"ENGINE": "django.db.backends.postgresql", "NAME": name}
        options |= {"USER": user, "PASSWORD": password, "HOST": address, "PORT": port}
    if not settings.configured:
        settings.configure(USE_TZ=True, LOGGING_CONFIG=None)
        django.setup()
    before = dict(connections.settings)
    connections.settings.update(connections.configure_settings({"default": options}))
    with suppress(AttributeError):  # there was none
        del connections["default"]
    yield connections["default"]
    connections["default"].close()
    connections.settings.update(before)
    del connections["default"]


@pytest.fixture(params=["same", "outbox"])
def broker(
    request: pytest.FixtureRequest, database: AppDatabase, connection: Any
) -> Iterator[blocking.Broker]:
    options: Any = {"settings": Settings(), "queues": [orders]}
    if request.param == "outbox":
        connecting = blocking.Broker.connect(memory_url(), outbox=database.url, **options)
    else:
        connecting = blocking.Broker.connect(database.url, **options)
    with connecting as broker:
        yield broker


def ids(broker: blocking.Broker) -> list[str]:
    if (outbox := session_of(broker._broker).outbox) is not None:
        broker._loop.run(outbox.drain())
    return [entry.message.id for entry in broker.peek(orders, 100)]


def test_a_message_arrives_with_the_commit(broker: blocking.Broker) -> None:
    with transaction.atomic():
        receipt = publish_on_commit(broker, orders, {"n": 1}, id="order-1", headers={"a": "50%"})
        assert (receipt.id, receipt.pending) == ("order-1", True)
        assert [counts.total for counts in broker.counts("orders")] == [0]
    assert ids(broker) == ["order-1"]
    (entry,) = broker.peek(orders)
    assert dict(entry.message.headers) == {"a": "50%"}


def test_nothing_is_left_of_a_rollback(broker: blocking.Broker) -> None:
    class Stop(Exception):
        pass

    def fail() -> None:
        with transaction.atomic():
            publish_on_commit(broker, orders, {"n": 1})
            raise Stop

    with pytest.raises(Stop):
        fail()
    assert ids(broker) == []


def test_a_savepoint_takes_its_messages_with_it(broker: blocking.Broker) -> None:
    with transaction.atomic():
        kept = publish_on_commit(broker, orders, {"n": 1})
        with transaction.atomic():
            publish_on_commit(broker, orders, {"n": 2})
            transaction.set_rollback(True)
        with transaction.atomic():
            also = publish_on_commit(broker, orders, {"n": 3})
    assert ids(broker) == [kept.id, also.id]


def test_on_commit_hooks_run_after_it(broker: blocking.Broker) -> None:
    seen: list[int] = []
    with transaction.atomic():
        publish_on_commit(broker, orders, {"n": 1})
        transaction.on_commit(lambda: seen.append(len(ids(broker))))
        assert seen == []
    assert seen == [1]


def test_without_a_transaction_it_is_published_at_once(broker: blocking.Broker) -> None:
    receipt = publish_on_commit(broker, orders, {"n": 1})
    assert ids(broker) == [receipt.id]


def test_the_connection_is_a_session_too(broker: blocking.Broker, connection: Any) -> None:
    from django.db import connection as proxy  # noqa: PLC0415 - the fixture configures it

    with transaction.atomic():
        one = broker.publish(orders, {"n": 1}, session=proxy)
        two = broker.producer(orders).publish_many([{"n": 2}, {"n": 3}], session=connection)
    assert ids(broker) == [one.id, *(each.id for each in two)]  # type: ignore[union-attr]
    with pytest.raises(ConfigurationError, match=r"autocommit.*publish_on_commit"):
        broker.publish(orders, {"n": 1}, session=connection)


def test_manual_transactions(broker: blocking.Broker, connection: Any) -> None:
    connection.set_autocommit(False)
    try:
        publish_on_commit(broker, orders, {"n": 1})
        connection.rollback()
        kept = publish_on_commit(broker, orders, {"n": 2})
        connection.commit()
    finally:
        connection.set_autocommit(True)
    assert ids(broker) == [kept.id]


def test_a_transaction_that_has_failed(broker: blocking.Broker, connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE once (id INTEGER PRIMARY KEY)")
    try:
        with transaction.atomic():
            with pytest.raises(IntegrityError), transaction.atomic(), connection.cursor() as cursor:
                cursor.execute("INSERT INTO once VALUES (1), (1)")
            kept = publish_on_commit(broker, orders, {"n": 1})  # its savepoint is over
        with transaction.atomic():
            transaction.set_rollback(True)
            with pytest.raises(PublishFailed, match="transaction has failed"):
                publish_on_commit(broker, orders, {"n": 2})
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE once")
    assert ids(broker) == [kept.id]


def test_another_thread_has_its_own_connection(broker: blocking.Broker) -> None:
    found: list[str] = []

    def publish() -> None:
        with transaction.atomic():
            found.append(publish_on_commit(broker, orders, {"n": 1}).id)
        connections["default"].close()

    thread = threading.Thread(target=publish)
    thread.start()
    thread.join(30)
    assert ids(broker) == found


def test_wrong_input(broker: blocking.Broker, connection: Any) -> None:
    with pytest.raises(ConfigurationError, match="takes no session"):
        publish_on_commit(broker, orders, {"n": 1}, session=connection)
    with pytest.raises(ValidationError):
        publish_on_commit(broker, orders, {"n": "x"})  # type: ignore[dict-item]
    with (
        blocking.Broker.connect(memory_url(), settings=Settings()) as other,
        pytest.raises(ConfigurationError, match="no outbox is set"),
    ):
        publish_on_commit(other, orders, {"n": 1})


def test_the_url_of_djangos_database(database: AppDatabase, connection: Any) -> None:
    with blocking.Broker.connect(
        f"{database_url()}{'?prefix=url' if database.product == 'postgresql' else ''}",
        settings=Settings(),
        queues=[orders],
    ) as broker:
        receipt = publish_on_commit(broker, orders, {"n": 1})
        assert ids(broker) == [receipt.id]
        broker.delete(orders)


def test_urls_with_special_characters_and_without_a_place() -> None:
    from mqcore.django import _postgresql_url, _sqlite_url  # noqa: PLC0415 - as above

    options = {"sslmode": "require", "client_encoding": "UTF8"}
    given = {"NAME": "my app", "USER": "me", "PASSWORD": "p@ss:/?", "OPTIONS": options}
    assert _postgresql_url({**given, "HOST": "db", "PORT": 5433}) == (
        "postgresql://me:p%40ss%3A%2F%3F@db:5433/my%20app?sslmode=require"
    )
    assert _postgresql_url({"NAME": "app"}) == "postgresql:///app"
    assert _sqlite_url("default", "/srv/a b.db") == "sqlite:////srv/a%20b.db"
    with pytest.raises(ConfigurationError, match="in memory"):
        _sqlite_url("default", "file:memorydb_default?mode=memory&cache=shared")
