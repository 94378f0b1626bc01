"""Which bindings match a message: the four matchers (G15). Pure.

`direct` compares the key, `topic` matches words (`*` one, `#` any number), `fanout` takes all,
`headers` compares headers. The matchers are our own and use no regular expressions of users: a
binding is data that came over the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from mqcore.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = ["Binding", "Kind", "check_binding", "route", "topic_matches"]

Kind = Literal["direct", "topic", "fanout", "headers"]
_KINDS = ("direct", "topic", "fanout", "headers")
_LONGEST_KEY = 255
_PAIR = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """One arrow from a router to a queue.

    `pattern` is the key of a direct or topic binding. `headers` (name and value pairs, sorted) and
    `match` (`all` or `any` of them) are a headers binding's.
    """

    router: str
    kind: Kind
    queue: str
    pattern: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    match: Literal["all", "any"] = "all"

    def __post_init__(self) -> None:
        """Refuse a binding that could never match, or that no broker carries."""
        if not (isinstance(self.router, str) and isinstance(self.queue, str)):
            raise ConfigurationError(
                f"binding: router={self.router!r:.60} and queue={self.queue!r:.60} must be names"
            )
        if self.kind not in _KINDS:
            raise ConfigurationError(
                f"router {self.router!r}: kind {self.kind!r:.60} is unknown; it is one of "
                f"{', '.join(_KINDS)}"
            )
        if not _are_pairs(self.headers):
            raise ConfigurationError(
                f"router {self.router!r}: headers of a binding are a tuple of pairs of texts. "
                "Router.bind and Router.binding take a mapping"
            )
        if self.kind in {"direct", "topic"}:
            check_key(self.pattern, f"router {self.router!r}")
        if self.match not in ("all", "any"):
            raise ConfigurationError(
                f"router {self.router!r}: match={self.match!r:.60} is unknown; it is 'all' or 'any'"
            )
        if self.kind == "headers" and not self.headers:
            raise ConfigurationError(
                f"router {self.router!r}: a headers binding to {self.queue!r} needs at least "
                "one header to compare"
            )

    def takes(self, key: str, headers: Mapping[str, str]) -> bool:
        """Whether a message with this routing key and these headers goes to the binding's queue."""
        if self.kind == "fanout":
            return True
        if self.kind == "direct":
            return self.pattern == key
        if self.kind == "topic":
            return topic_matches(self.pattern, key)
        matches = (headers.get(name) == value for name, value in self.headers)
        return all(matches) if self.match == "all" else any(matches)


def _are_pairs(headers: object) -> bool:
    return isinstance(headers, tuple) and all(
        isinstance(pair, tuple)
        and len(pair) == _PAIR
        and all(isinstance(text, str) for text in pair)
        for pair in headers
    )


def check_binding(binding: Binding) -> Binding:
    """Return a binding that a user wrote.

    Raises `ConfigurationError` when it has a key or headers that its kind does not compare.
    """
    if binding.headers and binding.kind != "headers":
        raise ConfigurationError(
            f"router {binding.router!r} is of kind {binding.kind!r}: headers are compared by "
            "kind='headers' only"
        )
    if binding.pattern and binding.kind not in {"direct", "topic"}:
        raise ConfigurationError(
            f"router {binding.router!r} is of kind {binding.kind!r}: a routing key is compared "
            "by kind='direct' or 'topic' only"
        )
    return binding


def check_key(key: str, where: str) -> str:
    """Return a routing key or pattern.

    Raises `ConfigurationError` for what is not text or has more than 255 bytes of UTF-8, the limit
    of brokers.
    """
    try:
        if len(key.encode()) <= _LONGEST_KEY:
            return key
        why = f"is longer than {_LONGEST_KEY} bytes"
    except (AttributeError, UnicodeEncodeError):
        why = "is not valid UTF-8 text"
    raise ConfigurationError(f"{where}: the routing key {key!r:.60} {why}")


def topic_matches(pattern: str, key: str) -> bool:
    """Whether a topic pattern matches a key.

    Both are words between dots. `*` matches one word, `#` any number of words, also none.
    """
    if "#" not in pattern and "*" not in pattern:
        return pattern == key
    return _words_match(pattern.split("."), key.split(".") if key else [])


def _words_match(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """Match with one row of a table, without backtracking.

    `#.#.#.x` costs pattern times words, not a power of them.

    `reached[i]` says whether the pattern so far takes the first `i` words.
    """
    reached = [True] + [False] * len(words)
    for piece in pattern:
        if piece == "#":
            first = next((i for i, ok in enumerate(reached) if ok), len(reached))
            reached = [i >= first for i in range(len(reached))]
        else:
            reached = [False] + [
                ok and piece in ("*", word) for ok, word in zip(reached, words, strict=False)
            ]
    return reached[-1]


def route(bindings: Iterable[Binding], key: str, headers: Mapping[str, str]) -> list[str]:
    """Return the queues that get the message, in the order of the bindings, each once."""
    return list(dict.fromkeys(binding.queue for binding in bindings if binding.takes(key, headers)))
