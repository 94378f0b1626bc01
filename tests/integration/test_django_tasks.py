"""`mqcore.tasks.django`: what the backends, the worker and the settings do."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from mqcore import ConfigurationError, Reject, RetryPolicy, Worker, fixed
from mqcore.tasks import TaskCancelled, TaskFailed, UnknownTask
from mqcore.testing import memory_url

django = pytest.importorskip("django", reason="pip install 'mqcore[django]'")
if django.VERSION < (6,):
    pytest.importorskip("django_tasks", reason="pip install 'mqcore[django-tasks]'")

from django.conf import settings  # noqa: E402 - an extra
from django.core.management import call_command  # noqa: E402 - an extra
from django.db import connection, connections, transaction  # noqa: E402 - an extra
from django.test import override_settings  # noqa: E402 - an extra
from django.utils import timezone  # noqa: E402 - an extra


def configure() -> None:
    """Configure Django, which the tests of the pages take back."""
    if not settings.configured:
        settings.configure(USE_TZ=True, LOGGING_CONFIG=None)
        django.setup()


configure()
from mqcore.tasks.django import current_task  # noqa: E402 - it needs Django
from mqcore.tasks.django.compat import (  # noqa: E402 - it needs Django
    InvalidTask,
    TaskResultDoesNotExist,
    TaskResultMismatch,
    TaskResultStatus,
    task_backends,
    task_enqueued,
    task_finished,
    task_started,
)
from mqcore.tasks.django.management.commands.mqcore_worker import (  # noqa: E402 - it needs Django
    Command,
)
from mqcore.tasks.django.registry import DjangoTasks  # noqa: E402 - it needs Django
from mqcore.tasks.django.runtime import Runtime, close_runtimes, runtime  # noqa: E402 - as above
from mqcore.tasks.django.settings import store_url  # noqa: E402 - it needs Django

if django.VERSION < (6,):
    from django_tasks import task
else:
    from django.tasks import task

pytestmark = pytest.mark.timeout(120)
BACKENDS = {
    "default": {"BACKEND": "mqcore.tasks.django.MqcoreBackend", "QUEUES": ["default", "mail"]},
    "eager": {"BACKEND": "mqcore.tasks.django.EagerBackend", "QUEUES": []},
}
released = threading.Event()
began = threading.Event()
seen: list[Any] = []


# What @task makes depends on the backend in the settings.
with override_settings(TASKS=BACKENDS):

    @task
    def add(x: int, y: int) -> int:
        return x + y

    @task
    async def add_async(x: int, y: int) -> int:
        await asyncio.sleep(0)
        return x + y

    @task(takes_context=True)
    def attempts(context: Any) -> int:
        return context.attempt

    @task(retry=RetryPolicy(3, fixed(0)))
    def third_time_lucky() -> str:
        if current_task().attempt < 3:
            raise ValueError("not yet")
        return "done"

    @task
    def fail() -> None:
        raise LookupError("nothing there")

    @task
    def refuse() -> None:
        raise Reject("never")

    @task
    def wait() -> None:
        began.set()
        while not current_task().cancelled:
            current_task().progress(1, 2, "half")
            if released.wait(0.01):
                return
        current_task().check()

    @task
    def query() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 41 + 1")
            seen.append(connection.connection)
            return cursor.fetchone()[0]

    @task(expires=60, on_commit=True)
    def after_commit() -> None:
        seen.append("ran")

    @task
    def nested() -> int:
        return add.using(backend="eager").enqueue(3, 4).return_value


@pytest.fixture(autouse=True)
def project(tmp_path: Path) -> Iterator[None]:
    """The settings of a project, with a database of its own."""
    configure()
    options = {"ENGINE": "django.db.backends.sqlite3", "NAME": tmp_path / "db.sqlite3"}
    before = dict(connections.settings)
    connections.settings.update(connections.configure_settings({"default": options}))
    with suppress(AttributeError):
        del connections["default"]
    mqcore = {"BROKER": memory_url(), "STORE": memory_url()}
    seen.clear()
    released.clear()
    began.clear()
    with override_settings(TASKS=BACKENDS, MQCORE=mqcore, USE_TZ=True):
        yield
        close_runtimes()
    connections["default"].close()
    connections.settings.update(before)
    del connections["default"]


@asynccontextmanager
async def working(**options: Any) -> AsyncIterator[Worker]:
    """Run a worker of the project in this loop."""
    app = runtime(Runtime).app
    async with (
        app.connect(settings.MQCORE["BROKER"]) as broker,
        Worker(app, broker, grace=0, **options) as worker,
    ):
        yield worker


async def ended(result: Any) -> Any:
    """Read a result until it has ended."""
    async with asyncio.timeout(60):
        while not result.is_finished:
            await asyncio.sleep(0.005)
            await result.arefresh()
    return result


@pytest.mark.parametrize("name", ["add", "add_async"])
async def test_a_worker_runs_a_task(name: str) -> None:
    async with working():
        result = await ended(await globals()[name].aenqueue(1, y=2))
    assert (result.status, result.return_value) == (TaskResultStatus.SUCCESSFUL, 3)
    assert result.enqueued_at <= result.started_at <= result.finished_at
    assert result.last_attempted_at == result.started_at
    assert (result.args, result.kwargs, result.attempts) == ([1], {"y": 2}, 1)


async def test_the_errors_of_all_attempts_are_kept() -> None:
    async with working():
        result = await ended(await third_time_lucky.aenqueue())
    assert (result.return_value, result.attempts) == ("done", 3)
    assert [error.exception_class for error in result.errors] == [ValueError, ValueError]
    assert result.started_at < result.last_attempted_at
    assert "third_time_lucky" in result.errors[0].traceback
    assert result.errors[0].traceback.endswith("ValueError: not yet\n")


@pytest.mark.parametrize(("name", "kind"), [("fail", LookupError), ("refuse", Reject)])
async def test_a_task_fails_once_with_its_traceback(name: str, kind: type[Exception]) -> None:
    async with working():
        result = await ended(await globals()[name].aenqueue())
    assert (result.status, result.attempts) == (TaskResultStatus.FAILED, 1)
    (error,) = result.errors
    assert error.exception_class is kind
    assert name in error.traceback
    assert "recorded" not in error.traceback  # no frames of ours before it


async def test_the_signals_of_a_task_are_sent() -> None:
    names: list[str] = []
    finished = asyncio.Event()
    loop = asyncio.get_running_loop()

    def receive(sender: type, task_result: Any, signal: Any, **_: Any) -> None:
        assert sender is type(task_backends["default"])
        which = {task_enqueued: "enqueued", task_started: "started", task_finished: "finished"}
        names.append(f"{which[signal]} {task_result.status}")
        if signal is task_finished:
            assert task_backends["default"].get_result(task_result.id) == task_result
            loop.call_soon_threadsafe(finished.set)

    for signal in (task_enqueued, task_started, task_finished):
        signal.connect(receive)
    try:
        async with working(), asyncio.timeout(60):
            await fail.aenqueue()
            await finished.wait()
    finally:
        for signal in (task_enqueued, task_started, task_finished):
            signal.disconnect(receive)
    assert sorted(names) == ["enqueued READY", "finished FAILED", "started RUNNING"]
    assert names[-1] == "finished FAILED"


async def test_a_task_that_the_worker_does_not_have_ends_with_a_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results: list[Any] = []
    finished = asyncio.Event()
    loop = asyncio.get_running_loop()

    def receive(task_result: Any, **_: Any) -> None:
        results.append(task_result)
        loop.call_soon_threadsafe(finished.set)

    sent = await add.aenqueue(1, 2)
    monkeypatch.setattr(DjangoTasks, "find", lambda *_: None)
    task_finished.connect(receive)
    try:
        async with working(), asyncio.timeout(60):
            await finished.wait()
    finally:
        task_finished.disconnect(receive)
    (result,) = results
    assert (result.id, result.status) == (sent.id, TaskResultStatus.FAILED)
    assert (result.started_at, result.attempts) == (None, 0)
    (error,) = result.errors
    assert error.exception_class is TaskFailed
    assert "no task named" in error.traceback


async def test_what_is_cancelled_before_it_starts_never_starts() -> None:
    result = await after_commit.aenqueue()
    assert await task_backends["default"].acancel(result.id, "not wanted")
    assert not await task_backends["default"].acancel(result.id)
    async with working():
        assert (await ended(await add.aenqueue(1, 2))).return_value == 3
    await result.arefresh()
    assert (result.status, seen) == (TaskResultStatus.FAILED, [])
    assert result.errors[0].traceback == "mqcore.tasks.errors.TaskCancelled: not wanted\n"


async def test_a_running_task_shows_its_worker_and_can_be_cancelled() -> None:
    async with working():
        result = await wait.aenqueue()
        async with asyncio.timeout(60):
            while result.status != TaskResultStatus.RUNNING:
                await asyncio.sleep(0.005)
                await result.arefresh()
        assert (result.attempts, result.finished_at) == (1, None)
        with pytest.raises(ValueError, match="not finished"):
            _ = result.return_value
        assert await task_backends["default"].acancel(result.id, "enough")
        await ended(result)
    assert (result.status, result.attempts) == (TaskResultStatus.FAILED, 1)
    assert result.errors[-1].exception_class is TaskCancelled


async def test_queue_and_priority_reach_the_broker() -> None:
    now = timezone.now()
    task = add.using(queue_name="mail", priority=-7, run_after=now + timedelta(hours=1))
    result = await task.aenqueue(1, 2)
    node = await asyncio.to_thread(runtime(Runtime).node, result.id)
    assert node is not None
    assert (node.queue, node.priority, node.state) == ("mail", 4, "scheduled")
    assert 3590 < node.delay <= 3600
    read = await task_backends["default"].aget_result(result.id)
    assert read == result
    assert read.task == task


@pytest.mark.parametrize(("given", "mapped"), [(-100, 0), (-1, 4), (0, 5), (99, 9), (100, 10)])
async def test_priorities_are_mapped(given: int, mapped: int) -> None:
    result = await add.using(priority=given).aenqueue(1, 2)
    node = await asyncio.to_thread(runtime(Runtime).node, result.id)
    assert node is not None
    assert node.priority == mapped


async def test_connections_are_closed_around_a_task() -> None:
    async with working(concurrency=1):
        assert (await ended(await query.aenqueue())).return_value == 42
        assert (await ended(await query.aenqueue())).return_value == 42
    first, second = seen
    assert first is not second
    with pytest.raises(Exception, match="closed"):
        first.cursor()


def test_what_is_enqueued_in_a_transaction_is_sent_with_its_commit() -> None:
    backend = task_backends["default"]
    with transaction.atomic():
        result = after_commit.enqueue()
        with pytest.raises(TaskResultDoesNotExist):
            backend.get_result(result.id)
    assert backend.get_result(result.id) == result

    def fail() -> None:
        with transaction.atomic():
            nonlocal result
            result = after_commit.enqueue()
            raise LookupError

    with pytest.raises(LookupError):
        fail()
    with pytest.raises(TaskResultDoesNotExist):
        backend.get_result(result.id)


def test_the_setting_says_whether_a_transaction_is_waited_for() -> None:
    with override_settings(MQCORE=settings.MQCORE | {"ON_COMMIT": True}):
        with transaction.atomic():
            result = add.enqueue(1, 2)
            with pytest.raises(TaskResultDoesNotExist):
                task_backends["default"].get_result(result.id)
            now = add.using(on_commit=False).enqueue(1, 2)
            assert task_backends["default"].get_result(now.id).id == now.id
        assert task_backends["default"].get_result(result.id) == result


def test_wrong_arguments_are_refused_where_they_are_given() -> None:
    with pytest.raises(TypeError, match=r"test_django_tasks\.add: missing a required argument"):
        add.enqueue(1)
    with pytest.raises(TypeError, match="Unsupported type"):
        add.enqueue(1, object())
    with pytest.raises(InvalidTask, match="queue name 'a b' is not usable"):
        add.using(backend="eager", queue_name="a b")
    with pytest.raises(ConfigurationError, match="retry belong to"):
        add.using(retry=RetryPolicy(2))


def test_an_id_of_something_else_has_no_result() -> None:
    backend = task_backends["default"]
    for id_ in ("", "no such", "a.b~c", "\x00"):
        with pytest.raises(TaskResultDoesNotExist):
            backend.get_result(id_)
    with pytest.raises(UnknownTask):
        backend.cancel("no such")


def test_a_task_that_the_code_does_not_have_any_more_is_a_mismatch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = add.enqueue(1, 2)
    with monkeypatch.context() as gone:
        gone.setattr("mqcore.tasks.django.backend.find_task", lambda _: None)
        with pytest.raises(TaskResultMismatch, match="INCLUDE"):
            task_backends["default"].get_result(result.id)


# Eager


def test_an_eager_task_runs_in_this_thread() -> None:
    with transaction.atomic():
        result = query.using(backend="eager").enqueue()
        assert seen == [connection.connection]  # and the transaction is still open
        assert connection.in_atomic_block
    assert result.return_value == 42
    assert task_backends["eager"].get_result(result.id) == result


@pytest.mark.parametrize("name", ["add", "add_async"])
async def test_eager_tasks_of_both_kinds(name: str) -> None:
    chosen = globals()[name].using(backend="eager")
    assert (await chosen.aenqueue(1, 2)).return_value == 3


def test_eager_attempts_follow_each_other() -> None:
    result = third_time_lucky.using(backend="eager").enqueue()
    assert (result.return_value, result.attempts, len(result.errors)) == ("done", 3, 2)
    assert attempts.using(backend="eager").enqueue().return_value == 1


def test_an_eager_task_may_enqueue_another() -> None:
    assert nested.using(backend="eager").enqueue().return_value == 7
    with pytest.raises(ConfigurationError, match="outside a task"):
        current_task()


# Settings


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"BROKR": "memory://"}, "BROKR: no such option; did you mean 'BROKER'"),
        ({"BROKER": "localhost"}, "BROKER is a URL"),
        ({"STORE": "nothing://"}, "nothing"),
        ({"INCLUDE": "shop.jobs"}, "INCLUDE takes a list"),
        ({"ON_COMMIT": "yes"}, "ON_COMMIT"),
        ({"RESULT_TTL": 0}, "RESULT_TTL"),
        ({"BROKER": "django://other"}, "other"),
        ([], None),
        ("x", "MQCORE is a dict"),
    ],
)
def test_a_wrong_setting_is_an_error_of_the_check(wrong: Any, text: str | None) -> None:
    with override_settings(MQCORE=wrong):
        found = [str(each) for each in task_backends["default"].check()]
    assert len(found) == (text is not None), found
    assert text is None or text in found[0]


def test_queues_and_options_are_checked() -> None:
    wrong = BACKENDS["default"] | {"QUEUES": ["a b"], "OPTIONS": {"x": 1}}
    with override_settings(TASKS={"default": wrong}):
        first, second = (str(each) for each in task_backends["default"].check())
    assert "OPTIONS has no use" in first
    assert "queue name 'a b' is not usable" in second


def test_the_store_is_the_default_database(tmp_path: Path) -> None:
    with override_settings(MQCORE={"BROKER": "django://default"}):
        assert store_url() == f"sqlite://{tmp_path}/db.sqlite3".replace("sqlite://", "sqlite:///")
        result = add.enqueue(1, 2)
        assert task_backends["default"].get_result(result.id) == result


def test_after_a_fork_the_child_connects_for_itself() -> None:
    add.enqueue(1, 2)
    child = os.fork()
    if not child:
        code = 1
        with suppress(BaseException):
            result = add.enqueue(3, 4)
            code = task_backends["default"].get_result(result.id) != result
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_the_command_runs_a_worker_until_it_has_done_enough(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/tasks.db"
    with override_settings(MQCORE={"BROKER": url, "STORE": url}):
        result = add.enqueue(1, 2)
        with pytest.raises(SystemExit) as end:
            call_command(Command(), "--max-messages=1", "--queues=default")
        result.refresh()
    assert (end.value.code, result.return_value) == (75, 3)
    assert "queues default. Ctrl-C stops it." in capsys.readouterr().out
