"""What a backend can do, as an object that the program reads (G16).

A driver builds one `Capabilities` in `open`, after it has examined the live server. Core checks it
before anything is sent, the contract kit compares it with what the server really does, and `mqcore
doctor` prints it. There is no other description of a backend.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

from mqcore.errors import ConfigurationError, DurabilityUnavailable, UnsupportedFeature

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["WARNING", "Capabilities", "Capability", "Durability", "Level", "Support"]


class Capability(Enum):
    """The promises that a backend keeps, comes near, or does not make."""

    DELAY = "delay"
    PRIORITY = "priority"
    EXPIRY = "expiry"
    DEDUP = "dedup"
    ATOMIC_MOVE = "atomic_move"
    LEASE = "lease"
    DURABLE = "durable"
    ORDER = "order"
    ROUTING = "routing"
    MAX_LENGTH = "max_length"
    BROWSE = "browse"


class Level(Enum):
    """How a promise is kept.

    By the broker itself, by the driver, approximately (the limits say how closely), or not at all.
    """

    NATIVE = "native"
    EMULATED = "emulated"
    APPROXIMATE = "approximate"
    NONE = "none"


class Durability(IntEnum):
    """What a confirmed message survives, least first.

    Nothing, the kill of the broker, a power cut, the loss of the machine.
    """

    MEMORY = 0
    PROCESS = 1
    MACHINE = 2
    REPLICATED = 3

    @classmethod
    def parse(cls, word: str | Durability) -> Durability:
        """Read one of the four words; `UnsupportedFeature` names them when it is none."""
        if isinstance(word, Durability):
            return word
        try:
            return cls[word.upper()]
        except (KeyError, AttributeError):
            words = ", ".join(member.word for member in cls)
            raise UnsupportedFeature(
                f"durability {word!r} is unknown; it is one of {words}"
            ) from None

    @property
    def word(self) -> str:
        """The name as users write it, for instance `machine`."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Support:
    """The level of one capability, and its limits: names and numbers.

    The meaning of each capability is in `docs/semantics.md`.

    Those of DURABLE say why the durability is what it is. The limit `warning` of any of them is a
    sentence for the operator: what is wrong with the server's configuration, and what to do;
    `mqcore doctor` shows it as a problem.
    """

    level: Level
    limits: Mapping[str, float | str | bool] = field(default_factory=dict)


WARNING = "warning"
NONE = Support(Level.NONE)


@dataclass(frozen=True)
class Capabilities:
    """What the live server behind one connection can do.

    `backend` is the plugin's name, `server` the product and version for people to read,
    `durability` the highest level that a message can have there, `supports` the level and limits of
    each capability; one left out counts as `none`. `max_payload` is how many bytes the body of a
    message may have, None where the broker's own limit is above all that core would send: core
    refuses more before any I/O (G12). What mqcore adds to a body (headers, and the record of a
    death, up to 32 KiB together) must fit beside it.
    """

    backend: str
    server: str
    durability: Durability
    supports: Mapping[Capability, Support] = field(default_factory=dict)
    max_payload: int | None = None

    def __post_init__(self) -> None:
        """Freeze the mapping: capabilities do not change after the connect."""
        object.__setattr__(self, "supports", MappingProxyType(dict(self.supports)))

    def __getitem__(self, capability: Capability) -> Support:
        """The support of one capability, level `none` when the backend does not name it."""
        with suppress(TypeError):  # not hashable, so it is not a Capability
            if (support := self.supports.get(capability)) is not None:
                return support
        if not isinstance(capability, Capability):
            words = ", ".join(member.name for member in Capability)
            raise ConfigurationError(
                f"capabilities[{capability!r:.60}]: a capability is named as in "
                f"capabilities[Capability.DELAY]; there are {words}"
            )
        return NONE

    def has(self, capability: Capability) -> bool:
        """Whether the capability is there at any level."""
        return self[capability].level is not Level.NONE

    def require(self, capability: Capability, wanted: str) -> Support:
        """Return the support; `UnsupportedFeature` when this backend cannot do `wanted` (G16)."""
        support = self[capability]
        if support.level is Level.NONE:
            raise UnsupportedFeature(
                f"{wanted}: the backend {self.backend!r} ({self.server}) has no {capability.name}. "
                "Leave it out, or choose a backend that has it: `mqcore backends` lists them"
            )
        return support

    def require_durability(self, wanted: Durability | str, source: str = "") -> None:
        """Raise `DurabilityUnavailable` when the live server gives less than `wanted`.

        `source` is where it was asked for, for the error's text.
        """
        wanted = Durability.parse(wanted)
        if wanted > self.durability:
            raise DurabilityUnavailable(
                f"durability {wanted.word!r} was asked for, but {self.server} gives "
                f"{self.durability.word!r} as it is configured. "
                f"{source and f'{source} asks for it: ask for less there, or change the server. '}"
                "`mqcore doctor` shows why"
            )
