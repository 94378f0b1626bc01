"""What a person sees of a run: live progress, tables, the contact sheet, and the same as JSON.

Knows nothing of messages. The demo tells `Progress` what happened to each image as it hears of it,
and hands the finished `RunReport` to `contact_sheet` and `write_json`.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydantic import BaseModel, ConfigDict
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text
from skimage.segmentation import mark_boundaries

from examples.segmentation.images import BrokenImageError, StorageError, Tier, read_image
from examples.segmentation.segment import load_labels

COLUMNS = 5
TILE = (300, 225)
CAPTION = 40
GAP = 12
BACKGROUND = (24, 26, 32)
INK = (235, 235, 235)
FAINT = (150, 155, 165)
TIER_COLOURS = {Tier.PREMIUM: (242, 190, 60), Tier.REGULAR: (120, 130, 145)}
TROUBLE = (200, 70, 60)
OUTLINE = (1.0, 0.85, 0.0)


class ImageRow(BaseModel):
    """One image at the end of a run.

    `order` counts from 1; `seconds` is the work of its last attempt. `status`, `retry_count` and
    `processing_time_ms` are those of the service's table.
    """

    model_config = ConfigDict(frozen=True)

    image: str
    tier: Tier
    path: Path
    order: int | None
    objects: int | None
    attempts: int | None
    seconds: float | None
    labels: Path | None
    redriven: bool = False
    status: str = ""
    retry_count: int = 0
    processing_time_ms: int | None = None


class DeadLetterRow(BaseModel):
    """One image whose task was dead-lettered, and why."""

    model_config = ConfigDict(frozen=True)

    image: str
    tier: Tier
    path: Path
    reason: str
    attempts: int
    error: str


class RunReport(BaseModel):
    """A whole run.

    `first_dead_letters` are those before the redrive, `dead_letters` those that are left after it.
    """

    model_config = ConfigDict(frozen=True)

    images: list[ImageRow]
    first_dead_letters: list[DeadLetterRow]
    redriven: int
    dead_letters: list[DeadLetterRow]
    premium_first: bool
    complaints: list[str]


class Progress:
    """A bar for each tier, and a line for each thing that happened. Use it with `with`."""

    def __init__(self, console: Console, totals: dict[Tier, int]) -> None:
        """Show progress on `console`; `totals` is how many images each tier has."""
        self._bars = Bars(
            TextColumn("{task.description:>8}"),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
        )
        self._ids = {
            tier: self._bars.add_task(tier.value, total=total) for tier, total in totals.items()
        }

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def segmented(self, image: str, tier: Tier, objects: int, seconds: float) -> None:
        """Tell that an image is done."""
        self._line("done", "green", (image, tier), f"{count(objects)} in {seconds:.2f} s")
        self._bars.advance(self._ids[tier])

    def retrying(self, image: str, tier: Tier, attempt: int, error: str) -> None:
        """Tell that an attempt failed, and another will follow."""
        self._line("retry", "yellow", (image, tier), f"attempt {attempt}: {error}")

    def given_up(self, image: str, tier: Tier, error: str) -> None:
        """Tell that an image will not be tried again."""
        self._line("dead", "red", (image, tier), error)
        self._bars.advance(self._ids[tier])

    def _line(self, what: str, style: str, image: tuple[str, Tier], text: str) -> None:
        # A Text is taken as it is: names of files and errors may hold what would be markup in a
        # plain string.
        name, tier = image
        self._bars.console.print(
            Text.assemble((f"{what:6}", style), f"{tier.value:8} ", (name, "bold"), "  ", text)
        )


def print_images(console: Console, rows: Sequence[ImageRow]) -> None:
    """Print a line for each segmented image, in the order in which workers started them."""
    table = Table(title="Segmented images, in the order processed", box=box.SIMPLE_HEAD)
    for heading in ("image", "tier"):
        table.add_column(heading)
    for heading in ("order", "objects", "attempts", "time"):
        table.add_column(heading, justify="right")
    done = [row for row in rows if row.objects is not None and row.seconds is not None]
    for row in sorted(done, key=lambda row: row.order or 0):
        style = "yellow" if row.tier is Tier.PREMIUM else ""
        table.add_row(
            Text(row.image + (" (redriven)" if row.redriven else "")),
            row.tier.value,
            str(row.order),
            str(row.objects),
            str(row.attempts),
            f"{row.seconds:.2f} s",
            style=style,
        )
    console.print(table)


def print_dead_letters(console: Console, title: str, rows: Sequence[DeadLetterRow]) -> None:
    """Print a line for each dead letter: which image, and why."""
    table = Table(title=title, box=box.SIMPLE_HEAD)
    for heading in ("image", "tier", "reason"):
        table.add_column(heading)
    table.add_column("attempts", justify="right")
    table.add_column("error", overflow="fold")
    for row in sorted(rows, key=lambda row: row.image):
        table.add_row(
            Text(row.image),
            row.tier.value,
            Text(row.reason, "red"),
            str(row.attempts),
            Text(row.error),
        )
    console.print(table)


def count(objects: int) -> str:
    """Say how many objects, in words that fit one too."""
    return "1 object" if objects == 1 else f"{objects} objects"


def write_json(report: RunReport, path: Path) -> None:
    """Write the whole report as JSON."""
    path.write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")


def contact_sheet(report: RunReport, path: Path) -> None:
    """Draw a tile for each image into one PNG: outlined objects, or the reason for none.

    The frame's colour is the tier's, or red for a dead letter.
    """
    dead = {row.path: row for row in report.dead_letters}
    rows = sorted(report.images, key=lambda row: (row.path in dead, row.order or 0))
    width, height = TILE[0] + 2 * GAP, TILE[1] + CAPTION + GAP
    lines = -(-len(rows) // COLUMNS)
    sheet = Image.new(
        "RGB", (width * min(COLUMNS, max(1, len(rows))), height * max(1, lines) + GAP), BACKGROUND
    )
    for index, row in enumerate(rows):
        tile = _tile(row, dead.get(row.path))
        sheet.paste(tile, (width * (index % COLUMNS), height * (index // COLUMNS) + GAP))
    sheet.save(path)


def _tile(row: ImageRow, dead: DeadLetterRow | None) -> Image.Image:
    tile = Image.new("RGB", (TILE[0] + 2 * GAP, TILE[1] + CAPTION), BACKGROUND)
    draw = ImageDraw.Draw(tile)
    picture = _outlined(row) if dead is None else None
    if picture is None:
        text = f"{dead.reason}\n\n{dead.error}" if dead else "no result"
        wrapped = "\n".join(textwrap.fill(line, 36) for line in text.split("\n"))
        draw.multiline_text((GAP + 12, 20), wrapped, fill=INK, font=_font(15), spacing=5)
        frame = (GAP, 0, GAP + TILE[0] - 1, TILE[1] - 1)
        draw.rectangle(frame, outline=TROUBLE, width=2)
        caption = f"{row.tier.value}, dead-lettered" if dead else row.tier.value
    else:
        left, top = GAP + (TILE[0] - picture.width) // 2, (TILE[1] - picture.height) // 2
        tile.paste(picture, (left, top))
        frame = (
            left - 2,
            max(0, top - 2),
            left + picture.width + 1,
            min(TILE[1], top + picture.height + 1),
        )
        draw.rectangle(frame, outline=TIER_COLOURS[row.tier], width=2)
        caption = f"{row.order}. {row.tier.value}, {count(row.objects or 0)}" + (
            ", redriven" if row.redriven else ""
        )
    draw.text((GAP, TILE[1] + 4), row.image, fill=INK, font=_font(15))
    draw.text((GAP, TILE[1] + 22), caption, fill=FAINT, font=_font(13))
    return tile


def _outlined(row: ImageRow) -> Image.Image | None:
    """Draw the picture with outlined objects; scaled first, so that the lines are visible."""
    if row.labels is None:
        return None
    try:
        image = Image.fromarray(read_image(row.path))
        labels = load_labels(row.labels)
    except (BrokenImageError, StorageError, OSError):
        return None
    scale = min((TILE[0] - 4) / image.width, (TILE[1] - 4) / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS))
    numbers = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    marked = mark_boundaries(pixels, numbers, color=OUTLINE, mode="inner")
    return Image.fromarray((marked * 255).astype(np.uint8))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
