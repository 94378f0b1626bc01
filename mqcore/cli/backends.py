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
    found = [(one, _capabilities(one)) for one in installed]
    if json:
        print_json([_data(one, capabilities) for one, capabilities in found])
        return

    usable = [(one, capabilities) for one, capabilities in found if one.error is None]
    # Backends that were added come first.
    usable.sort(key=lambda line: line[0].distribution == _OWN_DISTRIBUTION)
    rows = [
        (one.scheme, one.distribution, one.version, _in_words(one, capabilities))
        for one, capabilities in usable
    ]
    print_table(
        ("scheme", "distribution", "version", "capabilities"), rows, empty="no plugin can be used"
    )

    if unusable := _unusable(installed):
        print()
        print_table(("cannot be used", "distribution", "version", "why"), unusable, empty="")


def _capabilities(one: Installed) -> Capabilities | None:
    """Return the capabilities of a backend that needs no server; None for the others."""
    if one.backend is None or not one.backend.local:
        return None

    async def ask() -> Capabilities:
        async with Broker.connect(
            f"{one.scheme}://mqcore-backends", settings=Settings(), durability=None
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
    for one in installed:
        if one.error is not None:
            why = one.error.partition(_CANNOT)[2] or one.error
            reasons.setdefault(
                (one.distribution == _OWN_DISTRIBUTION, one.distribution, one.version, why), []
            ).append(one.scheme)
    return [
        (", ".join(schemes), name, version, why)
        for (_, name, version, why), schemes in sorted(reasons.items())
    ]


def _in_words(one: Installed, capabilities: Capabilities | None) -> str:
    if capabilities is None:
        return f"depend on the server: mqcore doctor {one.scheme}://..."
    names = {
        level: [which.value for which in Capability if capabilities[which].level is level]
        for level in Level
    }
    return "; ".join(
        f"{level.value}: {', '.join(those)}" for level, those in names.items() if those
    )


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
        which.value: {
            "level": capabilities[which].level.value,
            "limits": dict(capabilities[which].limits),
        }
        for which in Capability
    }
