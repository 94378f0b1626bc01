"""The blocking facade and the asyncio classes have the same methods (G17)."""

import ast
import inspect
import re
from pathlib import Path
from typing import Any, get_overloads

import pytest

import mqcore
import mqcore.sync

TWINS = {name: (getattr(mqcore, name), getattr(mqcore.sync, name)) for name in mqcore.sync.__all__}
DUNDERS = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
}
CORES_OWN = {
    ("Broker", "events"): "its listeners run on the event loop; `health().counts` has the numbers",
    ("Received", "finish"): "how core settles a batch; it does not wait for the broker's answer",
}
ATTRIBUTES = {
    (
        "Received",
        "finished",
    ): "a plain attribute of the asyncio class; tests/integration/test_sync.py compares it"
}
WRAPPED = re.compile(r"(?:Coroutine\[Any, Any, |Awaitable\[)(.*)\]")


def public(cls: type) -> dict[str, Any]:
    """Return the public methods and properties, by their name in the blocking twin."""
    own = {name: value for base in reversed(cls.__mro__[:-1]) for name, value in vars(base).items()}
    special = {*DUNDERS, *DUNDERS.values(), *(["__init__"] if cls.__name__ == "Broker" else [])}
    touchable = {name: value for name, value in own.items() if name in special or name[0] != "_"}
    return {
        DUNDERS.get(name, name): getattr(value, "__func__", value)
        for name, value in touchable.items()
    }


def pairs() -> list[Any]:
    """Return each method and property with its twin, None where there is none."""
    return [
        pytest.param(public(asynchronous).get(name), public(blocking).get(name), id=f"{cls}.{name}")
        for cls, (asynchronous, blocking) in TWINS.items()
        for name in sorted({*public(asynchronous), *public(blocking)})
        if (cls, name) not in CORES_OWN and (cls, name) not in ATTRIBUTES
    ]


def plain(annotation: object) -> str:
    """Return an annotation as in the source, without `Coroutine` and `Awaitable`."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return WRAPPED.sub(r"\1", text).replace("AsyncIterator[", "Iterator[")


def shape(function: Any) -> tuple[object, ...]:
    """Return names, kinds, defaults and annotations of parameters and result."""
    signature = inspect.signature(function.fget if isinstance(function, property) else function)
    parameters = [
        (p.name, p.kind, p.default, plain(p.annotation)) for p in signature.parameters.values()
    ]
    return (*parameters, plain(signature.return_annotation))


def imported(module: str) -> dict[str, str]:
    """Return where each imported name comes from; renamed imports are left out."""
    tree = ast.parse((Path(mqcore.__file__).parent / f"{module}.py").read_text(encoding="utf-8"))
    froms = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {
        name.name: f"{node.module}" for node in froms for name in node.names if name.asname is None
    }


@pytest.mark.parametrize(("theirs", "ours"), pairs())
def test_each_method_has_a_twin_of_the_same_signature(theirs: Any, ours: Any) -> None:
    assert theirs is not None, "only mqcore.sync has it"
    assert ours is not None, "mqcore.sync lacks it"
    assert isinstance(ours, property) == isinstance(theirs, property)
    assert shape(ours) == shape(theirs)
    if not isinstance(ours, property):
        assert [shape(one) for one in get_overloads(ours)] == [
            shape(one) for one in get_overloads(theirs)
        ]
        assert not inspect.iscoroutinefunction(ours)


@pytest.mark.parametrize(
    "module", ["broker", "publishing/producer", "consuming/consumer", "admin/dead_letters"]
)
def test_the_words_in_the_signatures_mean_the_same(module: str) -> None:
    """Annotations are compared as text, so a name must mean the same in both modules."""
    theirs, ours = imported(module), imported("sync/facade")
    twins = {name for name in theirs if name in TWINS}
    assert {name: theirs[name] for name in theirs.keys() & ours.keys() - twins} == {
        name: ours[name] for name in theirs.keys() & ours.keys() - twins
    }
    assert not twins & ours.keys()


@pytest.mark.parametrize(("cls", "name"), CORES_OWN)
def test_what_is_left_out_is_there_to_be_left_out(cls: str, name: str) -> None:
    asynchronous, blocking = TWINS[cls]
    assert hasattr(asynchronous, name)
    assert not hasattr(blocking, name)
