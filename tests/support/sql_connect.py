"""A process that connects to a database at the word of its parent: `python … URL NAME`.

It says that it is ready, waits for a line, and then connects, declares a queue and publishes NAME.
"""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from support.sql_backend import backend_of

from mqcore.spi import STORED, Message, Outgoing, QueueSpec


async def main(url: str, name: str) -> None:
    backend = backend_of(url)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    await backend.open(lambda error: sys.exit(f"lost: {error}"))
    await backend.declare([QueueSpec(name="jobs", ttl=60.0)])
    message = Message(id=name, body=b"x")
    assert await backend.publish([Outgoing("jobs", message)], timeout=60) == [STORED]
    await backend.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
