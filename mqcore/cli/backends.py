"""`mqcore backends`: which schemes can be used here, who brings them, and why one cannot."""

import asyncio
from collections.abc import Mapping

from mqcore.broker import Broker
from mqcore.capabilities import Capabilities, Capability, Level
from mqcore.cli.common import Json, quiet
from mqcore.cli.output import print_json, print_table
from mqcore.errors import MqcoreError
from mqcore.plugins import Installed, default_plugins
from mqcore.settings import Settings

__all__ = ["backends", "capabilities_data"]


def backends(*, json: Json = False) -> None:
    """Show every scheme that a plugin serves, who brings it, and what it can do or why it cannot be used.

    What a server can do is known when it has been asked: `mqcore doctor URL`.
    """
    installed = default_plugins().installed()
    found = [(one, _capabilities(one)) for one in installed]
    if json:
        print_json([_data(one, capabilities) for one, capabilities in found])
        return
    rows = [(one.scheme, one.distribution, one.version, _in_words(one, capabilities)) for one, capabilities in found]
    print_table(("scheme", "distribution", "version", "capabilities"), rows, empty="no plugin is installed")


def _capabilities(one: Installed) -> Capabilities | None:
    """Return what can be said without a server: a backend that lives in this process is simply asked."""
    if one.backend is None or not one.backend.local:
        return None

    async def ask() -> Capabilities:
        async with Broker.connect(f"{one.scheme}://mqcore-backends", settings=Settings(), durability=None) as broker:
            return broker.capabilities

    try:
        with quiet():
            return asyncio.run(ask())
    except MqcoreError:
        return None  # whatever it is, `doctor` tells it; the others are listed all the same


def _in_words(one: Installed, capabilities: Capabilities | None) -> str:
    if one.error is not None:
        return f"unusable: {one.error}"
    if capabilities is None:
        return f"as the server has them: mqcore doctor {one.scheme}://..."
    names = {level: [which.value for which in Capability if capabilities[which].level is level] for level in Level}
    return "; ".join(f"{level.value}: {', '.join(those)}" for level, those in names.items() if those)


def _data(one: Installed, capabilities: Capabilities | None) -> dict[str, object]:
    return {
        "scheme": one.scheme,
        "distribution": one.distribution,
        "version": one.version,
        "usable": one.error is None,
        "error": one.error,
        "local": None if one.backend is None else one.backend.local,
        "capabilities": None if capabilities is None else capabilities_data(capabilities),
    }


def capabilities_data(capabilities: Capabilities) -> Mapping[str, object]:
    """Return every capability with its level and limits, for programs."""
    return {
        which.value: {"level": capabilities[which].level.value, "limits": dict(capabilities[which].limits)}
        for which in Capability
    }
