"""Exception classes of the program mean the same in the worker and in a handler process."""

import pytest
from support.programs import Start

PROGRAM = """
import asyncio
from mqcore import App, Broker, Queue, RetryPolicy, Settings, Worker, fixed

app = App("test")

class Busy(Exception):
    class Very(Exception):
        pass

policy = {"max_attempts": 3, "backoff": fixed(0)}
classes = (Busy, Busy.Very)
retried = Queue("retried", str, retry=RetryPolicy(**policy, retry_on=classes))
given_up = Queue("given_up", str, retry=RetryPolicy(**policy, give_up_on=classes))

def fail(which):
    raise (Busy.Very if which == "nested" else Busy)("too much to do")

def handler(which):
    fail(which)

async def coroutine(which):
    fail(which)

def again(which):
    fail(which)

async def coroutine_again(which):
    fail(which)

app.consumer(retried%(options)s)(%(first)s)
app.consumer(given_up%(options)s)(%(second)s)

async def main():
    async with Broker.connect("memory://", settings=Settings()) as broker, Worker(app, broker):
        for queue in (retried, given_up):
            for which in ("top", "nested"):
                await broker.publish(queue, which)
        while sum(count.ready for count in await broker.counts("retried.dlq", "given_up.dlq")) < 4:
            await asyncio.sleep(0.01)
        for queue in (retried, given_up):
            letters = await broker.dead_letters(queue).list()
            for letter in sorted(letters, key=lambda letter: letter.body):
                error = letter.death.error_type.partition(".")[2]
                print(queue.name, letter.reason, letter.attempts, error, flush=True)

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize("as_module", [False, True], ids=["script", "python -m"])
@pytest.mark.parametrize(
    ("first", "second", "options"),
    [
        ("coroutine", "coroutine_again", ""),
        ("handler", "again", ""),
        ("handler", "again", ", process=True"),
        ("coroutine", "coroutine_again", ", process=True"),
    ],
    ids=["async", "thread", "process", "async in a process"],
)
def test_a_policy_knows_the_classes_of_the_program(
    program_of: Start, first: str, second: str, options: str, *, as_module: bool
) -> None:
    source = PROGRAM % {"first": first, "second": second, "options": options}
    code, lines, errors = program_of(source, as_module=as_module).end()
    assert code == 0, errors
    assert lines == [
        "retried retries_exhausted 3 Busy.Very",
        "retried retries_exhausted 3 Busy",
        "given_up rejected 1 Busy.Very",
        "given_up rejected 1 Busy",
    ]
