"""`amqp://` and `amqps://`: RabbitMQ 3.10 to 4.x by pika, without plugins or the management API.

`backend` implements the seam. A publish: `sender` asks `topology` for the queue (`layout` says
which queues of the broker make one of ours), `plan` chooses the exchange and the key, with `ladder`
for delays, and `confirms` sends it on a connection of `link` and waits for the confirm. A delivery:
`subscription` consumes, `unsettled` holds what has no settlement yet, `settling` settles it.
`message_format` and `frames` read and write messages. `rpc` sends requests about queues,
`operations` (with `browse`) and `routes` serve operators, and `registry` stores what AMQP cannot
list.
"""

import logging

from mqcore.spi import Backend, hookimpl
from mqcore_rabbitmq.backend import RabbitBackend
from mqcore_rabbitmq.options import RabbitOptions

__all__ = ["RabbitBackend", "RabbitOptions", "mqcore_register_backends"]

_PIKA = logging.getLogger("pika")
if _PIKA.level == logging.NOTSET:
    # pika logs each ordinary reconnect as an error; core logs each problem once.
    _PIKA.setLevel(logging.CRITICAL)


@hookimpl
def mqcore_register_backends() -> list[type[Backend]]:
    """Register the schemes `amqp` and `amqps`."""
    return [RabbitBackend]
