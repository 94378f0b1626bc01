"""The three hooks of mqcore, by which a plugin registers what it has.

They are called when the plugin is loaded, never for a message. A plugin is a module that an entry
point in the group `mqcore` names. Its functions are marked with `mqcore.spi.hookimpl`:

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
    """Return the backend classes of the plugin. The `scheme` of each names the URLs it serves.

    The distribution should have an entry point named for each scheme, so that only this plugin is
    imported for it. The hook may be called more than once. It must return the same classes each
    time, and must not do I/O.
    """


@hookspec
def mqcore_register_codecs() -> list[Codec]:  # type: ignore[empty-body]  # as above
    """Return the codecs of the plugin.

    A codec is used only when `codecs` in the settings names it. An entry point with the codec's
    name is loaded first.
    """


@hookspec
def mqcore_register_cli() -> list[object]:  # type: ignore[empty-body]  # as above
    """Return named `typer.Typer` applications; they become sub-commands of `mqcore`."""
