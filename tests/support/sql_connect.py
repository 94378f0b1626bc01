"""A process that connects to a database at the word of its parent: `python … URL NAME`.

It says that it is ready, waits for a line, and then connects, declares a queue and publishes NAME.
"""

import asyncio
import sys
from urllib.parse import parse_qsl, urlsplit

from mqcore.spi import STORED, Message, Outgoing, QueueSpec
from mqcore_sql.commands import _backend


async def main(url: str, name: str) -> None:
    parts = urlsplit(url)
    kind = _backend(parts.scheme)
    backend = kind(url.partition("?")[0], kind.Options.model_validate(dict(parse_qsl(parts.query))))
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
