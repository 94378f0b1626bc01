"""For tests: how to start a beanstalkd, and how to ask it without the driver under test."""

import socket
from collections.abc import Mapping

from mqcore_beanstalk.protocol import Reply, table

__all__ = ["COMMAND", "stored", "version"]

COMMAND = [
    "beanstalkd",
    *("-l", "127.0.0.1", "-p", "{port}"),
    *(
        "-b",
        "{folder}",
        "-f",
        "0",
    ),  # its log is in the folder that survives a restart; fsync each time
    *("-z", "4194304"),  # bytes of a job: a payload has 1 MiB at most, and its headers come on top
]
"""The command for `mqcore.contract.brokers.ProcessServer`."""
_WITHIN = 5.0
_JOBS = ("ready", "reserved", "delayed", "buried")


def version(port: int) -> str:
    """Return the version of the server at this port; raises `OSError` while it does not serve."""
    return table(_asked(port, b"stats\r\n")[0])["version"]


def stored(port: int, body: bytes) -> Mapping[str, int]:  # noqa: ARG001 - jobs cannot be searched
    """Return how many jobs each tube holds, in whatever state.

    A tube without jobs is left out: it is there while a connection uses it, and is not stored.
    """
    listed = _asked(port, b"list-tubes\r\n")[0].data.decode().splitlines()
    tubes = [line.removeprefix("- ") for line in listed if line.startswith("- ")]
    found = _asked(port, *(f"stats-tube {tube}\r\n".encode() for tube in tubes))
    counts = {
        tube: sum(int(stats.get(f"current-jobs-{state}", 0)) for state in _JOBS)
        for tube, stats in zip(tubes, map(table, found), strict=True)
    }
    return {tube: count for tube, count in counts.items() if count}


def _asked(port: int, *commands: bytes) -> list[Reply]:
    """Ask on a socket of its own; return the answers, with their data."""
    with socket.create_connection(("127.0.0.1", port), timeout=_WITHIN) as conversation:
        conversation.sendall(b"".join(commands))
        answers = conversation.makefile("rb")
        replies: list[Reply] = []
        for _ in commands:
            word, *rest = answers.readline().decode().split() or [""]
            if not word:
                raise ConnectionError("beanstalkd has closed the connection")
            size = int(rest[0]) + 2 if word == "OK" else 0
            replies.append(Reply(word, 0, answers.read(size)))
        return replies
