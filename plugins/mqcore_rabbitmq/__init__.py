"""`amqp://` and `amqps://`: RabbitMQ 3.10 to 4.x by pika, without any plugin of the server and without its management API.

One message: `backend` is the seam. `sender` asks the `topology` for the queue (`layout`: which
queues of the broker make one of ours) and the `plan` for the way, which leads through the `ladder`
for what waits, and has it confirmed by the `outbox` (`confirms`), on a connection that `link`
keeps. `subscription` consumes, `window` holds what is unsettled, `settling` lets go of it; `wire`
is the format. `admin`, `manage` (with `looking`) and `routes` ask, look and bind; `registry` knows
what AMQP cannot tell, `delayed` what this instance has put off.
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
