"""The end of a process does not wait for a handler's thread."""

import subprocess
import sys

SCRIPT = """
import asyncio, threading
from mqcore.running.threads import ThreadPool

async def main():
    pool, begun = ThreadPool(1, "stuck"), asyncio.Event()
    loop = asyncio.get_running_loop()

    def stuck():
        loop.call_soon_threadsafe(begun.set)
        threading.Event().wait()

    task = asyncio.create_task(pool.run(stuck))
    await begun.wait()
    task.cancel()

asyncio.run(main())
print("left")
"""


def test_a_stuck_thread_does_not_keep_the_process() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SCRIPT],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("left\n", "", 0)
