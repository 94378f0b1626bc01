"""`mqcore tasks check`: what keeps an application from working, without a broker or a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from support.commands import CANARY, write

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.commands import Run, Said

    Check = Callable[..., Said]

HEAD = """
from mqcore import App
from mqcore.tasks import Scheduled, Tasks, Unique, cron, every

"""


@pytest.fixture
def check(run: Run, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Write an application and check it."""
    name = f"checked_{abs(hash(request.node.nodeid))}"
    monkeypatch.syspath_prepend(".")

    def written(text: str, *words: str) -> Said:
        write(f"{name}.py", HEAD + text)
        return run("tasks", "check", f"{name}:app", *words)

    return written


def found(said: Said) -> dict[tuple[str, str], str]:
    """Return the findings by level and what they are about."""
    data: dict[str, Any] = said.data
    return {(each["level"], each["about"]): each["text"] for each in data["findings"]}


GOOD = """
tasks = Tasks(
    "shop",
    store="sqlite:///tasks.db",
    routes={"shop.*": "hipri"},
    schedules={"nightly": Scheduled("shop.add", every(30), args=(1,))},
)
app = App("shop", tasks=[tasks])

@tasks.task(name="shop.add")
def add(x: int) -> int:
    return x
"""


def test_a_good_application_passes(check: Check) -> None:
    said = check(GOOD, "--url", f"redis://user:{CANARY}@localhost/0")
    assert said.code == 0
    assert said.out.endswith("0 errors, 0 warnings\n")
    assert "queues             default, hipri" in said.out

    data = check(GOOD, "--url", "redis://localhost/0", "--json").data
    assert (data["ok"], data["findings"]) == (True, [])
    assert data["schedules of shop"] == ["nightly"]


def test_what_is_wrong_with_routes_tasks_and_schedules(check: Check) -> None:
    said = check(
        """
tasks = Tasks(
    "shop",
    routes={"shop.ad*": "hipri", "shop.add": "low", "shop.media.*": "media", "own": "other"},
    schedules={"nightly": Scheduled("shop.rep", every(30)), "bad": Scheduled("own", every(5))},
)
app = App("shop", tasks=[tasks])

@tasks.task(name="shop.add", soft_timeout=400, unique=Unique())
def add(x: int) -> int:
    return x

@tasks.task(name="own", queue="mine")
def own(x: int) -> int:
    return x
""",
        "--json",
    )
    assert said.code == 1
    findings = found(said)
    assert "no broker is configured" in findings["warning", "broker"]
    assert "unique= needs a store" in findings["error", "task shop.add"]
    assert "schedules need a store" in findings["error", "tasks shop"]
    assert "soft_timeout=400 is not shorter" in findings["warning", "task shop.add"]
    assert "an earlier route" in findings["warning", "route shop.add"]
    assert "no task has a name" in findings["warning", "route shop.media.*"]
    assert "names a queue of its own (own)" in findings["warning", "route own"]
    assert "there is no task 'shop.rep'" in findings["error", "schedule nightly"]
    assert "task 'own'" in findings["error", "schedule bad"]
    assert len(findings) == 9


def test_what_cannot_be_imported(check: Check, run: Run) -> None:
    said = check("import not_there", "--json")
    assert (said.code, list(found(said))) == (1, [("warning", "broker"), ("error", "app")][::-1])
    assert "line 5" in found(said)["error", "app"]

    text = 'app = App("shop", tasks=[Tasks("shop", include=["not.there"])])'
    findings = found(check(f"{text}  # again", "--json"))
    assert "include=: ModuleNotFoundError" in findings["error", "tasks shop"]


def test_settings_are_checked(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    write("mqcore.toml", 'url = "redis://localhost"\n[queues.hipry]\nttl = 60\n')
    findings = found(check(GOOD, "--json"))
    assert "Did you mean 'hipri'?" in findings["warning", "settings"]
    assert check(GOOD).code == 0
    assert check(GOOD, "--strict").code == 1

    monkeypatch.setenv("MQCORE_URL", "nowhere://localhost")
    assert "nowhere" in found(check(GOOD, "--json"))["error", "broker"]
    write("mqcore.toml", "urll = 3\n")
    assert "urll" in found(check(GOOD, "--json"))["error", "settings"]


def test_stores_are_checked(check: Check) -> None:
    url = ("--url", "redis://localhost/0", "--json")
    memory = GOOD.replace("sqlite:///tasks.db", "memory://")
    assert "lives in one process" in found(check(memory, *url))["warning", "tasks shop"]


def test_an_unknown_store_is_an_error(check: Check) -> None:
    text = GOOD.replace("sqlite:///tasks.db", "nowhere://tasks")
    findings = found(check(text, "--url", "redis://localhost/0", "--json"))
    assert "no installed plugin has a task store" in findings["error", "tasks shop"]


def test_two_handlers_for_one_queue_are_an_error(check: Check) -> None:
    text = GOOD + '@app.consumer("hipri")\nasync def handle(body: bytes) -> None: ...\n'
    findings = found(check(text, "--url", "redis://localhost/0", "--json"))
    assert "two handlers for queue 'hipri'" in findings["error", "consumers"]


def test_an_application_without_tasks_is_checked_too(check: Check) -> None:
    said = check('app = App("bare")', "--url", "redis://localhost/0")
    assert (said.code, said.out.splitlines()[-1]) == (0, "0 errors, 0 warnings")
