"""`mqcore backends`: the URL schemes that can be used here, and why others cannot."""

import asyncio
from collections.abc import Mapping, Sequence

from mqcore.broker import Broker
from mqcore.cli.common import Json, quiet
from mqcore.cli.output import print_json, print_table
from mqcore.config.plugins import Installed, default_plugins
from mqcore.config.settings import Settings
from mqcore.errors import MqcoreError
from mqcore.rules.capabilities import Capabilities, Capability, Level

__all__ = ["backends", "capabilities_data"]


_OWN_DISTRIBUTION = "mqcore"
_CANNOT = " cannot be used: "
"""The text before the reason in the error of a plugin that cannot be imported."""


def backends(*, json: Json = False) -> None:
    """List the installed backends: URL scheme, distribution and capabilities.

    Backends that cannot be used follow, with the reason. To see what a server can do, run `mqcore
    doctor URL`.
    """
    installed = default_plugins().installed()
    entries = [(entry, _capabilities(entry)) for entry in installed]
    if json:
        print_json([_data(entry, capabilities) for entry, capabilities in entries])
        return

    usable = [(entry, capabilities) for entry, capabilities in entries if entry.error is None]
    # Backends that were added come first.
    usable.sort(key=lambda line: line[0].distribution == _OWN_DISTRIBUTION)
    rows = [
        (entry.scheme, entry.distribution, entry.version, _in_words(entry, capabilities))
        for entry, capabilities in usable
    ]
    print_table(
        ("scheme", "distribution", "version", "capabilities"), rows, empty="no plugin can be used"
    )

    if unusable := _unusable(installed):
        print()
        print_table(("cannot be used", "distribution", "version", "why"), unusable, empty="")


def _capabilities(entry: Installed) -> Capabilities | None:
    """Return the capabilities of a backend that needs no server; None for the others."""
    if entry.backend is None or not entry.backend.local:
        return None

    async def ask() -> Capabilities:
        async with Broker.connect(
            f"{entry.scheme}://mqcore-backends", settings=Settings(), durability=None
        ) as broker:
            return broker.capabilities

    try:
        with quiet():
            return asyncio.run(ask())
    except MqcoreError:
        return None  # `mqcore doctor` reports it; the other backends are still listed


def _unusable(installed: Sequence[Installed]) -> list[tuple[str, str, str, str]]:
    """Return a row for each reason; schemes that lack the same package share a row."""
    reasons: dict[tuple[bool, str, str, str], list[str]] = {}
    for entry in installed:
        if entry.error is not None:
            why = entry.error.partition(_CANNOT)[2] or entry.error
            reasons.setdefault(
                (entry.distribution == _OWN_DISTRIBUTION, entry.distribution, entry.version, why),
                [],
            ).append(entry.scheme)
    return [
        (", ".join(schemes), name, version, why)
        for (_, name, version, why), schemes in sorted(reasons.items())
    ]


def _in_words(entry: Installed, capabilities: Capabilities | None) -> str:
    if capabilities is None:
        return f"depend on the server: mqcore doctor {entry.scheme}://..."
    names = {
        level: [which.value for which in Capability if capabilities[which].level is level]
        for level in Level
    }
    return "; ".join(
        f"{level.value}: {', '.join(those)}" for level, those in names.items() if those
    )


def _data(entry: Installed, capabilities: Capabilities | None) -> dict[str, object]:
    return {
        "scheme": entry.scheme,
        "distribution": entry.distribution,
        "version": entry.version,
        "usable": entry.error is None,
        "error": entry.error,
        "local": None if entry.backend is None else entry.backend.local,
        "capabilities": None if capabilities is None else capabilities_data(capabilities),
    }


def capabilities_data(capabilities: Capabilities) -> Mapping[str, object]:
    """Return every capability with its level and limits, for programs."""
    return {
        which.value: {
            "level": capabilities[which].level.value,
            "limits": dict(capabilities[which].limits),
        }
        for which in Capability
    }
