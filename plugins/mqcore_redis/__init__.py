"""`redis://`: queues in Redis 7.0 and later, or Valkey. A script does each step in one piece.

A publish: `backend` implements the seam, `records` makes bytes of the message, and `batches` puts a
batch into few calls. `session` runs the scripts of `lua/` over a `link`, one pipelined connection.
The script `publish` stores the record, its place and its name, and leaves a token.

A delivery: a `waker` waits for the tokens of all idle queues. It wakes a `subscription`, one of the
`consumers` of the session. The script `claim` takes the first entries, leases them and answers with
`rows`. `settle` removes them, returns them or moves them, each in one step. `probe` finds out at
connect what the server can do.
"""

from mqcore.spi import Backend, hookimpl
from mqcore_redis.backend import RedisBackend
from mqcore_redis.options import RedisOptions

__all__ = ["RedisBackend", "RedisOptions", "mqcore_register_backends"]


@hookimpl
def mqcore_register_backends() -> list[type[Backend]]:
    """Register the schemes `redis`, `rediss`, `unix`, `redis+sentinel` and `redis+cluster`."""
    return [RedisBackend]
