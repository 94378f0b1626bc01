"""Settings: which source wins, and errors in one line that name the source."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, SecretStr

from mqcore.broker import Broker
from mqcore.clock import Clock, SystemClock
from mqcore.config.plugins import Plugins
from mqcore.config.settings import RetrySettings, Settings, open_backend, options_for
from mqcore.config.url import BrokerUrl
from mqcore.errors import BackendNotFound, ConfigurationError, DurabilityUnavailable
from mqcore.queue import Queue
from mqcore.rules.capabilities import Durability
from mqcore.rules.retry import RetryPolicy, exponential, fixed
from mqcore.rules.routing import Binding
from mqcore.spi import Backend, Options, hookimpl

SECRET = "hunter2"
CLOCK = SystemClock()


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("URL", "DURABILITY", "PUBLISH_TIMEOUT"):
        monkeypatch.delenv(f"MQCORE_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


def toml(text: str) -> None:
    Path("mqcore.toml").write_text(text)


def project(text: str) -> None:
    Path("pyproject.toml").write_text(text)


def test_defaults() -> None:
    settings = Settings.load()
    assert str(settings.url) == "memory://"
    assert settings.publish_timeout == 10
    assert settings.codecs == ("json", "text", "bytes")
    assert (settings.durability, settings.queues, settings.routers, settings.backends) == (
        None,
        {},
        {},
        {},
    )


def test_the_first_source_that_says_something_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    def url() -> str:
        return Settings.load().url.reveal()

    assert url() == "memory://"
    project('[tool.mqcore]\nurl = "redis://project"')
    assert url() == "redis://project"
    toml('url = "redis://toml"')
    assert url() == "redis://toml"
    monkeypatch.setenv("MQCORE_URL", "redis://environment")
    assert url() == "redis://environment"
    assert Settings.load(url="redis://argument").url == BrokerUrl("redis://argument")
    assert Settings.load(url=None).url == BrokerUrl("redis://environment")


def test_sources_are_put_over_each_other_value_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    project(
        "[tool.mqcore]\npublish_timeout = 1\n[tool.mqcore.queues.orders]\nttl = 1\nmax_length = "
        "7\nretention = 9"
    )
    toml(
        "publish_timeout = 2\n[queues.orders]\nttl = 2\n[queues.orders.retry]\nmax_attempts = "
        "4\n[queues.other]"
    )
    monkeypatch.setenv("MQCORE_PUBLISH_TIMEOUT", "3.5")
    monkeypatch.setenv("MQCORE_DURABILITY", "Machine")
    settings = Settings.load(queues={"orders": {"retention": 10}})
    assert settings.publish_timeout == 3.5
    assert settings.durability is Durability.MACHINE
    assert set(settings.queues) == {"orders", "other"}
    assert settings.retry_policy("orders", RetryPolicy()).max_attempts == 4
    assert settings.queue_options("orders") == {"ttl": 2, "max_length": 7, "retention": 10}


def test_a_directory_or_a_file_can_be_given(tmp_path: Path) -> None:
    other = tmp_path / "etc"
    other.mkdir()
    (other / "mqcore.toml").write_text("publish_timeout = 4")
    (other / "broker.toml").write_text("publish_timeout = 5")
    project("[tool.mqcore]\npublish_timeout = 6")
    assert Settings.load(directory=other).publish_timeout == 4
    assert Settings.load(directory=other / "broker.toml").publish_timeout == 5
    with pytest.raises(ConfigurationError, match=r"^nowhere\.toml cannot be read: No such file"):
        Settings.load(directory=other / "nowhere.toml")


def test_queue_settings_become_options_of_the_queue() -> None:
    toml(
        """
        [queues.orders]
        ttl = 60
        overflow = "dead_letter"
        dead_letter = "graveyard"
        [queues.logs]
        dead_letter = false
        [queues.plain]
        """
    )
    settings = Settings.load()
    assert settings.queue_options("orders") == {
        "ttl": 60.0,
        "overflow": "dead_letter",
        "dead_letter": "graveyard",
    }
    assert settings.queue_options("logs") == {"dead_letter": None}
    assert settings.queue_options("plain") == settings.queue_options("missing") == {}


RETRIES: list[tuple[str, dict[str, Any], list[float]]] = [
    ("as in the code", {}, [7, 7, 7]),
    ("kind alone", {"backoff": "exponential", "jitter": False}, [1, 2, 4]),
    (
        "exponential",
        {"backoff": "exponential", "base": 2, "factor": 3, "cap": 10, "jitter": False},
        [2, 6, 10],
    ),
    ("linear", {"backoff": "linear", "base": 5, "step": 2, "jitter": False}, [5, 7, 9]),
    ("linear by base alone", {"backoff": "linear", "base": 5, "jitter": False}, [5, 10, 15]),
    ("fixed", {"backoff": "fixed", "base": 0}, [0, 0, 0]),
    ("the code's, with another base", {"base": 3}, [3, 3, 3]),
    ("the code's, capped", {"cap": 4.5}, [4.5, 4.5, 4.5]),
]


@pytest.mark.parametrize(
    ("given", "waits"), [case[1:] for case in RETRIES], ids=[case[0] for case in RETRIES]
)
def test_retry_settings_are_put_over_the_policy_of_the_code(
    given: dict[str, Any], waits: list[float]
) -> None:
    code = RetryPolicy(max_attempts=9, backoff=fixed(7), max_age=100, give_up_on=(KeyError,))
    policy = RetrySettings(**given).policy(code)
    assert [policy.backoff.wait(attempt) for attempt in (1, 2, 3)] == waits
    assert (policy.max_attempts, policy.max_age, policy.give_up_on) == (9, 100, (KeyError,))


def test_retry_settings_may_override_attempts_and_age_alone() -> None:
    toml("[queues.orders.retry]\nmax_attempts = 2\nmax_age = 30")
    code = RetryPolicy(backoff=exponential(3), retry_on=(OSError,))
    policy = Settings.load().retry_policy("orders", code)
    assert policy == RetryPolicy(
        max_attempts=2, backoff=exponential(3), max_age=30, retry_on=(OSError,)
    )


def test_router_settings_become_bindings() -> None:
    toml(
        """
        [routers.shop]
        kind = "topic"
        bindings = [{queue = "orders", key = "order.*"}, {queue = "audit", key = "#"}]
        [routers.byhead]
        kind = "headers"
        bindings = [{queue = "eu", headers = {tier = "gold", region = "eu"}, match = "any"}]
        """
    )
    settings = Settings.load()
    assert settings.router_bindings("shop", "topic") == [
        Binding(router="shop", kind="topic", queue="orders", pattern="order.*"),
        Binding(router="shop", kind="topic", queue="audit", pattern="#"),
    ]
    (binding,) = settings.router_bindings("byhead", "headers")
    assert (binding.headers, binding.match) == ((("region", "eu"), ("tier", "gold")), "any")
    assert settings.router_bindings("other", "direct") == []
    with pytest.raises(
        ConfigurationError, match="'shop' has kind='direct' in the code and kind='topic' in"
    ):
        settings.router_bindings("shop", "direct")


WRONG: list[tuple[str, str, str]] = [
    (
        "typo at the top",
        f'ur = "{SECRET}"',
        r"^mqcore\.toml: ur: no such option; did you mean 'url'\? There are: backends",
    ),
    ("typo in a queue", "[queues.o]\ntll = 1", r"queues\.o\.tll: .* did you mean 'ttl'\?"),
    (
        "typo in a policy",
        "[queues.o.retry]\nmax_attempt = 1",
        r"queues\.o\.retry\.max_attempt: .* 'max_attempts'",
    ),
    ("typo in a router", '[routers.r]\nkin = "topic"', r"routers\.r\.kin: .* did you mean 'kind'"),
    (
        "typo in a binding",
        '[routers.r]\nkind="topic"\nbindings=[{queu="a"}]',
        r"bindings\.0\.queu: .* 'queue'\?",
    ),
    ("nothing like it", "zzz = 1", r"zzz: no such option\. There are: "),
    (
        "a retry option for a fixed wait",
        '[queues.o.retry]\nbackoff = "fixed"\nfactor = 2',
        r"queues\.o\.retry: factor has no effect",
    ),
    (
        "kind of router",
        '[routers.r]\nkind = "topik"',
        r"routers\.r\.kind: .*'direct', 'topic', 'fanout' or 'headers'",
    ),
    (
        "headers router without headers",
        '[routers.r]\nkind = "headers"\nbindings = [{queue = "a"}]',
        "at least one header",
    ),
    (
        "key too long",
        f'[routers.r]\nkind = "direct"\nbindings = [{{queue = "a", key = "{"k" * 256}"}}]',
        "255 bytes",
    ),
    (
        "queue of a binding",
        '[routers.r]\nkind = "fanout"\nbindings = [{queue = ""}]',
        r"bindings\.0\.queue",
    ),
    ("ttl of zero", "[queues.o]\nttl = 0", r"queues\.o\.ttl: .*greater than 0"),
    ("negative ttl", "[queues.o]\nttl = -1", "greater than 0"),
    ("nan ttl", "[queues.o]\nttl = nan", r"queues\.o\.ttl"),
    ("endless ttl", "[queues.o]\nttl = inf", "finite"),
    ("boolean ttl", "[queues.o]\nttl = true", "valid number"),
    ("text ttl", f'[queues.o]\nttl = "{SECRET}"', "valid number"),
    ("max_length", "[queues.o]\nmax_length = 0", "greater than or equal to 1"),
    ("max_length as a fraction", "[queues.o]\nmax_length = 1.5", "valid integer"),
    ("overflow", '[queues.o]\noverflow = "drop"', "'reject' or 'dead_letter'"),
    (
        "dead_letter true",
        "[queues.o]\ndead_letter = true",
        "the name of a queue, or false for none",
    ),
    ("dead_letter empty", '[queues.o]\ndead_letter = ""', "the name of a queue"),
    ("attempts", "[queues.o.retry]\nmax_attempts = 0", "greater than or equal to 1"),
    ("factor", "[queues.o.retry]\nfactor = 0.5", "greater than or equal to 1"),
    ("queues no table", "queues = 3", r"queues: .*dictionary"),
    ("queue no table", "[queues]\no = 3", r"queues\.o"),
    ("bindings no list", '[routers.r]\nkind = "topic"\nbindings = 3', r"routers\.r\.bindings"),
    (
        "durability",
        'durability = "machin"',
        r"durability: it is one of memory, process, machine, replicated",
    ),
    ("durability as a number", "durability = 7", "durability"),
    ("timeout", "publish_timeout = 0", "publish_timeout: .*greater than 0"),
    ("codecs", 'codecs = "json"', "codecs"),
    ("url a number", "url = 5", "url: a URL is text"),
    (
        "url malformed",
        f'url = "redis://u:{SECRET}@h:{SECRET}"',
        r"url: the broker URL 'redis://u:\*\*\*@h:\*\*\*' is not usable",
    ),
    ("backend options no table", "backends.redis = 3", r"backends\.redis"),
    ("no toml", "url =", r"^mqcore\.toml cannot be read: Invalid value"),
    ("given twice", "url = 'a'\nurl = 'b'", "cannot be read"),
    ("no table", "[queues", "cannot be read"),
]


@pytest.mark.parametrize(
    ("text", "told"), [case[1:] for case in WRONG], ids=[case[0] for case in WRONG]
)
def test_a_mistake_is_told_in_one_line(text: str, told: str) -> None:
    toml(text)
    with pytest.raises(ConfigurationError, match=told) as caught:
        Settings.load()
    said = str(caught.value)
    assert said.startswith("mqcore.toml")
    assert said.isprintable()
    assert SECRET not in said
    assert len(said) < 700
    assert caught.value.__suppress_context__


def test_the_source_of_a_mistake_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    toml("[queues.orders]\nttl = 5")
    project("[tool.mqcore.queues.orders]\nmax_length = 'x'")
    with pytest.raises(
        ConfigurationError,
        match=r"^\[tool\.mqcore\] in pyproject\.toml: queues\.orders\.max_length: ",
    ):
        Settings.load()
    with pytest.raises(ConfigurationError, match=r"^argument: queues\.orders\.max_length: "):
        Settings.load(queues={"orders": {"max_length": 0}})
    with pytest.raises(
        ConfigurationError, match=r"argument: urll: no such option; did you mean 'url'\?"
    ):
        Settings.load(urll="redis://h")
    monkeypatch.setenv("MQCORE_DURABILITY", "zzz")
    project("")
    with pytest.raises(ConfigurationError, match=r"^MQCORE_DURABILITY: durability: it is one of"):
        Settings.load()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tool = 3", None),
        ("[tool.other]\nx = 1", None),
        ("[tool]\nmqcore = 3", r"^pyproject\.toml: tool\.mqcore is not a table"),
        ("[tool.mqcore", r"^pyproject\.toml cannot be read"),
        ("[tool.mqcore]\nx = 1", r"^\[tool\.mqcore\] in pyproject\.toml: x: no such option"),
    ],
    ids=["tool is no table", "not ours", "ours is no table", "syntax", "typo"],
)
def test_pyproject(text: str, told: str | None) -> None:
    project(text)
    if told is None:
        assert str(Settings.load().url) == "memory://"
        return
    with pytest.raises(ConfigurationError, match=told):
        Settings.load()


@pytest.mark.parametrize(
    "content",
    [b"\xff", b"\x00", b"\xef\xbb\xbfurl = 'x'", b"a = " + b"[" * 5000],
    ids=["utf-8", "nul", "bom", "deep"],
)
def test_a_file_that_is_no_toml_is_a_configuration_error(content: bytes) -> None:
    Path("mqcore.toml").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"^mqcore\.toml cannot be read: "):
        Settings.load()


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("MQCORE_URL", "", "MQCORE_URL: url: .*it is empty"),
        ("MQCORE_URL", f"redis://:{SECRET}@h x", "MQCORE_URL: .*white space"),
        (
            "MQCORE_URI",
            f"redis://{SECRET}@h",
            r"MQCORE_URI: no such setting; did you mean MQCORE_URL\?",
        ),
        ("MQCORE_DURABILTY", "machine", r"did you mean MQCORE_DURABILITY\?"),
        ("MQCORE_PUBLISH_TIMEOUT", SECRET, "MQCORE_PUBLISH_TIMEOUT: give a number of seconds"),
        ("MQCORE_PUBLISH_TIMEOUT", "-1", "MQCORE_PUBLISH_TIMEOUT: .*greater than 0"),
        ("MQCORE_PUBLISH_TIMEOUT", "nan", "MQCORE_PUBLISH_TIMEOUT"),
        ("MQCORE_QUEUES", "{}", "MQCORE_QUEUES: this setting is not read from the environment"),
        ("MQCORE_QUEUES__ORDERS__TTL", "1", "put it into mqcore.toml"),
        ("MQCORE_CODECS", "json", "put it into mqcore.toml"),
    ],
    ids=[
        "empty url",
        "bad url",
        "typo",
        "another typo",
        "text",
        "negative",
        "nan",
        "queues",
        "nested",
        "codecs",
    ],
)
def test_a_mistake_in_the_environment(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=f"^.*{told}") as caught:
        Settings.load()
    assert SECRET not in str(caught.value)


def test_other_variables_of_the_environment_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MQCORE_CI", "true")
    monkeypatch.setenv("OTHER_URL", "redis://h")
    assert str(Settings.load().url) == "memory://"


def test_no_secret_is_shown() -> None:
    toml(f'url = "redis://:{SECRET}@h/0"\n[backends.redis]\npassword = "{SECRET}"\ndb = 1')
    settings = Settings.load()
    assert settings.backends == {"redis": {"password": SECRET, "db": 1}}
    assert settings.model_dump()["backends"] == {"redis": {"password": "***", "db": 1}}
    for shown in (
        repr(settings),
        str(settings),
        str(settings.model_dump()),
        settings.model_dump_json(),
    ):
        assert SECRET not in shown


def test_wrong_settings_made_in_code_show_no_secret() -> None:
    with pytest.raises(ValueError, match="url") as caught:
        Settings(url=f"redis://u:{SECRET}@h:x")  # type: ignore[arg-type]  # pydantic reads it
    assert SECRET not in str(caught.value)


class RedisOptions(Options):
    db: int = 0
    lease: float = 30.0
    password: SecretStr | None = None
    clock: Clock = CLOCK
    durability: str | None = None


class PlainOptions(BaseModel):
    model_config = RedisOptions.model_config
    db: int = 0


class Fake(Backend):
    scheme: ClassVar[str | tuple[str, ...]] = ("redis", "rediss")
    Options: ClassVar[type[BaseModel]] = RedisOptions


class Plain(Backend):
    scheme: ClassVar[str | tuple[str, ...]] = "plain"
    Options: ClassVar[type[BaseModel]] = PlainOptions


Fake.__abstractmethods__ = Plain.__abstractmethods__ = frozenset()


def options(url: str, settings: str = "") -> Any:
    toml(settings)
    return options_for(Fake, url, Settings.load(), CLOCK)


def test_the_urls_options_win_over_the_settings() -> None:
    settings = "[backends.redis]\ndb = 1\nlease = 5\n[backends.rediss]\ndb = 2"
    assert options("redis://h", settings).db == 1
    assert options("redis://h?db=3", settings).db == 3
    secure = options("rediss://h", settings)
    assert (secure.db, secure.lease) == (2, 5.0)
    assert options("REDIS://h?lease=7.5&password=x").lease == 7.5


def test_a_backend_that_asks_for_the_clock_gets_the_brokers() -> None:
    clock = SystemClock()
    assert options_for(Fake, BrokerUrl("redis://h"), Settings(), clock).clock is clock  # type: ignore[attr-defined]  # RedisOptions
    assert options_for(Plain, "plain://h", Settings(), clock) == PlainOptions()


def test_a_backend_that_asks_for_the_durability_gets_what_the_application_wants() -> None:
    settings = Settings(durability=Durability.PROCESS)

    def durability(url: str, wanted: Durability | None = None) -> str | None:
        found: str | None = options_for(Fake, url, settings, CLOCK, wanted).durability  # type: ignore[attr-defined]  # RedisOptions
        return found

    assert durability("redis://h") == "process"
    assert durability("redis://h", Durability.MEMORY) == "memory"
    assert durability("redis://h?durability=machine", Durability.MEMORY) == "machine"


@pytest.mark.parametrize(
    ("url", "settings", "told"),
    [
        (
            "redis://h?dbb=1",
            "",
            (
                r"^the broker URL: dbb: no such option; did you mean 'db'\? "
                r"There are: db, durability, lease, password$"
            ),
        ),
        (
            "redis://h?zzz=1",
            "",
            "the broker URL: zzz: no such option. There are: db, durability, lease, password",
        ),
        (f"redis://h?db={SECRET}", "", "the broker URL: db: .*valid integer"),
        (
            "redis://h",
            "[backends.redis]\nleese = 1",
            r"^mqcore\.toml: \[backends\.redis\]: leese: .*'lease'",
        ),
        ("redis://h?clock=1", "", "clock is not an option"),
        (
            "redis://h",
            "[backends.redis]\nclock = 1",
            r"^mqcore\.toml: \[backends\.redis\]: clock is not an option",
        ),
        ("redis:/h", "", "not usable"),
    ],
    ids=[
        "typo",
        "unknown",
        "type",
        "typo in settings",
        "clock in url",
        "clock in settings",
        "no url",
    ],
)
def test_a_mistake_in_a_backends_options(url: str, settings: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as caught:
        options(url, settings)
    assert SECRET not in str(caught.value)


def test_a_backend_is_made_with_its_whole_url_and_its_options() -> None:
    class Plugin:
        @hookimpl
        def mqcore_register_backends(self) -> list[type[Backend]]:
            return [Fake]

    plugins = Plugins([])
    plugins.register(Plugin())
    made = open_backend(f"redis://:{SECRET}@h?db=4", Settings(), plugins, CLOCK)
    assert isinstance(made, Fake)
    assert made.url == f"redis://:{SECRET}@h?db=4"
    assert isinstance(made.options, RedisOptions)
    assert made.options.db == 4
    with pytest.raises(BackendNotFound, match="kafka") as caught:
        open_backend(f"kafka://:{SECRET}@h", Settings(), plugins, CLOCK)
    assert SECRET not in str(caught.value)


def test_the_file_of_each_option_of_a_backend_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mqcore.toml").write_text("[backends.redis]\ndb = 1\n")
    (tmp_path / "pyproject.toml").write_text("[tool.mqcore.backends.redis]\nleese = 5\n")
    where = r"^\[tool\.mqcore\] in pyproject\.toml: \[backends\.redis\]: leese: "
    with pytest.raises(ConfigurationError, match=where):
        options_for(Fake, "redis://h", Settings.load(), CLOCK)


async def test_where_a_codec_and_a_durability_were_asked_for_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "mqcore.toml"
    file.write_text('codecs = ["json", "yaml"]\n')
    with pytest.raises(
        ConfigurationError, match=r"^mqcore\.toml: codecs: codec 'yaml': .*json, text, bytes"
    ):
        Broker.connect("memory://")
    with pytest.raises(ConfigurationError, match=r"^the settings: codecs: codec 'yaml'"):
        Broker.connect("memory://", settings=Settings(codecs=("yaml",)))

    file.write_text('durability = "machine"\n')
    asked = "'machine' was asked for.*"
    with pytest.raises(DurabilityUnavailable, match=rf"{asked}mqcore\.toml asks for it"):
        await Broker.connect("memory://").open()
    monkeypatch.setenv("MQCORE_DURABILITY", "machine")
    with pytest.raises(DurabilityUnavailable, match=f"{asked}MQCORE_DURABILITY asks for it"):
        await Broker.connect("memory://").open()
    with pytest.raises(DurabilityUnavailable, match=rf"{asked}connect\(durability=...\) asks"):
        await Broker.connect("memory://", durability="machine").open()


async def test_a_queue_whose_codec_is_not_allowed_is_named() -> None:
    other = Queue("other", str, codec="yaml")
    async with Broker.connect("memory://", settings=Settings()) as broker:
        with pytest.raises(ConfigurationError, match="'other': codec 'yaml' is not installed"):
            await broker.publish(other, "a")
        with pytest.raises(ConfigurationError, match="'other': codec 'yaml' is not installed"):
            await broker.consume(other).get(timeout=0)
