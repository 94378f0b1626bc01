"""The tasks."""

from mqcore import Retry, RetryPolicy, fixed
from mqcore.tasks import TaskContext

from .app import tasks


@tasks.task()
def add(x: int, y: int) -> int:
    """Return the sum of two numbers."""
    return x + y


@tasks.task()
def mul(x: int, y: int) -> int:
    """Return the product of two numbers."""
    return x * y


@tasks.task()
def xsum(numbers: list[int]) -> int:
    """Return the sum of a list."""
    return sum(numbers)


@tasks.task()
def add_in_words(x: int, y: int, *, debug: bool = False) -> str:
    """Return a sum as text; with `debug` the whole sum."""
    return f"{x} + {y} = {x + y}" if debug else str(x + y)


@tasks.task(retry=RetryPolicy(max_attempts=3, backoff=fixed(0.1)))
def add_by_input(ctx: TaskContext, text: str) -> int:
    """Return 5 and the number that was typed."""
    try:
        return 5 + int(text)
    except ValueError as error:
        print(f"attempt {ctx.attempt}: {error}")
        raise Retry(delay=0.1) from error
