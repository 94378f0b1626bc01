"""Send messages into the lab's queue: the words of the command line, or line by line what is typed.

    python sender.py --url redis://localhost "Hello World!" "How are you?"
    python sender.py --host 10.0.0.5 --vhost ada --username ada --queue hello

When `publish` returns, the broker has the message.
"""

import argparse
import sys
from collections.abc import Iterable

from lab import broker_url, parser, text_queue
from mqcore import MqcoreError
from mqcore.sync import Broker


def arguments() -> argparse.Namespace:
    """Read the command line."""
    asked = parser("Send messages into a queue.")
    asked.add_argument(
        "messages", nargs="*", metavar="TEXT", help="one message each; without any, lines are read"
    )
    asked.add_argument(
        "--priority", type=int, default=5, help="0, last, to 10, first; 5 when not given"
    )
    return asked.parse_args()


def typed() -> Iterable[str]:
    """Yield the lines of the terminal, or of a file, without those that are empty."""
    if sys.stdin.isatty():
        print("Each line is a message; Ctrl-D ends.")
    for line in sys.stdin:
        if text := line.strip():
            yield text


def main() -> int:
    """Send; returns the exit code."""
    args = arguments()
    try:
        queue = text_queue(args.queue)
        with Broker.connect(broker_url(args)) as broker:
            broker.declare(queue)
            for text in args.messages or typed():
                broker.publish(queue, text, priority=args.priority)
                print(f" [x] Sent {text!r}")
    except MqcoreError as error:
        print(f"sender: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
