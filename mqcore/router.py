"""`Router`: the description of a router, with the type of its payload and its bindings.

Like `Queue` it holds no connection. The broker stores the bindings, where every process sees them
(G15).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from mqcore.errors import ConfigurationError
from mqcore.messages.message import check_headers
from mqcore.queue import (
    RESERVED_PREFIXES,
    Queue,
    check_queue_name,
    payload_of,
    queue_name,
)
from mqcore.rules.checks import described
from mqcore.rules.routing import Binding, Kind, check_binding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import TypeAdapter

    from mqcore.messages.codec import Payload

__all__ = ["Router"]

T = TypeVar("T")
_KINDS = ("direct", "topic", "fanout", "headers")


class Router(Generic[T]):
    """Sends a message to every queue that has a matching binding.

    `kind` says how a binding matches: `direct` compares the routing key, `topic` matches its words
    (`*` stands for one, `#` for any number), `fanout` takes all, `headers` compares headers.

    Raises `ConfigurationError` for a bad name or kind.
    """

    @overload
    def __init__(self: Router[bytes], name: str, *, kind: Kind = "topic") -> None: ...
    @overload
    def __init__(
        self, name: str, payload: type[T] | TypeAdapter[T], *, kind: Kind = "topic"
    ) -> None: ...
    def __init__(self, name: str, payload: Any = bytes, *, kind: Kind = "topic") -> None:
        self.name = check_queue_name(name, "router")
        if name.startswith(RESERVED_PREFIXES):
            raise ConfigurationError(
                f"router {name!r}: names that begin with 'mq.' or 'amq.' are reserved for mqcore "
                "and the brokers. Choose another name"
            )

        if kind not in _KINDS:
            raise ConfigurationError(
                f"router {name!r}: kind {kind!r} is unknown; it is one of {', '.join(_KINDS)}"
            )

        self.kind: Kind = kind
        self.payload: Payload[T] = payload_of(f"router {name!r}", payload)
        self.bindings: list[Binding] = []
        self.queues: dict[str, Queue[T]] = {}

    def __repr__(self) -> str:
        """Name, payload type and kind, as in the source."""
        return f"Router({self.name!r}, {self.payload.name}, kind={self.kind!r})"

    def bind(
        self,
        queue: Queue[T],
        pattern: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        match: Literal["all", "any"] = "all",
    ) -> Router[T]:
        """Add a binding, and return the router so that calls can be chained.

        `pattern` is the key of a direct router or the pattern of a topic router. `headers` and
        `match` are for headers routers. The broker gets the binding when the router is declared:
        when it connects for the routers of an App, at the first publish for others. Raises
        `ConfigurationError` when the binding could never match.
        """
        if not isinstance(queue, Queue):
            shown = f"the text {queue!r:.60}" if isinstance(queue, str) else described(queue)
            raise ConfigurationError(
                f"router {self.name!r}: bind takes a Queue(...), which is declared with the "
                f"router, not {shown}"
            )

        binding = self.binding(queue, pattern, headers=headers, match=match)
        if binding not in self.bindings:
            self.bindings.append(binding)
        self.queues[queue.name] = queue
        return self

    def binding(
        self,
        queue: Queue[T] | str,
        pattern: str = "",
        *,
        headers: Mapping[str, str] | None = None,
        match: Literal["all", "any"] = "all",
    ) -> Binding:
        """Return the binding that `bind` would add, for `Broker.unbind`.

        Raises `ConfigurationError` when it could never match.
        """
        binding = Binding(
            router=self.name,
            kind=self.kind,
            queue=queue_name(queue, f"a binding of router {self.name!r}"),
            pattern=pattern,
            headers=tuple(sorted(check_headers(headers or {}).items())),
            match=match,
        )
        return check_binding(binding)
