"""How the broker and the app are found, what is reported, and what happens when they are not."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from dataclasses import replace
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from support.commands import CANARY, SHOP, on, write

from mqcore import Broker, BrokerError, Queue, Router, Settings
from mqcore.cli import main
from mqcore.cli.common import At
from mqcore.config.plugins import Plugins
from mqcore.messages.message import Message
from mqcore.publishing.parcel import Parcel, enclose
from mqcore.spi import Capabilities, Capability, ErrorKind, Level, Outgoing, Support, hookimpl
from mqcore.testing import memory_url
from mqcore_memory import MemoryBackend

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.commands import Refused, Run

pytestmark = pytest.mark.usefixtures("own_folder")


# backends and doctor


def test_backends_shows_what_can_be_used(run: Run) -> None:
    memory = next(one for one in run("backends", "--json").data if one["scheme"] == "memory")
    assert (memory["distribution"], memory["usable"], memory["local"]) == ("mqcore", True, True)
    assert memory["capabilities"]["delay"]["limits"]["granularity"] == 0.005
    text = run("backends").out
    assert "native: delay, priority" in text
    assert "none: durable" in text


class Elsewhere(MemoryBackend):
    """A broker that is not local; what its URL's host is called says what it does."""

    scheme = "elsewhere"
    local = False

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        if "down" in self.url:
            raise ConnectionRefusedError(f"nobody listens at {self.url}")
        if "silent" in self.url:
            await asyncio.sleep(3600)
        capabilities = await super().open(lost)
        if "evicts" in self.url:
            why = Support(
                Level.NATIVE,
                {"policy": "allkeys-lru", "warning": "the server evicts: set noeviction"},
            )
            return replace(
                capabilities, supports={**capabilities.supports, Capability.DURABLE: why}
            )
        return capabilities

    def classify(self, error: Exception) -> ErrorKind:
        return ErrorKind.TRANSIENT if isinstance(error, OSError) else super().classify(error)


class Plugin:
    """Registers `Elsewhere`."""

    @hookimpl
    def mqcore_register_backends(self) -> list[type[MemoryBackend]]:
        return [Elsewhere]


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = Plugins()
    plugins.register(Plugin())
    for name in ("session", "cli.worker", "cli.backends"):
        monkeypatch.setattr(f"mqcore.{name}.default_plugins", lambda: plugins)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    "words",
    [
        ("publish", "orders", "1"),
        ("peek", "orders"),
        ("queues",),
        ("queues", "--watch"),
        ("queues", "delete", "orders", "--yes"),
        ("dlq", "list", "orders"),
        ("dlq", "show", "orders", "1"),
        ("dlq", "redrive", "orders", "--all"),
        ("dlq", "purge", "orders", "--all", "--yes"),
        ("routes",),
        ("routes", "prune", "shop:app", "--yes"),
        ("worker", "shop:app"),
    ],
    ids=" ".join,
)
def test_a_broker_that_is_down_is_one_line_without_its_password(
    refused: Refused, words: tuple[str, ...]
) -> None:
    write("shop.py", SHOP)
    assert "nobody listens" in refused(*words, "--url", f"elsewhere://user:{CANARY}@down/", code=1)


@pytest.mark.usefixtures("elsewhere")
def test_a_broker_that_does_not_answer_is_not_waited_for_for_ever() -> None:
    async def work(broker: Broker) -> None:
        await broker.counts()

    with pytest.raises(
        BrokerError, match=r"no answer from elsewhere://user:\*\*\*@silent/ within 0.05 s"
    ):
        At(f"elsewhere://user:{CANARY}@silent/").run(work, patience=0.05)


@pytest.mark.usefixtures("elsewhere")
def test_doctor_tells_that_a_broker_is_down(run: Run) -> None:
    said = run("doctor", f"elsewhere://user:{CANARY}@down/", "--json")
    assert (said.code, said.err) == (1, "")
    assert (said.data["ok"], said.data["connected"]) == (False, False)
    assert said.data["url"] == "elsewhere://user:***@down/"
    assert "nobody listens" in said.data["problems"][0]


