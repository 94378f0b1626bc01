"""What is public exists, is documented and imports; plugins import only the seam."""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest

import mqcore

ROOT = Path(__file__).parents[2]
PLUGINS = sorted(path for path in (ROOT / "plugins").iterdir() if (path / "__init__.py").is_file())
BACKENDS = [path for path in PLUGINS if path.name != "mqcore_celery"]
FOR_PLUGINS = {"mqcore.spi", "mqcore.tasks.spi"}
"""The seams: of a backend, and of a task store."""


def public_modules() -> Iterator[str]:
    """Yield the dotted names of every module that no underscore hides."""
    for package in (ROOT / "mqcore", *PLUGINS):
        yield package.name
        for found in pkgutil.walk_packages([str(package)], f"{package.name}."):
            if not any(part.startswith("_") for part in found.name.split(".")):
                yield found.name


def imports_of_core(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield line and name of each module of mqcore that this source imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "mqcore":
            names = [f"mqcore.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == "mqcore")


def test_every_exported_name_exists_and_is_described() -> None:
    assert len(mqcore.__all__) == len(set(mqcore.__all__))
    for name in mqcore.__all__:
        thing = getattr(mqcore, name)
        if callable(thing):
            text = (vars(thing).get("__doc__") if isinstance(thing, type) else thing.__doc__) or ""
            assert text.strip(), f"mqcore.{name} has no docstring"
            assert not text.startswith(f"{name}("), (
                f"mqcore.{name} has only the docstring that dataclass made up"
            )


def imported(name: str) -> ModuleType:
    if name.startswith("mqcore.tasks.django") and find_spec("django.tasks") is None:
        pytest.importorskip("django_tasks", reason="an environment made before it was needed")
    return importlib.import_module(name)


REFERENCE = ROOT / "docs" / "reference"


@pytest.mark.parametrize(
    "module",
    [
        *("mqcore", "mqcore.django", "mqcore.middleware", "mqcore.sync", "mqcore.tasks"),
        *("mqcore.tasks.django", "mqcore.tasks.fastapi", "mqcore.testing"),
    ],
)
def test_every_exported_name_is_on_a_page_of_the_reference(module: str) -> None:
    text = "\n".join(page.read_text("utf-8") for page in REFERENCE.glob("*.md"))
    documented = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    exported = {f"{module}.{name}" for name in imported(module).__all__}
    assert module in documented or not exported - documented


def test_a_broker_shows_what_the_reference_documents_and_no_machinery() -> None:
    broker = mqcore.Broker("memory://", settings=mqcore.Settings())
    shown = {name for name in dir(broker) if not name.startswith("_")}
    assert shown == {
        *("alter", "bindings", "capabilities", "clock", "close", "connect", "consume", "counts"),
        *("dead_letters", "declare", "delete", "diagnose", "events", "health", "is_local", "open"),
        *("peek", "producer", "publish", "publish_many", "purge", "request", "unbind", "unwrap"),
    }


@pytest.mark.parametrize("name", sorted(public_modules()))
def test_every_public_module_imports_and_tells_its_story(name: str) -> None:
    assert (imported(name).__doc__ or "").strip(), f"{name} has no docstring"


@pytest.mark.parametrize("plugin", BACKENDS, ids=lambda path: path.name)
def test_a_plugin_imports_only_the_seam(plugin: Path) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: imports {name}"
        for path in sorted(plugin.rglob("*.py"))
        for line, name in imports_of_core(ast.parse(path.read_text(encoding="utf-8")))
        if name not in FOR_PLUGINS
    ]
    assert not wrong, "\n".join(wrong)


def test_the_transport_for_celery_is_an_application() -> None:
    """It uses what an application may use, and the thread on which `mqcore.sync` runs."""
    allowed = {f"mqcore.{name}" for name in mqcore.__all__}
    allowed |= {"mqcore.events", "mqcore.sync.loop_thread", "mqcore.sync.loop_thread.LoopThread"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: imports {name}"
        for path in sorted((ROOT / "plugins" / "mqcore_celery").rglob("*.py"))
        for line, name in imports_of_core(ast.parse(path.read_text(encoding="utf-8")))
        if name not in allowed
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "source",
    [
        "import mqcore.broker",
        "from mqcore import App",
        "from mqcore.messages.message import Message",
    ],
)
def test_an_import_past_the_seam_is_seen(source: str) -> None:
    assert {name for _, name in imports_of_core(ast.parse(source))} - FOR_PLUGINS


@pytest.mark.parametrize(
    "source",
    [
        "from mqcore.spi import Backend",
        "from mqcore import spi",
        "import mqcore.spi as spi",
        "from mqcore.tasks.spi import TaskStore",
    ],
)
def test_an_import_of_a_seam_is_allowed(source: str) -> None:
    (name,) = {name for _, name in imports_of_core(ast.parse(source))}
    assert name in FOR_PLUGINS
