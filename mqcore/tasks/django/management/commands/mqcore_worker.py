"""`manage.py mqcore_worker`: runs what the project enqueues, until a signal stops it."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Any

from django.core.management.base import BaseCommand, CommandError

from mqcore.defaults import GRACE
from mqcore.errors import ConfigurationError
from mqcore.running.supervisor import RECYCLE
from mqcore.tasks.django.runtime import Runtime, runtime
from mqcore.tasks.django.settings import broker_url
from mqcore.worker import Worker, WorkerOptions

if TYPE_CHECKING:
    from argparse import ArgumentParser

__all__ = ["Command"]


class Command(BaseCommand):  # type: ignore[misc]  # a class without annotations
    """The worker of a Django project, in one process."""

    help = (
        "Run the project's tasks until SIGTERM or Ctrl-C, then drain. A second signal ends the "
        "grace."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Add the options."""
        parser.add_argument("--queues", metavar="A,B", help="consume only these queues")
        parser.add_argument(
            "--concurrency", type=int, metavar="N", help="how many tasks of each queue at once"
        )
        parser.add_argument(
            "--grace",
            type=float,
            default=GRACE,
            metavar="SECONDS",
            help="how long running tasks may take after SIGTERM (%(default)g)",
        )
        parser.add_argument(
            "--max-messages",
            type=int,
            metavar="N",
            help=f"stop after this many tasks, with exit code {RECYCLE}",
        )
        parser.add_argument(
            "--max-memory",
            type=int,
            metavar="BYTES",
            help=f"stop above this size, with exit code {RECYCLE}",
        )
        parser.add_argument(
            "--health-file", metavar="PATH", help="write the worker's health there every 2 s"
        )

    def handle(self, **options: Any) -> None:
        """Run the worker. Exits with 75 when it is to be started again."""
        try:
            recycle = asyncio.run(self._work(options))
        except ConfigurationError as error:
            raise CommandError(str(error)) from error
        if recycle:
            sys.exit(RECYCLE)

    async def _work(self, options: dict[str, Any]) -> bool:
        chosen = [name for name in (options["queues"] or "").split(",") if name]
        project = runtime(Runtime)
        tasks = project.tasks
        tasks.names.update(chosen)
        broker = project.app.connect(broker_url())

        worker = Worker(project.app, broker, **_worker_options(options, chosen))
        async with broker:
            if options["verbosity"]:
                queues = ", ".join(chosen or sorted(tasks.queues))
                self.stdout.write(
                    f"mqcore_worker: {len(tasks.registered)} tasks, queues {queues}. "
                    "Ctrl-C stops it."
                )
                self.stdout.flush()
            await worker.run()
        return worker.recycle


def _worker_options(given: dict[str, Any], queues: list[str]) -> WorkerOptions:
    options: WorkerOptions = {"grace": given["grace"]}
    if queues:
        options["queues"] = queues
    for name in ("concurrency", "max_messages", "max_memory", "health_file"):
        if given[name] is not None:
            options[name] = given[name]
    return options
