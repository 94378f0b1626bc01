"""Capabilities are checked before anything is sent, and cannot be edited afterwards."""

import pytest

from mqcore.errors import DurabilityUnavailable, UnsupportedFeature
from mqcore.rules.capabilities import Capabilities, Capability, Durability, Level, Support

GIVEN = {
    Capability.DELAY: Support(Level.NATIVE, {"max": 60.0}),
    Capability.ORDER: Support(Level.APPROXIMATE),
    Capability.DEDUP: Support(Level.NONE),
}


def capabilities(durability: Durability = Durability.PROCESS) -> Capabilities:
    return Capabilities(
        backend="fake", server="Fake 1.0", durability=durability, supports=dict(GIVEN)
    )


def test_a_capability_that_is_not_named_is_none() -> None:
    found = capabilities()
    assert found[Capability.LEASE] == Support(Level.NONE)
    assert [
        found.has(name)
        for name in (Capability.DELAY, Capability.ORDER, Capability.DEDUP, Capability.LEASE)
    ] == [
        True,
        True,
        False,
        False,
    ]


def test_requiring_gives_the_limits_or_says_what_cannot_be_had() -> None:
    assert capabilities().require(Capability.DELAY, "delay=5").limits["max"] == 60
    for name in (Capability.DEDUP, Capability.LEASE):
        with pytest.raises(
            UnsupportedFeature,
            match=rf"^wanted it: the backend 'fake' \(Fake 1\.0\) has no {name.name}",
        ):
            capabilities().require(name, "wanted it")


def test_capabilities_are_facts_that_nobody_edits() -> None:
    given = dict(GIVEN)
    found = Capabilities(backend="fake", server="s", durability=Durability.MEMORY, supports=given)
    given[Capability.LEASE] = Support(Level.NATIVE)
    assert not found.has(Capability.LEASE)
    with pytest.raises(TypeError):
        found.supports[Capability.LEASE] = Support(Level.NATIVE)  # type: ignore[index]  # the attempt is the test
    with pytest.raises(AttributeError):
        found.durability = Durability.REPLICATED  # type: ignore[misc]  # as above


@pytest.mark.parametrize("have", Durability)
@pytest.mark.parametrize("want", Durability)
def test_more_durability_than_the_server_gives_is_refused(
    have: Durability, want: Durability
) -> None:
    if want <= have:
        capabilities(have).require_durability(want)
        return
    with pytest.raises(
        DurabilityUnavailable,
        match=f"'{want.word}' was asked for, but Fake 1.0 gives '{have.word}'",
    ):
        capabilities(have).require_durability(want)


def test_durability_is_ordered_and_written_as_one_of_four_words() -> None:
    assert max(Durability) is Durability.REPLICATED
    assert [member.word for member in Durability] == ["memory", "process", "machine", "replicated"]
    assert [Durability.parse(member.word.upper()) for member in Durability] == list(Durability)
    assert Durability.parse(Durability.MACHINE) is Durability.MACHINE


@pytest.mark.parametrize("word", ["", "machin", "disk", "memory ", "none"])
def test_another_word_is_refused_with_the_four(word: str) -> None:
    with pytest.raises(
        UnsupportedFeature, match="it is one of memory, process, machine, replicated"
    ):
        Durability.parse(word)
