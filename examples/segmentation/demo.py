"""Run the segmentation service end to end, on any broker, and show what happened.

All tasks are published first, regular users' before premium ones', and only then does a worker
start: that the premium images are done first is the broker's doing. Then the dead letters are
listed and, once the late upload has arrived, redriven. What is missing even then is redriven twice
more, and has failed for good after that. Exits 0 when every image ended as it should,
1 when one did not, 2 when the run could not be done.
"""

import argparse
import asyncio
import contextlib
import logging
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from pathlib import Path
from uuid import uuid4

from rich.console import Console

from examples.segmentation import tables
from examples.segmentation.app import PRIORITY, SegmentationTask, app, requests, results, tasks
from examples.segmentation.images import (
    Picture,
    Tier,
    finish_uploads,
    folder_images,
    shipped_images,
    troubled_images,
)
from examples.segmentation.notices import into_file
from examples.segmentation.report import (
    Progress,
    RunReport,
    contact_sheet,
    print_dead_letters,
    print_images,
    write_json,
)
from examples.segmentation.run import Run, complaints
from mqcore import Broker, DeadLetter, MqcoreError, Worker

# Seconds between two looks at the queues; until a run is given up that no worker has touched; and
# until one is that has begun: one image may take the handler's whole time limit.
LOOK_EVERY, START, PATIENCE = 2.0, 60.0, 330.0
REDRIVES = 3
"""How often a task is redriven before it has failed for good."""


class RunFailedError(Exception):
    """The run cannot go on; the text says why."""


async def publish_all(broker: Broker, pictures: Iterable[Picture], out: Path) -> dict[str, Picture]:
    """Publish a task for each picture, regular ones first; returns pictures by message id."""
    published = {}
    for number, picture in enumerate(
        sorted(pictures, key=lambda picture: picture.tier is Tier.PREMIUM), start=1
    ):
        labels = out / "labels" / f"{number:03}-{picture.path.stem}.png"
        task = SegmentationTask(
            name=picture.name, tier=picture.tier, image=picture.path, labels=labels
        )
        message = uuid4().hex
        tables.add_task(message, task.name, task.tier)
        await broker.publish(
            requests, task, id=message, key="task.new", priority=PRIORITY[task.tier]
        )
        published[message] = picture
    return published


@contextlib.asynccontextmanager
async def working(broker: Broker, args: argparse.Namespace) -> AsyncIterator[Callable[[], None]]:
    """Run a worker in this process, or `mqcore worker` with `--processes`.

    Yields a check that raises `RunFailedError` when the workers have ended by themselves.
    """
    if not args.processes:
        async with Worker(app, broker):
            yield lambda: None
        return
    command = [sys.executable, "-m", "mqcore", "worker", "examples.segmentation.app:app"]
    command += ["--processes", str(args.processes), *(["--url", args.url] if args.url else [])]
    process = await asyncio.create_subprocess_exec(*command)

    def check() -> None:
        if process.returncode is not None:
            message = f"the workers ended by themselves with exit code {process.returncode}"
            raise RunFailedError(message)

    try:
        yield check
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def follow(
    broker: Broker, run: Run, progress: Progress, check: Callable[[], None]
) -> list[DeadLetter]:
    """Collect results until every task is done or dead-lettered; returns the dead letters.

    Raises `RunFailedError` when no task is started for `START` seconds, or there is no news for
    `PATIENCE`, and what `check` raises.
    """
    quiet = 0.0
    async with broker.consume(results, prefetch=16) as outcomes:
        while run.open():
            received = await outcomes.get(timeout=LOOK_EVERY)
            if received is not None:
                quiet = 0.0
                run.note(received.value, progress)
                await received.ack()
                continue
            check()
            quiet += LOOK_EVERY
            (counts,) = await broker.counts(tasks)
            if quiet > START and counts.ready >= len(run.pictures):
                message = (
                    f"no worker takes up what is in {tasks.name}; do they and the demo use the "
                    "same broker?"
                )
                raise RunFailedError(message)
            if quiet > PATIENCE:
                message = f"no news of {len(run.open())} tasks for {PATIENCE:g} s"
                raise RunFailedError(message)
            for letter in await dead_letters(broker, run):
                run.note_dead(letter, progress)
    # A failure is announced by the handler, and becomes a dead letter a moment later, when the
    # handler has ended.
    async with asyncio.timeout(PATIENCE):
        while len(found := await dead_letters(broker, run)) < len(run.given_up):  # noqa: ASYNC110 - only the broker knows
            await asyncio.sleep(0.05)
    return found


async def dead_letters(broker: Broker, run: Run) -> list[DeadLetter]:
    """Return this run's dead letters; the queue may hold others' too."""
    return await broker.dead_letters(tasks).list(limit=len(run.pictures), ids=run.pictures.keys())


async def redrive(broker: Broker, run: Run, chosen: Collection[str]) -> int:
    """Redrive these dead letters; returns how many."""
    run.reopen(chosen)
    tables.queue_again(chosen)
    redriven = await broker.dead_letters(tasks).redrive(ids=chosen)
    if redriven.left:
        message = f"not redriven: {dict(redriven.left)}"
        raise RunFailedError(message)
    return len(redriven.moved)


