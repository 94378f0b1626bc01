"""The three hooks of mqcore: how a plugin says what it brings.

Nothing is called through pluggy for a message.

A plugin is a module, named by an entry point in the group `mqcore`, whose functions are marked with
`mqcore.spi.hookimpl`:

    @hookimpl
    def mqcore_register_backends() -> list[type[Backend]]:
        return [RedisBackend]
"""

import pluggy

from mqcore.messages.codec import Codec
from mqcore.spi import Backend

__all__ = ["mqcore_register_backends", "mqcore_register_cli", "mqcore_register_codecs"]

hookspec = pluggy.HookspecMarker("mqcore")


@hookspec
def mqcore_register_backends() -> list[type[Backend]]:  # type: ignore[empty-body]  # a specification has no body
    """Return the backend classes of the plugin; each says by `scheme` which URLs it serves.

    For each scheme the distribution should have an entry point of that name, so that only this
    plugin is imported for it. May be called more than once; must return the same classes, and must
    not do I/O.
    """


@hookspec
def mqcore_register_codecs() -> list[Codec]:  # type: ignore[empty-body]  # as above
    """Return codecs.

    One is used only when the settings' `codecs` name it; a plugin of that name is asked first.
    """


@hookspec
def mqcore_register_cli() -> list[object]:  # type: ignore[empty-body]  # as above
    """Return `typer.Typer` applications, each with a name: they become sub-commands of `mqcore`."""
