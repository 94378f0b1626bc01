"""One run of the demo: the tasks, the order of their starts, and their outcomes.

Fed with outcomes and dead letters, whatever broker they came from, and read for the report. A
message may come twice (at least once is the promise), so everything is kept by the id of the task's
message.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from examples.segmentation.app import Outcome, SegmentationResult
from examples.segmentation.images import Fate, Picture, Tier
from examples.segmentation.notices import Notice, Notify
from examples.segmentation.report import DeadLetterRow, ImageRow, Progress, RunReport
from examples.segmentation.tables import TaskRow
from mqcore import DeadLetter

# The reasons for which a picture is dead-lettered before and after the redrive; None where it is
# not.
EXPECTED: dict[Fate, tuple[str | None, str | None]] = {
    Fate.SEGMENTED: (None, None),
    Fate.BUSY: (None, None),
    Fate.BROKEN: ("rejected", "rejected"),
    Fate.LATE: ("retries_exhausted", None),
    Fate.LOST: ("retries_exhausted", "retries_exhausted"),
}
BUSY_ATTEMPTS = 2
FAILURES = {Fate.BUSY: 1, Fate.LATE: 3, Fate.LOST: 12}
"""How many attempts fail in all: three a round, and `LOST` has three rounds more."""
STATUS = {
    Fate.SEGMENTED: "completed",
    Fate.BUSY: "completed",
    Fate.BROKEN: "failed",
    Fate.LATE: "completed",
    Fate.LOST: "failed",
}


@dataclass
class Run:
    """The pictures by the ids of their tasks' messages, and what is known of each."""

    pictures: dict[str, Picture]
    notify: Notify
    first_seen: dict[str, float] = field(default_factory=dict)
    last_seen: dict[str, float] = field(default_factory=dict)
    done: dict[str, SegmentationResult] = field(default_factory=dict)
    given_up: set[str] = field(default_factory=set)
    redriven: set[str] = field(default_factory=set)
    rows: dict[str, TaskRow] = field(default_factory=dict)

    def open(self) -> set[str]:
        """Return the tasks of which no end is known."""
        return self.pictures.keys() - self.done.keys() - self.given_up

    def note(self, outcome: Outcome, progress: Progress) -> None:
        """Take one outcome in, and show it.

        Other runs' outcomes, and one that comes a second time, change nothing.
        """
        task, seen = outcome.task, outcome.started_at
        if task not in self.open() or seen <= self.last_seen.get(task, 0):
            return
        self.first_seen.setdefault(task, seen)
        self.last_seen[task] = seen
        if isinstance(outcome, SegmentationResult):
            self.done[task] = outcome
            objects = f"{outcome.found.objects} objects"
            self._tell(task, "completed", objects)
            progress.segmented(
                outcome.name, outcome.tier, outcome.found.objects, outcome.found.elapsed
            )
        elif outcome.final:
            self.given_up.add(task)
            progress.given_up(outcome.name, outcome.tier, outcome.error)
        else:
            progress.retrying(outcome.name, outcome.tier, outcome.attempt, outcome.error)

    def note_dead(self, letter: DeadLetter, progress: Progress) -> None:
        """Add a dead letter that no worker announced: its worker was killed or timed out."""
        if letter.id in self.open():
            self.given_up.add(letter.id)
            progress.given_up(
                self.pictures[letter.id].name, self.pictures[letter.id].tier, letter.reason
            )

    def reopen(self, tasks: Iterable[str]) -> None:
        """Wait for these again: they were redriven."""
        chosen = set(tasks)
        self.redriven |= chosen
        self.given_up -= chosen

    def fail(self, letters: Iterable[DeadLetter]) -> None:
        """Tell the users of these that their tasks have failed for good."""
        for letter in letters:
            self._tell(letter.id, "failed", letter.death.error)

    def _tell(self, task: str, status: Literal["completed", "failed"], text: str) -> None:
        picture = self.pictures[task]
        self.notify(
            Notice(task=task, name=picture.name, tier=picture.tier, status=status, text=text)
        )

    def order(self) -> list[str]:
        """Return the tasks in the order in which workers first took them up."""
        return sorted(self.first_seen, key=self.first_seen.__getitem__)

    def premium_first(self, workers: int) -> bool:
        """Whether workers took up all premium tasks before the regular ones.

        Several workers start side by side: while one begins the last premium task, each other may
        begin a regular one.
        """
        tiers = [self.pictures[task].tier for task in self.order()]
        ahead = 0
        for index, tier in enumerate(tiers):
            if tier is Tier.PREMIUM:
                ahead = tiers[:index].count(Tier.REGULAR)
        return ahead < workers

    def image_rows(self) -> list[ImageRow]:
        """Return what became of each image, in the order processed."""
        places = {task: place for place, task in enumerate(self.order(), start=1)}
        rows = [self._image_row(task, places.get(task)) for task in self.pictures]
        return sorted(rows, key=lambda row: row.order or len(rows) + 1)

    def _image_row(self, task: str, order: int | None) -> ImageRow:
        picture, result = self.pictures[task], self.done.get(task)
        stored = self.rows.get(task)
        return ImageRow(
            image=picture.name,
            tier=picture.tier,
            path=picture.path,
            order=order,
            objects=result.found.objects if result else None,
            attempts=result.attempt if result else None,
            seconds=result.found.elapsed if result else None,
            labels=result.labels if result else None,
            redriven=task in self.redriven,
            status=stored.status if stored else "",
            retry_count=stored.retry_count if stored else 0,
            processing_time_ms=stored.processing_time_ms if stored else None,
        )

    def dead_letter_rows(self, letters: Iterable[DeadLetter]) -> list[DeadLetterRow]:
        """Return what the dead letters say, with the images' names."""
        return [
            DeadLetterRow(
                image=self.pictures[letter.id].name,
                tier=self.pictures[letter.id].tier,
                path=self.pictures[letter.id].path,
                reason=letter.reason,
                attempts=letter.attempts,
                error=letter.death.error,
            )
            for letter in letters
        ]


def complaints(pictures: Iterable[Picture], report: RunReport) -> list[str]:
    """Return what did not end as it should, a line each; none when all is well."""
    first = {row.path: row.reason for row in report.first_dead_letters}
    last = {row.path: row.reason for row in report.dead_letters}
    attempts = {row.path: row.attempts for row in report.images}
    stored = {row.path: row for row in report.images}
    found = [] if report.premium_first else ["regular images were processed before premium ones"]
    for picture in pictures:
        became = (first.get(picture.path), last.get(picture.path))
        if picture.fate in EXPECTED and became != EXPECTED[picture.fate]:
            found.append(
                f"{picture.name} should have been {picture.fate.value}; dead-lettered as: {became}"
            )
        if picture.fate is Fate.BUSY and attempts[picture.path] != BUSY_ATTEMPTS:
            found.append(
                f"{picture.name} should have taken {BUSY_ATTEMPTS} attempts, not "
                f"{attempts[picture.path]}"
            )
        row = stored[picture.path]
        if row.status != STATUS.get(picture.fate, row.status):
            found.append(f"{picture.name} is {row.status!r} in the table of tasks")
        if row.retry_count != FAILURES.get(picture.fate, row.retry_count):
            found.append(f"{picture.name} has {row.retry_count} failures in the table of tasks")
    return found
