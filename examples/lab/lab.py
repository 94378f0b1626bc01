"""Shared by the sender and the worker of the lab: the broker's URL and the queue."""

import argparse
import getpass
from urllib.parse import quote

from mqcore import ConfigurationError, Queue, RetryPolicy, Settings, fixed

LOCAL = (
    "memory:// lives inside one process, but sender and workers are several. Name a broker that "
    "they share with --url, with --host, or with the variable MQCORE_URL. The first half of "
    "docs/lab.md uses one process"
)


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options for broker and queue; each script adds its own."""
    asked = argparse.ArgumentParser(description=description)
    asked.add_argument("--queue", default="hello", help="name of the queue; hello when not given")
    asked.add_argument("--url", help="the broker as one URL, for instance redis://localhost/0")
    rabbit = asked.add_argument_group("RabbitMQ, in parts", "in place of --url")
    rabbit.add_argument("--host")
    rabbit.add_argument("--port", type=int, default=5672)
    rabbit.add_argument("--vhost", default="/", help="/ when not given")
    rabbit.add_argument("--username", default="guest")
    rabbit.add_argument(
        "--password", help="asked for when not given: others on the machine can read a command line"
    )
    return asked


def broker_url(args: argparse.Namespace) -> str:
    """Return the broker's URL, with its password: never print it.

    Without --url and --host it is the configured one: the variable MQCORE_URL, or the file
    mqcore.toml. Raises `ConfigurationError` for one that other processes cannot reach.
    """
    if args.url and args.host:
        raise ConfigurationError("--url and --host both name a broker; give one of them")
    if args.host:
        password = (
            args.password
            if args.password is not None
            else getpass.getpass(f"{args.username}'s password: ")
        )
        user = f"{quote(args.username, safe='')}:{quote(password, safe='')}"
        return f"amqp://{user}@{args.host}:{args.port}/{quote(args.vhost, safe='')}"
    settings = Settings.load(url=args.url)
    if settings.url.scheme == "memory":
        raise ConfigurationError(LOCAL)
    return settings.url.reveal()


def text_queue(name: str) -> Queue[str]:
    """Describe a queue of plain text, which any other client can read and write, too.

    Work that fails is tried again after a second, and kept in the dead-letter queue when it has
    failed three times.
    """
    return Queue(name, str, codec="text", retry=RetryPolicy(max_attempts=3, backoff=fixed(1)))
