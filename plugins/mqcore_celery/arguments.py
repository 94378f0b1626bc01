"""What kombu says of a queue, as mqcore's settings. Pure."""

from collections.abc import Mapping
from typing import Any

from mqcore import ConfigurationError, Queue, QueueOptions

__all__ = ["queue_of"]

_WITHOUT_EFFECT = frozenset({"x-max-priority", "x-queue-type", "x-queue-mode", "x-queue-version"})
"""All queues of mqcore have priorities; how a queue is stored is an option of the broker's URL."""


def queue_of(
    name: str, arguments: Mapping[str, Any], *, is_temporary: bool, ignores: bool
) -> Queue[bytes]:
    """Return the queue to declare. Raises `ConfigurationError` for an argument without a meaning.

    A queue that kombu would delete by itself is temporary: it ends with the connection that
    declares it, and has no dead letters.
    """
    options: QueueOptions = {}
    unknown = []
    for argument, value in arguments.items():
        match argument:
            case "x-message-ttl":
                options["ttl"] = max(float(value) / 1000, 0.001)
            case "x-max-length":
                options["max_length"] = int(value)
            case "x-expires":
                is_temporary = True
            case _ if argument not in _WITHOUT_EFFECT:
                unknown.append(argument)

    if unknown and not ignores:
        raise ConfigurationError(
            f"queue {name!r}: mqcore has no meaning for the arguments "
            f"{', '.join(sorted(unknown))}. Leave them out, or ignore such arguments with "
            'broker_transport_options={"ignore_arguments": True}. Dead letters go to '
            f"{name}.dlq without any argument"
        )
    if is_temporary:
        options["temporary"] = True
    return Queue(name, bytes, **options)
