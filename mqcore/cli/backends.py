"""`mqcore backends`: which schemes can be used here, who brings them, and why one cannot."""

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
"""What stands before the reason in the error of a plugin that cannot be imported."""


def backends(*, json: Json = False) -> None:
    """Show every scheme that a plugin serves, who brings it, and what it can do; then what cannot be used, and why.

    What a server can do is known when it has been asked: `mqcore doctor URL`.
    """
    installed = default_plugins().installed()
    found = [(one, _capabilities(one)) for one in installed]
    if json:
        print_json([_data(one, capabilities) for one, capabilities in found])
        return

    usable = [(one, capabilities) for one, capabilities in found if one.error is None]
    usable.sort(
        key=lambda line: line[0].distribution == _OWN_DISTRIBUTION
    )  # a backend that somebody added stands first
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
    """Return what can be said without a server: a backend that lives in this process is simply asked."""
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
        return None  # whatever it is, `doctor` tells it; the others are listed all the same


def _unusable(installed: Sequence[Installed]) -> list[tuple[str, str, str, str]]:
    """Return a row for each reason: the schemes of one plugin that lack the same package share it."""
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
        return f"as the server has them: mqcore doctor {one.scheme}://..."
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