@pytest.mark.usefixtures("elsewhere")
def test_doctor_tells_what_is_wrong_with_the_servers_configuration(run: Run) -> None:
    said = run("doctor", "elsewhere://evicts/")
    assert said.code == 1
    assert "problem: the server evicts: set noeviction" in said.out
    assert said.out.count("noeviction") == 1
    assert run("doctor", "elsewhere://evicts/", "--json").data["problems"] == [
        "the server evicts: set noeviction"
    ]


@pytest.mark.usefixtures("elsewhere")
def test_backends_says_where_a_servers_capabilities_are_shown(run: Run) -> None:
    assert "mqcore doctor elsewhere://" in run("backends").out


def test_a_plugin_that_is_broken_is_listed_with_the_reason(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins = Plugins([EntryPoint("broken", "no_such_plugin_module", "mqcore")])
    monkeypatch.setattr("mqcore.cli.backends.default_plugins", lambda: plugins)
    broken = run("backends", "--json").data[0]
    assert (broken["scheme"], broken["usable"]) == ("broken", False)
    assert "no_such_plugin_module" in broken["error"]
    assert "CANNOT BE USED" in run("backends").out
    assert "no_such_plugin_module" in run("backends").out


class _Dist(Distribution):
    """A distribution that exists only here."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def metadata(self) -> Any:
        return {"Name": self._name, "Version": "1.2"}

    def read_text(self, filename: str) -> str | None:
        return None

    def locate_file(self, path: Any) -> Any:
        return Path(path)


def test_a_backend_that_was_added_stands_first_and_what_cannot_be_used_is_one_line_below(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Added(MemoryBackend):
        scheme = "zebra"

    module = ModuleType("zebra_backend")
    module.mqcore_register_backends = hookimpl(lambda: [Added])  # type: ignore[attr-defined]  # a plugin's module
    monkeypatch.setitem(sys.modules, "zebra_backend", module)
    ours = [
        ("memory", "mqcore_memory"),
        *((name, "no_such_client") for name in ("redis", "rediss", "unix")),
    ]
    points = [EntryPoint(name, module, "mqcore")._for(_Dist("mqcore")) for name, module in ours]  # type: ignore[attr-defined]
    points.append(EntryPoint("zebra", "zebra_backend", "mqcore")._for(_Dist("mqcore-zebra")))  # type: ignore[attr-defined]
    plugins = Plugins(points)
    monkeypatch.setattr("mqcore.cli.backends.default_plugins", lambda: plugins)

    lines = run("backends").out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["SCHEME", "zebra", "memory"]
    assert lines[3] == ""
    assert lines[4].startswith("CANNOT BE USED")
    assert lines[5].startswith("redis, rediss, unix  mqcore")
    assert "no_such_client" in lines[5]
    assert len(lines) == 6


def test_doctor_finds_a_healthy_broker_healthy(run: Run, filled: str) -> None:
    said = run("doctor", filled)
    assert said.code == 0
    assert said.out.endswith("\nok\n")
    for part in (
        "connects    yes",
        "lost with the broker's process",
        "granularity=0.005",
        "orders.dlq",
    ):
        assert part in said.out
    assert run("doctor", filled, "--json").data["problems"] == []


def test_doctor_finds_dead_letters_and_leftovers(run: Run, buried: str) -> None:
    write("shop.py", SHOP)
    run("queues", "delete", "orders", "--yes", "--url", buried)
    data = run("doctor", buried, "--app", "shop:app", "--json").data
    assert data["dead_letters"] == {"orders.dlq": {"rejected": 3}}
    assert [binding["queue"] for binding in data["leftover_bindings"]] == ["audit"]
    assert len(data["problems"]) == 2
    assert "3 dead letters (3 rejected), and belongs to no existing queue" in data["problems"][0]
    assert "orders, later" in data["notes"][0]
    said = run("doctor", buried, "--app", "shop:app")
    assert said.code == 1
    assert said.out.endswith("\n2 problems\n")


def test_doctor_finds_less_durability_than_the_settings_ask_for(run: Run, filled: str) -> None:
    write("mqcore.toml", 'durability = "machine"\n')
    assert "'machine'" in run("doctor", filled, "--json").data["problems"][0]


def test_doctor_finds_sections_of_the_settings_that_have_no_effect(run: Run, filled: str) -> None:
    write("shop.py", SHOP)
    write("mqcore.toml", "[queues.ordes]\nttl = 60.0\n")
    problems = run("doctor", filled, "--app", "shop:app", "--json").data["problems"]
    (text,) = [problem for problem in problems if "no effect" in problem]
    assert text.startswith("mqcore.toml: [queues.ordes] has no effect: app 'shop' has no queue")
    assert "Did you mean [queues.orders]?" in text


def test_options_for_a_backend_that_is_not_installed_are_refused(run: Run) -> None:
    write("mqcore.toml", "[backends.redsi]\ntimeout = 5\n")
    said = run("queues", "list")
    assert said.code == 2
    assert "mqcore.toml: [backends.redsi] has no effect: no installed plugin" in said.err


def test_doctor_finds_bindings_that_lead_nowhere(run: Run, filled: str) -> None:
    on(
        filled,
        lambda broker: broker._session.connection.bind([Router("shop").binding("void", "x")]),
    )
    assert "shop (topic) -> void, x leads" in run("doctor", filled, "--json").data["problems"][0]


# where the broker's URL comes from


def test_the_url_comes_from_the_command_line_then_environment_then_files(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def url() -> object:
        return run("doctor", "--json").data["url"]

    assert url() == "memory://"
    write("pyproject.toml", '[tool.mqcore]\nurl = "memory://tool"\n')
    assert url() == "memory://tool"
    write("mqcore.toml", f'url = "memory://file?x_password={CANARY}"\n')
    assert "x_password" in run("peek", "orders").err
    write("mqcore.toml", 'url = "memory://file"\n')
    assert url() == "memory://file"
    monkeypatch.setenv("MQCORE_URL", "memory://environment")
    assert url() == "memory://environment"
    assert run("doctor", "memory://argument", "--json").data["url"] == "memory://argument"


@pytest.mark.parametrize(
    "words",
    [
        ("publish", "orders", "1"),
        ("peek", "orders"),
        ("queues",),
        ("queues", "delete", "orders", "--yes"),
        ("dlq", "list", "orders"),
        ("routes",),
    ],
    ids=" ".join,
)
def test_an_empty_memory_broker_is_another_processs(
    refused: Refused, url: str, words: tuple[str, ...]
) -> None:
    assert "lives in one process" in refused(*words, "--url", url)


def test_doctor_looks_at_an_empty_memory_broker_with_a_hint(run: Run, url: str) -> None:
    said = run("doctor", url)
    assert said.code == 0
    assert "note: memory:// lives in one process" in said.out


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("orders", "scheme"),
        ("", "empty"),
        (f"redis:user:{CANARY}@host", "scheme"),
        (f"kafka://user:{CANARY}@host", "no installed plugin"),
        (f"memroy://user:{CANARY}@host", "memory"),
        (f"memory://user:{CANARY}@host:port", "port"),
        ("memory://?dedup_windo=60", "dedup_window"),
        (f"memory://?password={CANARY}", "password"),
        ("memory://?dedup_window=soon", "dedup_window"),
    ],
)
@pytest.mark.parametrize("command", ["peek", "doctor", "worker"])
def test_a_bad_url_is_one_line(refused: Refused, command: str, url: str, why: str) -> None:
    write("shop.py", SHOP)
    words = {"peek": ("peek", "orders", "--url", url), "doctor": ("doctor", url)}
    assert why in refused(*words.get(command, ("worker", "shop:app", "--url", url)))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("url = ", "mqcore.toml cannot be read"),
        ("ulr = 'memory://'", "did you mean 'url'"),
        (f"url = 'redis://u:{CANARY}@ h'", "mqcore.toml"),
        ("[queues.orders]\nttl = -1", "queues.orders.ttl"),
        ("durability = 'eternal'", "durability"),
    ],
)
def test_bad_settings_are_one_line(refused: Refused, text: str, why: str) -> None:
    write("mqcore.toml", text)
    assert why in refused("queues")


# the app


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("shop", "MODULE:APP"),
        ("shop:", "MODULE:APP"),
        ("./shop.py:app", "MODULE:APP"),
        ("shop.py:app", "write shop:APP"),
        ("shopp:app", "no module 'shopp'"),
        ("shop:ap", "its apps are: app"),
        ("shop:not_an_app", "is a Queue"),
        ("failing:app", f"line 3{')'}"),
        ("leaving:app", "SystemExit"),
        ("needing:app", "no_such_library"),
        ("mistyped:app", "mistyped.py, line 1"),
    ],
)
def test_an_app_that_cannot_be_had_is_one_line(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, filled: str, target: str, why: str
) -> None:
    write("shop.py", SHOP)
    write(
        "failing.py",
        "import os\ndef connect(url):\n    raise OSError(f'no way to "
        "{url}')\nconnect(os.environ['X'])\n",
    )
    write("leaving.py", "raise SystemExit(7)\n")
    write("needing.py", "import no_such_library\n")
    write("mistyped.py", "app = (\n")
    monkeypatch.setenv("X", f"redis://u:{CANARY}@host")
    for words in (
        ("worker", target),
        ("doctor", filled, "--app", target),
        ("routes", "prune", target, "--yes"),
    ):
        at = () if words[0] == "doctor" else ("--url", filled)
        assert why in refused(*words, *at)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--processes", "2"), "lives in one process"),
        (("--processes", "0"), "--processes"),
        (("--processes", "many"), "--processes"),
        (("--concurrency", "0"), "--concurrency"),
        (("--grace", "-1"), "--grace"),
        (("--lease", "0"), "lease=0"),
        (("--max-messages", "0"), "--max-messages"),
        (("--queues", "orders,audit"), "does not consume audit"),
        (("--health-file", "missing/health.json"), "cannot be written"),
        (("--health-file", "."), "folder"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_worker_misused(refused: Refused, words: tuple[str, ...], why: str) -> None:
    write("shop.py", SHOP)
    assert why in refused("worker", "shop:app", *words, "--url", memory_url())


@pytest.mark.usefixtures("elsewhere")
def test_what_no_worker_could_do_is_said_once_before_any_is_started(refused: Refused) -> None:
    write("shop.py", SHOP)
    words = ("worker", "shop:app", "--processes", "2", "--url", "elsewhere://host")
    assert "does not consume audit" in refused(*words, "--queues", "audit")
    assert "cannot be written" in refused(*words, "--health-file", "missing/health.json")


# the command itself


def test_no_command_is_a_call_for_help(run: Run) -> None:
    said = run()
    assert said.code == 0
    for name in ("worker", "publish", "peek", "queues", "dlq", "routes", "backends", "doctor"):
        assert f" {name} " in said.out
    assert run("--version").out.startswith("mqcore ")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("queues", "list"), "--watch"),
        (("queues", "delete"), "--if-empty"),
        (("dlq", "list"), "--reason"),
        (("dlq", "show"), "ID"),
        (("dlq", "redrive"), "--force"),
        (("dlq", "purge"), "--yes"),
        (("routes", "list"), "ROUTER"),
        (("routes", "prune"), "MODULE:APP"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_help_of_a_command_in_a_group(run: Run, words: tuple[str, ...], part: str) -> None:
    said = run(*words, "--help")
    assert (said.code, said.err) == (0, "")
    assert said.out.split()[:4] == ["Usage:", "mqcore", *words]
    assert part in said.out


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("pek",), "'pek'"),
        (("--nope",), "--nope"),
        (("peek", "q", "--nope"), "mqcore peek --help"),
        (("peek",), "QUEUE"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_unknown_words_are_one_line(refused: Refused, words: tuple[str, ...], why: str) -> None:
    assert why in refused(*words)


def test_a_password_on_the_command_line_is_not_repeated(refused: Refused) -> None:
    refused("peek", "orders", f"redis://u:{CANARY}@host")
    refused(f"redis://u:{CANARY}@host")


def test_a_password_in_the_url_of_memory_is_not_repeated(refused: Refused) -> None:
    url = memory_url().replace("://", f"://user:{CANARY}@")
    assert "no users and no passwords" in refused("peek", "orders", "--url", url)
    assert "no users and no passwords" in refused("doctor", url)


def test_without_typer_it_says_what_to_install(
    refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "typer", None)
    monkeypatch.delitem(sys.modules, "mqcore.cli.app")
    assert "pip install 'mqcore[cli]'" in refused("peek", "orders")


def test_a_traceback_is_shown_only_when_it_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], url: str
) -> None:
    write("failing.py", f"raise RuntimeError('redis://u:{CANARY}@host')\n")
    monkeypatch.setenv("MQCORE_TRACEBACK", "1")
    assert main(["worker", "failing:app", "--url", url]) == 2
    said = capsys.readouterr()
    assert "Traceback" in said.err
    assert "RuntimeError: redis://u:***@host" in said.err
    assert CANARY not in said.err
    assert said.err.splitlines()[-1].startswith("mqcore: module 'failing' cannot be imported")


def test_logging_is_left_as_it_was(run: Run, filled: str) -> None:
    before = [logging.getLogger(name).handlers[:] for name in (None, "mqcore")]
    run("publish", "nowhere", "1", "--url", filled)
    assert [logging.getLogger(name).handlers for name in (None, "mqcore")] == before


@pytest.mark.parametrize(
    "command",
    [
        ("queues",),
        ("peek", "orders"),
        ("doctor",),
        ("dlq", "list", "orders"),
        ("routes",),
        ("dlq", "purge", "orders", "--all", "--yes"),
        ("queues", "delete", "orders", "--yes"),
        ("publish", "orders", "1"),
    ],
    ids=" ".join,
)
def test_a_command_creates_no_file(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    place = tmp_path / "data"
    place.mkdir()
    url = f"sqlite:///{place / 'queue.db'}"
    options = (url,) if command == ("doctor",) else ("--url", url)
    said = run(*command, *options)
    assert said.code != 0
    assert "there is nothing at" in said.out + said.err
    assert list(place.iterdir()) == []

    on(url, lambda broker: broker.declare(Queue("orders", int)))
    assert "there is nothing at" not in run(*command, *options).err


async def _enlisted(url: str) -> None:
    async with Broker.connect(memory_url(), outbox=url, settings=Settings()):
        pass
    async with Broker.connect(url, settings=Settings()) as database:
        parcel = Parcel(Outgoing("orders", Message(id="a", body=b"1")), time.time() - 100)
        stored = enclose(parcel, "mq.outbox")
        old = replace(stored, message=replace(stored.message, published_at=time.time() - 100))
        await database._session.connection.publish([old], 10.0)


def test_doctor_shows_the_outbox_of_the_settings(
    run: Run, filled: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    monkeypatch.setenv("MQCORE_OUTBOX", url)
    assert "there is nothing at" in run("doctor", filled).out
    asyncio.run(_enlisted(url))
    report = run("doctor", filled, "--json").data
    assert (report["outbox"]["waiting"], report["outbox"]["dead_letters"]) == (1, 0)
    assert report["outbox"]["age"] >= 99
    (problem,) = report["problems"]
    assert "mqcore relay" in problem
    assert "1 message wait" in run("doctor", filled).out
