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

    0: done. 1: the broker failed, or problems were found. 2: wrong usage. 75: a worker has reached
    a limit and is to be started again. Wrong input raises no exception.
    """
    try:
        from mqcore.cli.app import run  # noqa: PLC0415 - Typer and Rich may be missing
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"typer", "rich"}:
            raise
        print(
            f"mqcore: the command line needs {error.name}: pip install 'mqcore[cli]'",
            file=sys.stderr,
        )
        return 2
    return run(sys.argv[1:] if argv is None else argv)
