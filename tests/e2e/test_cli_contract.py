"""`mqcore contract run` and `mqcore new-backend`: verdicts, exit codes, and a new package."""

from __future__ import annotations

import importlib
import json
import sys
import tomllib
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support.commands import CANARY

from mqcore.cli import new_backend
from mqcore.config.plugins import Plugins
from mqcore.contract import UrlHarness, all_cases, run_case
from mqcore.contract.brokers import ProcessServer, ServerHarness
from mqcore.spi import (
    STORED,
    Backend,
    Capabilities,
    Capability,
    Durability,
    Level,
    Support,
    hookimpl,
)
from mqcore.testing import memory_url
from mqcore_memory import MemoryBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from support.commands import Refused, Run

SOME = next(case.name for case in all_cases() if case.profile == "core")


class Liar(MemoryBackend):
    """Has a lease, and does not say so; fails to open when the URL says so."""

    scheme = "liar"
    local = True

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        if "slow" in self.url:
            raise TimeoutError("no answer to HELLO")
        if "down" in self.url:
            raise RuntimeError(f"nobody listens at {self.url}")
        found = await super().open(lost)
        supports = {which: found[which] for which in Capability if which is not Capability.LEASE}
        return Capabilities("liar", f"at {self.url}", Durability.MEMORY, supports)


class Plugin:
    """Registers `Liar`."""

    @hookimpl
    def mqcore_register_backends(self) -> list[type[Backend]]:
        return [Liar]


