"""The schemes that kombu resolves to this transport.

kombu has no entry points for transports. It has some for serializers, which it loads when its
serialization is imported, as every Celery application does. So this module is such an entry point:
it registers a serializer and, by being imported, the transport. It imports nothing of kombu but
`kombu.transport`: an import of the serialization from here would end in a circle.
"""

import json
from typing import Any

from kombu.transport import TRANSPORT_ALIASES

__all__ = ["SCHEMES", "register", "serializer"]

SCHEMES = (
    "memory",
    "redis",
    "rediss",
    "unix",
    "redis+sentinel",
    "redis+cluster",
    "amqp",
    "amqps",
    "sqlite",
    "postgresql",
    "postgres",
)
"""The schemes of mqcore's own backends. Backends of others are used with `broker_transport`."""
_TRANSPORT = "mqcore_celery.transport:Transport"


def register() -> None:
    """Make `mqcore+redis://` and the others known to kombu.

    kombu splits the first URL at its first `+`. A further URL of a failover list it takes whole,
    so each scheme has an alias of its own.
    """
    TRANSPORT_ALIASES["mqcore"] = _TRANSPORT
    for scheme in SCHEMES:
        TRANSPORT_ALIASES[f"mqcore+{scheme}"] = _TRANSPORT


def _encode(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"), ensure_ascii=False)


def _decode(text: str | bytes) -> Any:
    return json.loads(text)


serializer = (_encode, _decode, "application/vnd.mqcore.json", "utf-8")
"""`mqcore-json`: JSON without NaN and Infinity, which other languages cannot read."""
