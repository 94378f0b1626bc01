"""Mutants of capabilities that are hidden, claimed, or without their limits (G16)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from mutants.mutant import mutant

from mqcore.spi import (
    Capabilities,
    Capability,
    Durability,
    ErrorKind,
    Failed,
    Level,
    Outcome,
    Outgoing,
    Support,
)
from mqcore_memory.backend import MemoryBackend


class _Says(MemoryBackend):
    """A backend that declares one capability differently."""

    capability: Capability
    support = Support(Level.NONE)

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        capabilities = await super().open(lost)
        return replace(
            capabilities, supports={**capabilities.supports, self.capability: self.support}
        )


@mutant("G16", "capability.what_works_is_declared[PRIORITY]")
class HidesPriority(_Says):
    """PRIORITY works and is not declared."""

    capability = Capability.PRIORITY


@mutant("G16", "capability.what_works_is_declared[DELAY]")
class HidesDelay(_Says):
    """DELAY works and is not declared."""

    capability = Capability.DELAY


@mutant("G16", "capability.what_works_is_declared[DEDUP]")
class HidesDedup(_Says):
    """DEDUP works and is not declared."""

    capability = Capability.DEDUP


@mutant("G16", "capability.what_works_is_declared[LEASE]")
class HidesLease(_Says):
    """LEASE works and is not declared."""

    capability = Capability.LEASE


@mutant("G16", "capability.what_works_is_declared[MAX_LENGTH]")
class HidesMaxLength(_Says):
    """MAX_LENGTH works and is not declared."""

    capability = Capability.MAX_LENGTH


@mutant("G16", "capability.protocols_and_capabilities_agree")
class HidesBrowse(_Says):
    """BROWSE works and is not declared."""

    capability = Capability.BROWSE


@mutant("G16", "capability.protocols_and_capabilities_agree")
class HidesRouting(_Says):
    """Bindings are stored and ROUTING is not declared."""

    capability = Capability.ROUTING


@mutant("G16", "routing.a_message_goes_to_the_queues_that_match")
class ClaimsToRoute(_Says):
    """Native ROUTING is claimed, and a Route is refused."""

    capability = Capability.ROUTING
    support = Support(Level.NATIVE)


@mutant("G16", "capability.a_capability_has_a_level_and_its_limits[DELAY]")
class DelayWithoutLimits(_Says):
    """DELAY states neither its granularity nor its maximum."""

    capability = Capability.DELAY
    support = Support(Level.NATIVE)


@mutant("G16", "capability.durability_is_one_of_four_words")
class ClaimsDurable(_Says):
    """DURABLE is claimed by a broker whose durability is `memory`."""

    capability = Capability.DURABLE
    support = Support(Level.NATIVE)


@mutant("G16", "capability.a_capability_has_a_level_and_its_limits[PRIORITY]")
class SaysLevelsInWords(_Says):
    """The limit of PRIORITY is prose."""

    capability = Capability.PRIORITY
    support = Support(Level.NATIVE, {"levels": "several"})


@mutant("G16", "capability.a_capability_has_a_level_and_its_limits[MAX_LENGTH]")
class ClaimsAnUnknownMode(_Says):
    """MAX_LENGTH names an unknown mode."""

    capability = Capability.MAX_LENGTH
    support = Support(Level.NATIVE, {"modes": "reject,drop"})


@mutant("G16", "capability.every_open_says_the_same")
class ForgetsItsSupport(MemoryBackend):
    """The second `open` declares less than the first."""

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        capabilities = await super().open(lost)
        if self.__dict__.setdefault("opened", False):
            capabilities = replace(capabilities, supports={})
        self.__dict__["opened"] = True
        return capabilities


@mutant("G16", "capability.durability_is_one_of_four_words")
class SaysReplicatedAndNotDurable(MemoryBackend):
    """The durability is `replicated`, and DURABLE is not declared."""

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        return replace(await super().open(lost), durability=Durability.REPLICATED)


@mutant("G16", "capability.what_is_unwrapped_are_clients_and_nothing_else")
class UnwrapsItsUrl(MemoryBackend):
    """The URL, with its password, can be unwrapped."""

    def unwrap(self) -> Sequence[object]:
        return [self.url, self._options]


@mutant("G16", "capability.what_is_unwrapped_are_clients_and_nothing_else")
class UnwrapsWhenClosed(MemoryBackend):
    """A closed instance still gives its client."""

    def unwrap(self) -> Sequence[object]:
        return []


@mutant("G12", "bounds.a_stated_max_payload")
class StatesALargerMaxPayload(MemoryBackend):
    """It states a `max_payload` that it cannot carry."""

    async def open(self, lost: Callable[[Exception], None]) -> Capabilities:
        return replace(await super().open(lost), max_payload=5_000)

    async def publish(self, batch: Sequence[Outgoing], *, timeout: float) -> Sequence[Outcome]:
        too_large = Failed(ErrorKind.TOO_LARGE, "above 4,000 bytes")
        kept = [out for out in batch if len(out.message.body) <= 4_000]
        stored = iter(await super().publish(kept, timeout=timeout))
        return [next(stored) if len(out.message.body) <= 4_000 else too_large for out in batch]
