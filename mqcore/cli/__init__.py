"""The command `mqcore`: run workers, look at queues, see to dead letters.

One call: `main` hands the words to `app.run`, which finds the command among `worker`, `messages`,
`queues`, `dlq`, `routes`, `backends`, `doctor`, `contract` and `new_backend`. A command connects
through `common.At`, does one thing with the public API, and answers through `output`, as text or as
JSON. What goes wrong ends in `app.run` again: one line, and an exit code.

Typer and Rich come with the extra `cli`; without them `main` says so, and nothing else of mqcore
needs them.
"""

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command (None: the words this program was started with) and return its exit code.

    0: done. 1: the broker let us down, or something was found that needs a look. 2: it was asked
    for in a way that cannot work. 75: a worker has reached a limit and wants a fresh process. Never
    raises for bad input.
    """
    try:
        from mqcore.cli.app import run  # noqa: PLC0415 - Typer and Rich may be missing, which is said in one line
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"typer", "rich"}:
            raise
        print(
            f"mqcore: the command line needs {error.name}: pip install 'mqcore[cli]'",
            file=sys.stderr,
        )
        return 2
    return run(sys.argv[1:] if argv is None else argv)
