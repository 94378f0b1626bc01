"""Finds the task store that serves a URL among the installed plugins.

A plugin has entry points in the group `mqcore.stores`. The name of an entry point is the URL scheme
that it serves, and its module registers the class:

    @hookimpl
    def mqcore_register_stores() -> list[type[TaskStore]]:
        return [SqlTaskStore]

It is a module of its own, beside that of a backend: a process without tasks never imports it.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

import pluggy

from mqcore.errors import BackendNotFound, ConfigurationError
from mqcore.tasks.store import memory
from mqcore.tasks.store.seam import TaskStore

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["GROUP", "StorePlugins", "default_store_plugins", "mqcore_register_stores"]

GROUP = "mqcore.stores"

hookspec = pluggy.HookspecMarker("mqcore")


@hookspec
def mqcore_register_stores() -> list[type[TaskStore]]:  # type: ignore[empty-body]  # a specification has no body
    """Return the task stores of the plugin. The `scheme` of each names the URLs it serves.

    The hook may be called more than once. It must return the same classes each time, and must not
    do I/O.
    """


class StorePlugins:
    """The task stores that this process can use: installed ones, and those registered in code."""

    def __init__(self, points: Iterable[EntryPoint] | None = None) -> None:
        """Take the entry points to choose from; None means all installed ones."""
        self._points = list(entry_points(group=GROUP) if points is None else points)
        self._manager = pluggy.PluginManager("mqcore")
        self._manager.add_hookspecs(_Hooks)
        self.register(memory)

    def register(self, plugin: object) -> None:
        """Add a plugin without an entry point. Registering it again has no effect.

        Raises `ConfigurationError` for a plugin that registers something else than stores.
        """
        if not self._manager.is_registered(plugin):
            self._manager.register(plugin)
        self._stores()

    def store_for(self, scheme: str) -> type[TaskStore]:
        """Return the class that serves a URL scheme.

        Imports only the plugin of that name. Raises `BackendNotFound` when there is none, or when
        it cannot be imported.
        """
        for point in self._points:
            if point.name == scheme:
                self._load(point)

        stores = self._stores()
        if scheme not in stores:
            names = ", ".join(sorted({*stores, *(point.name for point in self._points)}))
            raise BackendNotFound(
                f"no installed plugin has a task store for {scheme!r:.60}; there are stores for: "
                f"{names}. Choose one of them with store=, beside the broker's own URL"
            )
        return stores[scheme]

    def _load(self, point: EntryPoint) -> None:
        try:
            self.register(point.load())
        except (Exception, SystemExit) as error:
            package = point.dist.name if point.dist else point.value
            raise BackendNotFound(
                f"the task store {point.name!r} cannot be used: {type(error).__name__}: {error}. "
                f"Install what it needs: pip install {package}"
            ) from error

    def _stores(self) -> dict[str, type[TaskStore]]:
        found: dict[str, type[TaskStore]] = {}

        for store in (
            store for given in self._manager.hook.mqcore_register_stores() for store in given
        ):
            if not (isinstance(store, type) and issubclass(store, TaskStore)):
                raise ConfigurationError(
                    f"a plugin registers {store!r:.100}, which is not a TaskStore class"
                )
            schemes = (store.scheme,) if isinstance(store.scheme, str) else store.scheme
            found |= dict.fromkeys(schemes, store)
        return found


@lru_cache(maxsize=1)
def default_store_plugins() -> StorePlugins:
    """Return the `StorePlugins` of this process; they are made when first needed."""
    return StorePlugins()


class _Hooks:
    """Holds the one hook: pluggy reads the hooks of an object."""

    mqcore_register_stores = staticmethod(mqcore_register_stores)
