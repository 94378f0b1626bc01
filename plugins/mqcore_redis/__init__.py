"""`redis://`: queues in Redis 7.0 and later, or Valkey, kept by scripts that do each step in one piece.

One message: `backend` is the seam. It has `records` make bytes of the message and `batches` put a
batch into few calls; `session` runs the scripts of `lua/` over a `link`, one pipelined connection.
The script `publish` stores the record, its place and its name, and leaves a token. A `waker` that
waits for tokens of all idle queues wakes a `subscription`, one of the `consumers` of the session,
which claims: the script `claim` takes the first entries, leases them and answers with `rows`.
`settle` lets them go, gives them back or moves them, each in one step. `probe` says at connect what
the server can promise.
"""

from mqcore.spi import Backend, hookimpl
from mqcore_redis.backend import RedisBackend
from mqcore_redis.options import RedisOptions

__all__ = ["RedisBackend", "RedisOptions", "mqcore_register_backends"]


@hookimpl
def mqcore_register_backends() -> list[type[Backend]]:
    """Register the schemes `redis`, `rediss`, `unix`, `redis+sentinel` and `redis+cluster`."""
    return [RedisBackend]
