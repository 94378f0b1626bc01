"""A forked child holds no connection of its parent's broker open."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

PROGRAM = """
import asyncio, gc, os, socket, sys, tempfile
from mqcore.connection.forks import close_in_children
from mqcore.sync.loop_thread import LoopThread

listener = socket.create_server(("127.0.0.1", 0))
listener.settimeout(60)
port = listener.getsockname()[1]
child_waits, let_it_end = os.pipe()


async def last():
    pass


async def connect(is_quiet):
    transport, _ = await asyncio.get_running_loop().create_connection(
        asyncio.Protocol, "127.0.0.1", port
    )
    if is_quiet:
        transport.pause_reading()
    return transport


def parent():
    os.close(let_it_end)
    loop = LoopThread(last)
    kept = [loop.run(connect(is_quiet)) for is_quiet in (False, True)]
    numbers = {each.get_extra_info("socket").fileno() for each in kept}
    if os.fork() == 0:
        child(kept, numbers)
    os.read(child_is_ready[0], 1)
    os._exit(0)  # as killed: nothing is closed


def child(kept, numbers):
    with tempfile.TemporaryFile() as own:
        assert own.fileno() not in numbers  # a number that is still used is not given away
        kept.clear()
        gc.collect()  # inherited objects close what stands in their place
        own.write(b"still open")
        own.flush()
        os.write(child_is_ready[1], b".")
        os.read(child_waits, 1)
        own.seek(0)
        os._exit(0 if own.read() == b"still open" else 1)


child_is_ready = os.pipe()
if os.fork() == 0:
    parent()
connections = [listener.accept()[0] for _ in range(2)]
for each in connections:
    each.settimeout(60)
    assert each.recv(1) == b""  # the parent is dead, and its child lives
os.close(let_it_end)
print("noticed")
"""


def test_the_death_of_a_parent_is_noticed_while_its_child_lives() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("noticed\n", "", 0)
