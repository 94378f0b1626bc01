"""Which task store serves a URL."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest

from mqcore.errors import BackendNotFound, ConfigurationError
from mqcore.spi import hookimpl
from mqcore.tasks import spi
from mqcore.tasks.model import nodes, states
from mqcore.tasks.model.changes import Add
from mqcore.tasks.model.nodes import Node
from mqcore.tasks.store import seam
from mqcore.tasks.store.memory import MemoryTaskStore
from mqcore.tasks.store.plugins import GROUP, StorePlugins, default_store_plugins
from mqcore.tasks.transitions import rows


class AcmeTaskStore(MemoryTaskStore):
    """A store of another plugin."""

    scheme = ("acme", "acmes")


class Acme:
    """A plugin."""

    def __init__(self, *stores: object) -> None:
        self.stores = stores

    @hookimpl
    def mqcore_register_stores(self) -> list[object]:
        return list(self.stores)


def test_memory_is_always_there() -> None:
    assert default_store_plugins().store_for("memory") is MemoryTaskStore
    assert StorePlugins([]).store_for("memory") is MemoryTaskStore


def test_a_store_registered_in_code_serves_its_schemes() -> None:
    plugins = StorePlugins([])
    plugins.register(plugin := Acme(AcmeTaskStore))
    plugins.register(plugin)
    assert plugins.store_for("acmes") is AcmeTaskStore


def test_an_installed_plugin_is_imported_when_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plugins = StorePlugins([EntryPoint("acme", "acme_store", GROUP)])
    assert plugins.store_for("memory") is MemoryTaskStore

    module = ModuleType("acme_store")
    module.mqcore_register_stores = hookimpl(lambda: [AcmeTaskStore])  # type: ignore[attr-defined]  # set here
    monkeypatch.setitem(sys.modules, "acme_store", module)
    assert plugins.store_for("acme") is AcmeTaskStore


def test_an_unknown_scheme_is_refused_with_what_there_is() -> None:
    plugins = StorePlugins([EntryPoint("acme", "missing_acme", GROUP)])
    with pytest.raises(BackendNotFound, match=r"no installed plugin .* 'x'.*for: acme, memory"):
        plugins.store_for("x")


def test_a_plugin_that_cannot_be_imported_says_what_to_install() -> None:
    plugins = StorePlugins([EntryPoint("acme", "missing_acme", GROUP)])
    with pytest.raises(BackendNotFound, match=r"'acme' cannot be used.*pip install missing_acme"):
        plugins.store_for("acme")


def test_what_is_not_a_store_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="registers <class 'int'>, which is not a TaskSt"):
        StorePlugins([]).register(Acme(int))


async def test_one_name_is_one_table_in_a_process() -> None:
    here, there = MemoryTaskStore("memory://one"), MemoryTaskStore("memory://one")
    await here.apply([Add([Node(id="r")])])
    assert await there.nodes(["r"]) == await here.nodes(["r"]) != [None]
    assert await MemoryTaskStore("memory://two").nodes(["r"]) == [None]


def test_a_store_can_be_written_with_what_the_seam_exports() -> None:
    """Every name of the seam, the rows and the model is in `mqcore.tasks.spi`."""
    shown = {name for module in (seam, rows, nodes, states) for name in module.__all__}
    assert shown | {"apply_changes", "roots_of", "changes", "outcomes"} <= set(spi.__all__)