async def demonstrate(
    pictures: Sequence[Picture], args: argparse.Namespace, console: Console
) -> RunReport:
    """Publish, work, list the dead letters, redrive them, and say how it all ended."""
    async with app.connect(args.url, fallback=args.fallback) as broker:
        run = Run(
            await publish_all(broker, pictures, args.out),
            into_file(args.out / "notices.jsonl"),
        )
        await until_there(broker, console)
        console.print(
            f"{len(pictures)} tasks published, regular before premium; now a worker starts"
        )
        async with working(broker, args) as check:
            with Progress(console, tiers(run, run.open())) as progress:
                letters = await follow(broker, run, progress, check)
            first = run.dead_letter_rows(letters)
            print_images(console, run.image_rows())
            print_dead_letters(console, f"Dead letters of {tasks.name}", first)

            redriven = len(letters)
            letters = await redrive_all(broker, run, letters, console, check)

        run.fail(letters)
        run.rows = {row.message_queue_id: row for row in tables.all_tasks(run.pictures)}
    report = RunReport(
        images=run.image_rows(),
        first_dead_letters=first,
        redriven=redriven,
        dead_letters=run.dead_letter_rows(letters),
        premium_first=run.premium_first(max(1, args.processes)),
        complaints=[],
    )
    return report.model_copy(update={"complaints": complaints(pictures, report)})


async def redrive_all(
    broker: Broker,
    run: Run,
    letters: list[DeadLetter],
    console: Console,
    check: Callable[[], None],
) -> list[DeadLetter]:
    """Redrive the dead letters up to `REDRIVES` times; returns those that have failed for good.

    A redrive does not mend a broken image, so only the first one takes all.
    """
    finish_uploads(run.pictures.values())
    chosen = {letter.id for letter in letters}

    for number in range(1, REDRIVES + 1):
        if not chosen:
            break
        count = await redrive(broker, run, chosen)
        arrived = "; the late upload has arrived" if number == 1 else ""
        console.print(f"redrive {number} of {REDRIVES}: dead letters: {count}{arrived}")
        with Progress(console, tiers(run, chosen)) as progress:
            letters = await follow(broker, run, progress, check)
        chosen = {letter.id for letter in letters if letter.reason == "retries_exhausted"}

    return letters


async def until_there(broker: Broker, console: Console) -> None:
    """Wait for a broker that is away, and until it has what waited in the fallback meanwhile.

    Raises `TimeoutError` when it stays away for `PATIENCE` seconds.
    """
    health = broker.health()
    if not health.degraded:
        return
    depth = health.spool.depth if health.spool else 0
    console.print(f"the broker is away: {depth} tasks wait in the fallback")
    async with asyncio.timeout(PATIENCE):
        while broker.health().degraded:  # noqa: ASYNC110 - it is asked as a health check asks
            await asyncio.sleep(0.1)
    console.print("the broker is there, and has them")


def tiers(run: Run, ids: Iterable[str]) -> dict[Tier, int]:
    """Count the tasks of each tier."""
    counts = Counter(run.pictures[task].tier for task in ids)
    return {tier: counts[tier] for tier in Tier if counts[tier]}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; exits with 2 when it is wrong."""
    parser = argparse.ArgumentParser(
        description="Segment real images by messages, and show what happened."
    )
    parser.add_argument(
        "--url", help="the broker; when not given as mqcore is configured, else memory://"
    )
    parser.add_argument(
        "--images", type=Path, metavar="DIR", help="segment the images of this folder too"
    )
    parser.add_argument(
        "--out", type=Path, metavar="DIR", default=Path("segmentation-out"), help="where results go"
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only N of the images that scikit-image ships"
    )
    parser.add_argument(
        "--processes",
        type=int,
        metavar="N",
        help="N worker processes instead of one inside; 2 on sqlite://, 0 elsewhere",
    )
    parser.add_argument(
        "--fallback",
        metavar="URL",
        help="where tasks are stored while the broker is away, such as sqlite:///spool.db",
    )
    parser.add_argument(
        "--database",
        metavar="URL",
        help="the service's own tables, as SQLAlchemy names a database; by default those of "
        "--url sqlite://, or a file in --out",
    )
    args = parser.parse_args(argv)
    on_sqlite = (args.url or "").startswith("sqlite:")
    if args.processes is None:
        args.processes = 2 if on_sqlite else 0
    if args.database is None and on_sqlite:
        args.database = args.url.partition("?")[0]
    if args.images is not None and not args.images.is_dir():
        parser.error(f"--images: there is no folder {args.images}")
    if args.processes < 0 or (args.limit is not None and args.limit < 0):
        parser.error("--limit and --processes are 0 or more")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns the exit code."""
    args = arguments(argv)
    console = Console()
    args.out = args.out.resolve()
    args.out.mkdir(parents=True, exist_ok=True)
    tables.use_database(args.database or f"sqlite:///{args.out / 'segmentation.db'}")
    tables.create_tables()
    # Beside the live display a log would only be in the way.
    logging.basicConfig(
        filename=args.out / "mqcore.log",
        filemode="w",
        level=logging.INFO,
        format="%(asctime)s %(message)s",
    )
    pictures = shipped_images(args.limit) + troubled_images(args.out / "inputs")
    pictures += folder_images(args.images) if args.images else []
    try:
        report = asyncio.run(demonstrate(pictures, args, console))
    except (MqcoreError, RunFailedError, TimeoutError) as error:
        print(f"demo: {str(error) or 'the broker did not answer in time'}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print_dead_letters(console, f"Dead letters of {tasks.name} that are left", report.dead_letters)
    write_json(report, args.out / "result.json")
    contact_sheet(report, args.out / "contact-sheet.png")
    done = [row for row in report.images if row.objects is not None]
    console.print(
        f"{len(done)} of {len(report.images)} images segmented, "
        f"{sum(row.objects or 0 for row in done)} objects"
    )
    console.print(
        "contact-sheet.png, result.json, notices.jsonl, segmentation.db and mqcore.log are in "
        f"{args.out}",
        soft_wrap=True,
        highlight=False,
    )
    for complaint in report.complaints:
        console.print(f"[red]wrong:[/] {complaint}")
    return 1 if report.complaints else 0


if __name__ == "__main__":
    sys.exit(main())
