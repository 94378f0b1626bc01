"""A worker: receives messages and works on each for one second per character.

    python qprocessor.py --url redis://localhost --queue hello
    python qprocessor.py --host 10.0.0.5 --vhost ada --username ada --acknowledge --lose-every 3

Without --acknowledge the broker removes a message before the work on it begins; it is lost if the
work fails (at most once). With --acknowledge the broker keeps the message until the work is done
and delivers it again otherwise (at least once). Then the same work may be done twice, so it must do
no harm.
"""

import argparse
import asyncio
import os
import sys
from itertools import count

from lab import broker_url, parser, text_queue
from mqcore import App, Context, MqcoreError, Worker


class LostError(Exception):
    """The work on a message failed on purpose, because of --lose-every."""


def arguments() -> argparse.Namespace:
    """Read the command line."""
    asked = parser("Work on the messages of a queue.")
    asked.add_argument(
        "--acknowledge",
        action="store_true",
        help="acknowledge a message when its work is done, not before",
    )
    asked.add_argument(
        "--lose-every", type=int, default=0, metavar="N", help="fail with every Nth message"
    )
    asked.add_argument(
        "--prefetch",
        type=int,
        default=1,
        help="how many messages to hold at once; 1 when not given",
    )
    asked.add_argument(
        "--lease",
        type=float,
        default=30,
        help="seconds until another worker gets a dead worker's messages",
    )
    asked.add_argument(
        "--second", type=float, default=1, help="how long a second of work takes; 1 when not given"
    )
    return asked.parse_args()


def make_app(args: argparse.Namespace) -> App:
    """Describe the work: which queue, how, and the function that does it."""
    app = App("qprocessor")
    number = count(1)

    @app.consumer(
        text_queue(args.queue),
        ack_first=not args.acknowledge,
        concurrency=1,
        prefetch=args.prefetch,
        lease=args.lease,
    )
    async def work(text: str, ctx: Context) -> None:
        """Do the work. Returning is the acknowledgement; an exception says that it failed."""
        lose = args.lose_every and next(number) % args.lose_every == 0
        again = f", again (attempt {ctx.attempt})" if ctx.redelivered else ""
        print(f" [x] Received {text!r}{again}", flush=True)
        await asyncio.sleep(len(text) * args.second)
        if lose:
            print(f" [!] Lost {text!r}", flush=True)
            raise LostError(f"{text!r} was lost on purpose")
        print(f" [x] Done {text!r}", flush=True)

    return app


async def run(args: argparse.Namespace) -> None:
    """Work until Ctrl-C, which lets the work at hand be finished."""
    app = make_app(args)
    async with app.connect(broker_url(args)) as broker:
        print(
            f" [*] Process {os.getpid()} waits for messages in {args.queue!r}. To exit press "
            "Ctrl-C",
            flush=True,
        )
        await Worker(app, broker).run()


def main() -> int:
    """Work; returns the exit code."""
    try:
        asyncio.run(run(arguments()))
    except MqcoreError as error:
        print(f"qprocessor: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
