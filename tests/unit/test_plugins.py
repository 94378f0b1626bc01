"""Finding the backend of a scheme: one import, or an error that says what to install."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import Distribution, EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from pydantic import TypeAdapter

from mqcore.config.plugins import Plugins, default_plugins
from mqcore.errors import BackendNotFound, ConfigurationError
from mqcore.messages.codec import Codecs
from mqcore.spi import SPI_VERSION, Backend, hookimpl


class Shout:
    name = "shout"
    content_types: tuple[str, ...] = ("text/shout",)

    def encode(self, value: object, adapter: TypeAdapter[Any]) -> bytes:
        return str(value).encode()

    def decode(self, body: bytes, adapter: TypeAdapter[Any]) -> object:
        return body


class Dist(Distribution):
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


def backend(*schemes: str) -> type[Backend]:
    class Fake(Backend):
        scheme: ClassVar[str | tuple[str, ...]] = schemes if len(schemes) > 1 else schemes[0]

    Fake.__abstractmethods__ = frozenset()
    return Fake


class Plugin(ModuleType):
    """A plugin module that counts its imports, for the entry point that `point` makes."""

    def __init__(
        self, *classes: object, codecs: tuple[object, ...] = (), commands: tuple[object, ...] = ()
    ) -> None:
        super().__init__(f"fake_{id(self)}")
        self.mqcore_register_backends = hookimpl(lambda: list(classes))
        if codecs:
            self.mqcore_register_codecs = hookimpl(lambda: list(codecs))
        if commands:
            self.mqcore_register_cli = hookimpl(lambda: list(commands))


LOADED: list[str] = []


def point(
    name: str, plugin: object, *, dist: str = "shop-kafka", value: str = "shop_kafka"
) -> EntryPoint:
    class Loading(EntryPoint):
        def load(self) -> object:
            LOADED.append(name)
            if isinstance(plugin, BaseException):
                raise plugin
            return plugin

    made = Loading(name, value, "mqcore")
    vars(made)["dist"] = Dist(dist)
    return made


@pytest.fixture(autouse=True)
def nothing_loaded() -> None:
    LOADED.clear()


def test_only_the_plugin_of_that_name_is_imported_and_only_when_asked() -> None:
    kafka, nats = backend("kafka"), backend("nats")
    plugins = Plugins(
        [point("kafka", Plugin(kafka)), point("nats", Plugin(nats)), point("bad", ImportError("x"))]
    )
    assert LOADED == []
    assert plugins.backend_for("KAFKA") is kafka
    assert plugins.backend_for("kafka") is kafka
    assert LOADED == ["kafka"]


def test_one_class_serves_several_schemes_by_one_module() -> None:
    redis = backend("redis", "rediss", "unix")
    module = Plugin(redis)
    plugins = Plugins([point(name, module, dist="mqcore") for name in ("redis", "rediss", "unix")])
    assert [plugins.backend_for(name) for name in ("redis", "rediss", "unix")] == [redis] * 3
    assert [(line.scheme, line.distribution, line.backend) for line in plugins.installed()] == [
        (name, "mqcore", redis) for name in ("redis", "rediss", "unix")
    ]


def test_a_scheme_without_an_entry_point_of_its_name_is_found_among_all() -> None:
    secure = backend("kafka", "kafkas")
    plugins = Plugins([point("broken", ImportError("x")), point("kafka", Plugin(secure))])
    assert plugins.backend_for("kafkas") is secure
    assert LOADED == ["broken", "kafka"]


def test_a_plugin_registered_in_code_needs_no_entry_point_and_wins() -> None:
    class InCode:
        @hookimpl
        def mqcore_register_backends(self) -> list[type[Backend]]:
            return [mine]

    mine, plugin = backend("kafka"), InCode()
    plugins = Plugins([point("kafka", Plugin(backend("kafka")))])
    plugins.register(plugin)
    plugins.register(plugin)
    assert plugins.backend_for("kafka") is mine
    assert LOADED == []
    assert {(line.scheme, line.distribution, line.backend) for line in plugins.installed()} >= {
        ("kafka", "(registered in code)", mine)
    }


def test_two_distributions_that_claim_a_scheme_are_both_named_before_either_is_imported() -> None:
    plugins = Plugins(
        [
            point("kafka", Plugin(backend("kafka")), dist="a-kafka"),
            point("kafka", Plugin(backend("kafka")), dist="b-kafka"),
        ]
    )
    with pytest.raises(
        ConfigurationError, match=r"'kafka' is claimed twice, by a-kafka 1\.2 and b-kafka 1\.2"
    ):
        plugins.backend_for("kafka")
    assert LOADED == []
    assert [line.backend for line in plugins.installed()] == [None, None]
    assert all("claimed twice" in str(line.error) for line in plugins.installed())


def test_two_plugins_that_claim_a_scheme_under_other_names_are_both_named() -> None:
    plugins = Plugins(
        [
            point("x", Plugin(backend("kafka")), dist="a-kafka"),
            point("y", Plugin(backend("kafka")), dist="b-kafka"),
        ]
    )
    with pytest.raises(ConfigurationError, match=r"a-kafka 1\.2 and b-kafka 1\.2"):
        plugins.backend_for("kafka")


def test_two_plugins_in_code_that_claim_a_scheme_are_refused() -> None:
    plugins = Plugins([])
    plugins.register(Plugin(backend("kafka")))
    plugins.register(Plugin(backend("kafka")))
    with pytest.raises(ConfigurationError, match="claimed twice"):
        plugins.backend_for("kafka")


@pytest.mark.parametrize(
    "failure",
    [
        ModuleNotFoundError("No module named 'kafka'"),
        SyntaxError("bad"),
        RuntimeError("at import"),
        SystemExit(3),
    ],
    ids=["missing library", "syntax", "anything", "exit"],
)
def test_a_plugin_that_cannot_be_imported_names_itself_the_cause_and_what_to_install(
    failure: BaseException,
) -> None:
    broken = point("kafka", failure, value="shop_kafka [fast,tls]")
    plugins = Plugins([broken, point("memory", Plugin(backend("memory")))])
    with pytest.raises(BackendNotFound) as caught:
        plugins.backend_for("kafka")
    text = str(caught.value)
    assert "'kafka' of shop-kafka 1.2" in text
    assert type(failure).__name__ in text
    assert "pip install 'shop-kafka[fast,tls]'" in text
    assert caught.value.__cause__ is failure
    assert plugins.backend_for("memory").scheme == "memory"
    assert [(line.scheme, line.backend is None, line.error) for line in plugins.installed()] == [
        ("kafka", True, text),
        ("memory", False, None),
    ]


def test_a_hook_that_imports_its_library_late_is_reported_alike() -> None:
    class Late:
        @hookimpl
        def mqcore_register_backends(self) -> list[type[Backend]]:
            raise ModuleNotFoundError("No module named 'pika'")

    plugins = Plugins([point("amqp", Late(), dist="mqcore", value="mqcore_rabbitmq [rabbitmq]")])
    for _ in range(2):
        with pytest.raises(
            BackendNotFound, match=r"No module named 'pika'.*pip install 'mqcore\[rabbitmq\]'"
        ):
            plugins.backend_for("amqp")


@pytest.mark.parametrize(
    ("scheme", "extra"),
    [
        ("amqp", "rabbitmq"),
        ("amqps", "rabbitmq"),
        ("redis", "redis"),
        ("rediss", "redis"),
        ("unix", "redis"),
        ("sqlite", "sql"),
        ("postgresql", "sql"),
    ],
)
def test_a_scheme_of_ours_that_is_not_installed_names_its_extra(scheme: str, extra: str) -> None:
    plugins = Plugins([point("memory", Plugin(backend("memory")))])
    with pytest.raises(
        BackendNotFound, match=rf"installed are: memory\. .*pip install 'mqcore\[{extra}\]'"
    ):
        plugins.backend_for(scheme)


def test_an_unknown_scheme_lists_the_installed_ones_and_guesses() -> None:
    plugins = Plugins(
        [
            point("memory", Plugin(backend("memory"))),
            point("broken", ImportError("no such library")),
        ]
    )
    with pytest.raises(
        BackendNotFound, match=r"'memroy'; installed are: broken, memory\. Did you mean 'memory'\?"
    ):
        plugins.backend_for("memroy")
    with pytest.raises(BackendNotFound, match=r"'xyz'.*the plugin 'broken' .*no such library"):
        plugins.backend_for("xyz")
    with pytest.raises(BackendNotFound, match="installed are: none"):
        Plugins([]).backend_for("xyz")


def test_a_url_of_sqlalchemy_is_told_its_name_here() -> None:
    plugins = Plugins([point("sqlite", Plugin(backend("sqlite")))])
    with pytest.raises(BackendNotFound, match=r"Write sqlite://, without the name of a client"):
        plugins.backend_for("sqlite+aiosqlite")


def test_an_entry_point_that_does_not_serve_its_name_is_told() -> None:
    plugins = Plugins([point("kafka", Plugin(backend("kafkas")))])
    with pytest.raises(
        BackendNotFound,
        match=r"the plugin 'kafka' of shop-kafka 1\.2 does not serve 'kafka'.*kafkas",
    ):
        plugins.backend_for("kafka")


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ("a string", "not a Backend class"),
        (dict, "not a Backend class"),
        (Backend, "does not implement classify, close, declare, open, publish, subscribe"),
        (backend("Kafka"), "not a URL scheme in lower case"),
        (backend("ka fka"), "not a URL scheme"),
        (backend(""), "not a URL scheme"),
    ],
    ids=["string", "class", "incomplete", "upper case", "space", "empty"],
)
def test_what_a_plugin_registers_is_checked(wrong: object, why: str) -> None:
    plugins = Plugins([point("kafka", Plugin(wrong))])
    with pytest.raises(BackendNotFound, match=why):
        plugins.backend_for("kafka")
    with pytest.raises(ConfigurationError, match=why):
        Plugins([]).register(Plugin(wrong))


@pytest.mark.parametrize(
    ("version", "cure"),
    [
        (SPI_VERSION + 1, "Upgrade mqcore: pip install --upgrade mqcore"),
        (0, "Upgrade 'shop-kafka', or install an mqcore with SPI version 0"),
        ("1", "Upgrade 'shop-kafka'"),
    ],
)
def test_a_backend_for_another_version_of_the_seam_is_refused(version: Any, cure: str) -> None:
    kafka = backend("kafka")
    kafka.spi_version = version
    plugins = Plugins(
        [point("kafka", Plugin(kafka)), point("nats", Plugin(nats := backend("nats")))]
    )

    with pytest.raises(BackendNotFound) as caught:
        plugins.backend_for("kafka")

    text = str(caught.value)
    assert f"of shop-kafka 1.2 was written for version {version} of mqcore.spi" in text
    assert f"has version {SPI_VERSION}. {cure}" in text
    assert "Install what it needs" not in text
    assert plugins.backend_for("nats") is nats
    broken = {line.scheme: line.error for line in plugins.installed()}
    assert broken == {"kafka": text, "nats": None}


def test_a_backend_in_code_for_another_version_of_the_seam_is_refused() -> None:
    kafka = backend("kafka")
    kafka.spi_version = SPI_VERSION + 1

    with pytest.raises(BackendNotFound, match="registered in code"):
        Plugins([]).register(Plugin(kafka))


def test_a_hook_that_does_not_exist_is_refused_and_leaves_nothing_behind() -> None:
    class Misspelt:
        @hookimpl
        def mqcore_register_backend(self) -> list[type[Backend]]:
            return []

    plugins, plugin = Plugins([]), Misspelt()
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="mqcore_register_backend"):
            plugins.register(plugin)
    plugins.register(Plugin(backend("kafka")))
    assert plugins.backend_for("kafka").scheme == "kafka"


def test_codecs_of_plugins_are_looked_for_only_when_the_settings_name_them() -> None:
    shout = Shout()
    plugins = Plugins([point("shout", Plugin(codecs=(shout,))), point("other", Plugin())])
    assert plugins.codecs().names == Codecs.default().names
    assert plugins.codecs(["json", "text"]).names == ("json", "text")
    assert LOADED == []
    codecs = plugins.codecs(["json", "shout"])
    assert codecs.named("shout") is shout
    assert codecs.accepting("text/shout") is shout
    assert LOADED == ["shout"]


def test_a_codec_that_nobody_or_two_bring_is_a_configuration_error() -> None:
    plugins = Plugins(
        [point("x", Plugin(codecs=(Shout(),))), point("y", Plugin(codecs=(Shout(),)), dist="other")]
    )
    with pytest.raises(ConfigurationError, match="'shout' is registered by two plugins"):
        plugins.codecs(["shout"])
    with pytest.raises(ConfigurationError, match="'cbor': no installed plugin has it"):
        plugins.codecs(["cbor"])


def test_commands_come_from_every_plugin_that_works() -> None:
    command = object()
    plugins = Plugins([point("bad", ImportError("x")), point("kafka", Plugin(commands=(command,)))])
    assert plugins.commands() == [command]


def test_a_hook_that_fails_later_is_a_configuration_error() -> None:
    class Failing:
        @hookimpl
        def mqcore_register_cli(self) -> list[object]:
            raise RuntimeError("no terminal")

    plugins = Plugins([point("kafka", Failing())])
    with pytest.raises(
        ConfigurationError, match="mqcore_register_cli failed: RuntimeError: no terminal"
    ):
        plugins.commands()


def test_the_process_has_one_set_of_plugins() -> None:
    assert default_plugins() is default_plugins()


def test_importing_the_module_imports_no_plugin() -> None:
    code = (
        "import sys, mqcore.config.plugins; sys.exit(any(name.startswith('mqcore_') for name in "
        "sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_installed_distributions_are_found_by_their_entry_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "shop_kafka-3.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shop-kafka\nVersion: 3.0\n")
    (info / "entry_points.txt").write_text("[mqcore]\nshopkafka = shop_kafka_plugin [fast]\n")
    (tmp_path / "shop_kafka_plugin.py").write_text("import shop_kafka_library\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        BackendNotFound, match=r"shop-kafka 3\.0 .*shop_kafka_library.*'shop-kafka\[fast\]'"
    ):
        Plugins().backend_for("shopkafka")


def test_several_threads_may_ask_for_a_backend_at_once() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            for _ in range(200):
                plugins = Plugins()
                found = list(pool.map(plugins.backend_for, ["memory"] * 8))
                assert len(set(found)) == 1
    finally:
        sys.setswitchinterval(interval)
