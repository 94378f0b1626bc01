"""A case of the contract: one thing that a backend must do, and what a run found of it.

    @case("G9", "G2", ids="C60")
    async def messages_of_one_batch_keep_their_order(kit: Kit) -> None:
        '''First deliveries come in publish order, inside a batch and from batch to batch.'''

The profile is the name of the module, or of the folder that the module is in. The docstring's first
line is printed in reports and when the case fails. `needs` are capabilities without which the case
means nothing; that they are refused then is another case. `hooks` are what the harness must be able
to do. A case that is `alone` measures the whole process or the whole server: no other case may run
at the same time. A case that is `prompt` checks that something happens within parts of a second.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pkgutil import walk_packages
from typing import TYPE_CHECKING, Any

from mqcore.contract import cases as package

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from mqcore.contract.kit import Kit
    from mqcore.rules.capabilities import Capability

__all__ = ["Case", "all_cases", "case"]

_found: list[Case] = []
_TIMED = ("delay", "lease", "retry", "ttl")
"""The profiles in which leases, delays and lives of a second or so end."""


@dataclass(frozen=True)
class Case:
    """One case.

    `name` is `profile.function`, with `[variant]` where one function makes several cases.
    """

    name: str
    profile: str
    guarantees: tuple[str, ...]
    ids: tuple[str, ...]
    text: str
    run: Callable[[Kit], Awaitable[None]]
    needs: tuple[Capability, ...] = ()
    protocols: tuple[type, ...] = ()
    hooks: tuple[str, ...] = ()
    alone: bool = False
    prompt: bool = False

    @property
    def timed(self) -> bool:
        """Whether the case checks seconds: on a machine that stands still it shows nothing.

        What may not happen at any speed, such as a loss at a crash, is in other profiles.
        """
        return self.prompt or self.profile in _TIMED

    @property
    def exclusive(self) -> bool:
        """Whether no other case may run at the same time.

        Such a case restarts or silences the broker, or measures the whole process or server.
        """
        return self.alone or bool(self.hooks)


def case(
    *guarantees: str,
    ids: str = "",
    needs: Sequence[Capability] = (),
    protocols: Sequence[type] = (),
    hooks: Sequence[str] = (),
    alone: bool = False,
    prompt: bool = False,
    each: Mapping[str, Any] | None = None,
) -> Callable[[Callable[..., Awaitable[None]]], Callable[..., Awaitable[None]]]:
    """Register a function as a case.

    `guarantees` are numbers of `docs/semantics.md`; `ids` are those of the checklist, separated by
    spaces. `protocols` are `Supports…` protocols that the backend must have. With `each`, the
    function is called with a second argument, and makes a case of each of its values.
    """

    def register(function: Callable[..., Awaitable[None]]) -> Callable[..., Awaitable[None]]:
        _, _, module = function.__module__.partition(f"{package.__name__}.")
        profile = module.partition(".")[0].replace("_", "-")
        plain = Case(
            name=f"{profile}.{function.__name__}",
            profile=profile,
            guarantees=guarantees,
            ids=tuple(ids.split()),
            text=(function.__doc__ or "").strip().splitlines()[0],
            run=function,
            needs=tuple(needs),
            protocols=tuple(protocols),
            hooks=tuple(hooks),
            alone=alone,
            prompt=prompt,
        )
        if each is None:
            _found.append(plain)

        for variant, value in (each or {}).items():
            _found.append(
                replace(plain, name=f"{plain.name}[{variant}]", run=partial(_with, function, value))
            )

        return function

    return register


async def _with(function: Callable[..., Awaitable[None]], value: object, kit: Kit) -> None:
    await function(kit, value)


def all_cases() -> list[Case]:
    """Import every module of cases and return the cases, profile *core* first.

    Within *core* and for the others the order is that of the files: an author works on *core*
    first.
    """
    for module in sorted(
        module.name for module in walk_packages(package.__path__, f"{package.__name__}.")
    ):
        import_module(module)
    return sorted(_found, key=lambda case: case.profile != "core")