@pytest.fixture
def liar(monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = Plugins()
    plugins.register(Plugin())
    monkeypatch.setattr("mqcore.cli.contract.default_plugins", lambda: plugins)


# the run


def test_a_whole_run_passes_and_writes_its_report_and_badge(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [case for case in all_cases() if case.profile == "core"][:4]
    monkeypatch.setattr("mqcore.cli.contract.all_cases", lambda: few)
    monkeypatch.setenv("CI", "true")
    said = run(
        "contract", "run", memory_url(), "--report", "report.json", "--badge", "contract.svg"
    )
    assert (said.code, said.err) == (0, "")
    lines = said.out.splitlines()
    assert [line.split()[:2] for line in lines[: len(few)]] == [
        ["passed", case.name] for case in few
    ]
    assert lines[-1] == "passed"
    report = json.loads(Path("report.json").read_text())
    assert (report["verdict"], report["backend"], len(report["cases"])) == (
        "passed",
        "memory",
        len(few),
    )
    assert f"{len(few)} passed" in Path("contract.svg").read_text()


def test_what_fails_may_be_waived_with_a_reason_and_a_waiver_that_is_not_needed_fails(
    run: Run, liar: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease = "capability.what_works_is_declared[LEASE]"
    monkeypatch.setattr(
        "mqcore.cli.contract.all_cases",
        lambda: [case for case in all_cases() if "what_works" in case.name],
    )
    monkeypatch.setenv("CI", "true")
    said = run(
        "contract", "run", "liar://x/", "--waive", f"{lease}: it is a liar", "--report", "report.md"
    )
    assert (said.code, said.out.splitlines()[-1]) == (0, "passed")
    assert f"waived: {lease}: it is a liar" in said.out
    assert "it is a liar" in Path("report.md").read_text()
    said = run("contract", "run", memory_url(), "--waive", f"{lease}: it is a liar")
    assert said.code == 1
    assert "the case passes; remove its waiver (it is a liar)" in said.out


@pytest.mark.usefixtures("liar")
@pytest.mark.parametrize(("words", "shown"), [((), "passed"), (("--virtual",), "not shown")])
def test_a_backend_elsewhere_goes_by_virtual_time_when_that_is_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], shown: str
) -> None:
    monkeypatch.setattr(Liar, "local", False)
    name = "uniformity.both_ways_to_consume_settle_the_same"  # which a virtual clock cannot show
    data = run("contract", "run", "liar://x/", "--case", name, *words, "--json").data
    assert [case["status"] for case in data["cases"]] == [shown]


@pytest.mark.usefixtures("acme")
def test_virtual_time_takes_a_backend_that_goes_by_a_clock(
    acme: Plugins, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqcore.cli.contract.default_plugins", lambda: acme)
    assert "no field `clock`" in refused("contract", "run", "acme-mq://x", "--virtual")


def test_what_fails_for_one_reason_is_told_once(
    run: Run, acme: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqcore.cli.contract.default_plugins", lambda: acme)
    said = run(
        "contract",
        "run",
        "acme-mq://x",
        "--profile",
        "core",
        "--profile",
        "routing",
        "--profile",
        "capability",
    )
    assert said.code == 1
    causes = [line for line in said.out.splitlines() if line.strip().startswith("came:")]
    assert len(causes) == len(set(causes)) == 3
    assert all("NotImplementedError: write AcmeMq" in cause for cause in causes)
    looks = [
        line.split()[2] for line in said.out.splitlines() if line.strip().startswith("look at:")
    ]
    assert sorted(looks) == ["declare", "publish", "subscribe"]


def test_what_core_refuses_by_itself_is_shown_before_anything_is_written(
    run: Run, acme: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqcore.cli.contract.default_plugins", lambda: acme)
    names = ("what_nobody_declared_is_refused", "what_this_backend_does_not_declare_is_refused")
    words = [word for name in names for word in ("--case", name)]
    data = run("contract", "run", "acme-mq://x", *words, "--json").data
    assert {case["status"] for case in data["cases"]} == {"passed"}


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
@pytest.mark.parametrize(
    "chosen", [("--case", f"{SOME[:10]}*{SOME[12:]}"), ("--profile", "core", "--case", SOME[4:])]
)
def test_a_run_with_cases_left_out_is_partial(
    run: Run, monkeypatch: pytest.MonkeyPatch, chosen: tuple[str, ...], ci: str, code: int
) -> None:
    monkeypatch.setenv("CI", ci)
    said = run(
        "contract", "run", memory_url(), *chosen, "--report", "report.md", "--badge", "contract.svg"
    )
    assert said.code == code
    assert f"passed          {SOME}" in said.out
    assert said.out.splitlines()[-2:] == [
        "partial run: it proves nothing, and there is no badge",
        "partial",
    ]
    assert "**partial**" in Path("report.md").read_text()
    assert not Path("contract.svg").exists()


def test_a_variant_of_a_case_is_named_as_it_is_printed(run: Run) -> None:
    name = "capability.a_capability_has_a_level_and_its_limits[DELAY]"
    data = run("contract", "run", memory_url(), "--case", name, "--json").data
    assert [(case["name"], case["status"]) for case in data["cases"]] == [(name, "passed")]


@pytest.mark.usefixtures("liar")
def test_a_failure_is_told_in_its_own_words_and_ends_with_1(run: Run) -> None:
    said = run("contract", "run", f"liar://user:{CANARY}@x/", "--case", "what_works_is_declared")
    assert said.code == 1
    assert "capability.what_works_is_declared[LEASE] (G16)" in said.out
    assert "expected: LEASE declared, for it works" in said.out
    assert "look at: Backend.open" in said.out
    assert said.out.splitlines()[-1] == "failed"


@pytest.mark.usefixtures("liar")
def test_a_broker_that_does_not_open_is_one_line_and_not_one_a_case(refused: Refused) -> None:
    text = refused("contract", "run", f"liar://user:{CANARY}@down/", code=1)
    assert "cannot connect to liar://user:***@down/: RuntimeError: nobody listens at" in text
    assert "test_cli_contract.py, line" in text


@pytest.mark.usefixtures("liar")
def test_a_timeout_of_the_driver_is_not_taken_for_the_commands(refused: Refused) -> None:
    text = refused("contract", "run", "liar://slow/", code=1)
    assert ": TimeoutError: no answer to HELLO" in text
    assert "within" not in text


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("nowhere://",), "no installed plugin serves"),
        (("memory://?dedup_windo=1",), "dedup_window"),
        (("memory://", "--profile", "cor"), "the profiles are: core"),
        (("memory://", "--case", "nothing-like-it"), "no case has 'nothing-like-it'"),
        (("memory://", "--report", "report.txt"), ".json or .md"),
        (("memory://", "--report", "missing/report.md"), "does not exist"),
        (("memory://", "--badge", "badge.png"), ".svg"),
        (("memory://", "--waive", SOME), "CASE:REASON"),
        (
            ("memory://", "--waive", "core.no_such_case: why"),
            "no case is named 'core.no_such_case'",
        ),
        ((), "URL"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_misuse_is_one_line(refused: Refused, words: tuple[str, ...], why: str) -> None:
    assert why in refused("contract", "run", *words)


# the new package


@pytest.fixture
def acme(run: Run, monkeypatch: pytest.MonkeyPatch) -> Plugins:
    """A package as it is generated, found on the path."""
    said = run("new-backend", "acme-mq", "--directory", "here")
    assert (said.code, said.err) == (0, "")
    assert "mqcore contract run acme-mq://" in said.out
    monkeypatch.syspath_prepend(Path("here/mqcore-acme-mq/src").resolve())
    plugins = Plugins()
    plugins.register(importlib.import_module("mqcore_acme_mq"))
    return plugins


def test_a_new_package_is_whole(acme: Plugins) -> None:
    root = Path("here/mqcore-acme-mq")
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["mqcore"] == {"acme-mq": "mqcore_acme_mq"}
    assert (root / ".github" / "workflows" / "contract.yml").is_file()
    assert (root / "README.md").read_text().startswith("# mqcore-acme-mq")
    compile((root / "tests" / "test_contract.py").read_text(), "test_contract.py", "exec")
    for path in root.rglob("*"):
        assert "@" not in path.name
        if path.is_file() and path.suffix != ".pyc":
            assert not any(
                f"@{word}@" in path.read_text() for word in ("name", "package", "Class", "version")
            )
    assert acme.backend_for("acme-mq").__name__ == "AcmeMqBackend"


def test_its_own_server_works_once_the_lines_are_uncommented(acme: Plugins) -> None:
    text = Path("here/mqcore-acme-mq/tests/test_contract.py").read_text()
    plain, mark, commented = text.partition("# A server that these tests start themselves.")
    assert mark
    lines = commented.partition("#\n")[2].splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []
    code = "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)
    code = code.replace('@pytest.fixture(scope="module")\n', "")
    own = '"acme-mq-server", "--listen", "127.0.0.1:{port}", "--data", "{folder}"'
    assert own in code
    words = [
        sys.executable,
        "-m",
        "http.server",
        "{port}",
        "--bind",
        "127.0.0.1",
        "--directory",
        "{folder}",
    ]
    code = code.replace(own, ", ".join(map(repr, words)))

    names: dict[str, Any] = {}
    exec(compile(f"{plain}\n{code}", "test_contract.py", "exec"), names)  # noqa: S102 - what the author would run
    with ExitStack() as started:
        harness = names["harness"](
            lambda *given, **more: started.enter_context(ProcessServer(*given, **more))
        )
        assert type(harness) is ServerHarness
        assert harness.url == f"acme-mq://127.0.0.1:{harness.server.port}"
        assert all(harness.has(hook) for hook in ("restart", "cut", "kill"))


def test_every_method_of_the_seam_stands_in_it_and_says_must(acme: Plugins) -> None:
    module = sys.modules["mqcore_acme_mq.backend"]
    for cls, seam in (
        (module.AcmeMqBackend, Backend),
        (module.AcmeMqSubscription, module.Subscription),
    ):
        for name in seam.__abstractmethods__:
            assert " must " in f" {vars(cls)[name].__doc__.lower()} ", name


def test_its_contract_starts_red_and_says_case_by_case_what_to_write(
    acme: Plugins, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = [case for case in all_cases() if case.profile == "core"]
    backend = acme.backend_for("acme-mq")

    def words() -> str:
        results = (run_case(case, UrlHarness("acme-mq://127.0.0.1", plugins=acme)) for case in core)
        return next(result.text for result in results if result.status == "failed")

    async def declare(self: object, queues: object) -> None: ...

    async def publish(self: object, batch: Sequence[object], *, timeout: float) -> list[object]:
        return [STORED for _ in batch]

    async def subscribe(self: object, queue: str, *, prefetch: int, lease: float) -> object:
        return sys.modules["mqcore_acme_mq.backend"].AcmeMqSubscription()

    for what, written in (
        ("Backend.declare", declare),
        ("Backend.publish", publish),
        ("Backend.subscribe", subscribe),
    ):
        found = words()
        assert f"write AcmeMq{what} next: " in found
        assert f"look at: {what.partition('.')[2]} (" in found
        monkeypatch.setattr(backend, what.partition(".")[2], written)  # as its author would go on
    assert "write AcmeMqSubscription.receive next: " in words()


def test_what_it_declares_is_nothing_that_it_does_not_do(acme: Plugins) -> None:
    honest = [
        case for case in all_cases() if case.name.startswith("capability.a_capability_has_a_level")
    ]
    results = [run_case(case, UrlHarness("acme-mq://127.0.0.1", plugins=acme)) for case in honest]
    assert {result.status for result in results} == {"passed"}
    assert all(
        result.capabilities is not None and result.capabilities[which] == Support(Level.NONE)
        for result in results
        for which in Capability
    )


@pytest.mark.parametrize("name", ["Acme", "acme_mq", "1st", "a--b", "class", "x" * 41, "ä"])
def test_a_name_that_is_no_scheme_is_refused(refused: Refused, name: str) -> None:
    assert "cannot be a URL scheme" in refused("new-backend", name)
    assert not list(Path().iterdir())


def test_a_scheme_that_is_taken_is_refused(refused: Refused) -> None:
    assert "taken by" in refused("new-backend", "memory")


def test_a_folder_that_is_there_is_left_alone(run: Run, refused: Refused) -> None:
    assert run("new-backend", "acme").code == 0
    Path("mqcore-acme/README.md").write_text("mine")
    assert "exists already" in refused("new-backend", "acme")
    assert Path("mqcore-acme/README.md").read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_one_line(refused: Refused) -> None:
    Path("file").write_text("")
    assert "cannot be written" in refused("new-backend", "acme", "--directory", "file")


def test_the_templates_are_where_the_command_looks_for_them() -> None:
    assert (
        Path(new_backend.__file__).parents[1] / "contract" / "template" / "pyproject.toml.tmpl"
    ).is_file()
