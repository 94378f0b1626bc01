"""`amqp://` and `amqps://`: RabbitMQ 3.10 to 4.x by pika, without any plugin of the server and without its management API.

One message: `backend` is the seam. `sender` chooses the queue (`layout`: which queues of the broker make one of ours), puts what
waits into the `ladder` and has it confirmed by `confirms`, on a connection that `link` keeps. `subscription` consumes, `window`
holds what is unsettled, `wire` is the format. `topology`, `manage` (with `looking`) and `routes` declare, look and bind; `registry`
knows what AMQP cannot tell, `delayed` what this instance has put off.
"""

import logging

from mqcore.spi import Backend, hookimpl
from mqcore_rabbitmq.backend import RabbitBackend
from mqcore_rabbitmq.options import RabbitOptions

__all__ = ["RabbitBackend", "RabbitOptions", "mqcore_register_backends"]

_PIKA = logging.getLogger("pika")
if _PIKA.level == logging.NOTSET:
    _PIKA.setLevel(
        logging.CRITICAL
    )  # it tells an ordinary reconnect as errors; core tells each trouble once, in its own words


@hookimpl
def mqcore_register_backends() -> list[type[Backend]]:
    """Register the schemes `amqp` and `amqps`."""
    return [RabbitBackend]
