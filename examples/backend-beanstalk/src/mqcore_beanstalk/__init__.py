"""`beanstalk://host:port`: a backend over a socket, for beanstalkd 1.12 or newer.

`protocol` is one connection: commands go out in a pipeline, answers come back in order. `jobs` is
what mqcore stores in a job. `queues` keeps the list of declared queues in the server. `claims`
leases jobs and settles them. `backend` and `subscription` are the seam of mqcore over these.
"""

from mqcore.spi import Backend, hookimpl
from mqcore_beanstalk.backend import BeanstalkBackend
from mqcore_beanstalk.options import BeanstalkOptions

__all__ = ["BeanstalkBackend", "BeanstalkOptions", "mqcore_register_backends"]


@hookimpl
def mqcore_register_backends() -> list[type[Backend]]:
    """Tell mqcore of the scheme `beanstalk`."""
    return [BeanstalkBackend]
