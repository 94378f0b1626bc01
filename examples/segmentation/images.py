"""Where the images of the example come from, and how one is read.

Knows nothing of messages. A run's inputs are the photographs and micrographs inside scikit-image's
wheel, the images of a folder that the user names, and a few made on the spot that something is
wrong with: damaged files, pictures with nothing in them, a file that the storage is too busy to
give out at first, and one whose upload comes late. Each `Picture` says what should become of it, so
that a run can be checked.

`read_image` is the storage that a worker reads from. It tells two kinds of failure apart, because
they deserve different treatment: `BrokenImageError` will be the same tomorrow, `StorageError` may
be over in a second.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

Pixels: TypeAlias = NDArray[np.uint8]
"""An RGB image, height x width x 3."""

MAX_SIDE = 1024
"""Longest side in pixels. Larger images are scaled down, which bounds the work for one message.
"""

MAX_PIXELS = 64_000_000
"""Largest image that is decoded at all: a small file can claim to be a huge picture."""

MIN_SIDE = 16
"""Shortest side in pixels in which an object can be distinguished from noise."""

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"})

# What scikit-image carries in its wheel and a person would call a photograph or a micrograph: no
# logos and charts. Its other images are fetched from the network on first use, which an example
# should not do.
SHIPPED_PREMIUM = (
    "cell.png",
    "coins.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "microaneurysms.png",
    "retina.jpg",
)
SHIPPED_REGULAR = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "gravel.png",
    "horse.png",
    "moon.png",
    "page.png",
    "rocket.jpg",
    "text.png",
)


class Tier(StrEnum):
    """What a user pays for: a place in front of the others, or not."""

    PREMIUM = "premium"
    REGULAR = "regular"


class Fate(StrEnum):
    """What should become of a picture in a run of the demo."""

    SEGMENTED = "segmented"
    BUSY = "segmented at the second attempt"
    BROKEN = "rejected"
    LATE = "dead-lettered after its last attempt, segmented when redriven"
    LOST = "dead-lettered after its last attempt, redriven three times, and failed for good"
    EITHER = "segmented or rejected"


class BrokenImageError(Exception):
    """The file is not an image that can be segmented, and another attempt will not change that."""


class StorageError(Exception):
    """The storage did not give the file out; another attempt may well succeed."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One input: a name for people, the file, whose it is, and what should become of it."""

    name: str
    path: Path
    tier: Tier
    fate: Fate = Fate.SEGMENTED


def shipped_images(limit: int | None = None) -> list[Picture]:
    """Find the images of the installed scikit-image, alternately premium and regular. No network.

    `limit` keeps the first so many. One that the installed version does not carry is left out.
    """
    folder = _shipped()
    premium = [Picture(name, folder / name, Tier.PREMIUM) for name in SHIPPED_PREMIUM]
    regular = [Picture(name, folder / name, Tier.REGULAR) for name in SHIPPED_REGULAR]
    by_turns = [picture for pair in zip(premium, regular, strict=False) for picture in pair]
    rest = premium[len(regular) :] + regular[len(premium) :]
    return [picture for picture in by_turns + rest if picture.path.is_file()][:limit]


def folder_images(folder: Path) -> list[Picture]:
    """Find the image files of `folder`, sorted by name, alternately premium and regular.

    Goes by the suffix: a file that claims to be an image and is none belongs in the run, and in its
    dead letters. Raises NotADirectoryError when there is no such folder.
    """
    paths = sorted(
        path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    tiers = (Tier.PREMIUM, Tier.REGULAR)
    return [
        Picture(path.name, path.resolve(), tiers[index % 2], Fate.EITHER)
        for index, path in enumerate(paths)
    ]


def troubled_images(folder: Path) -> list[Picture]:
    """Make inputs with something wrong with them in `folder`, which is created, and return them."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = (_shipped() / "coins.png").read_bytes()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "notes.jpg").write_text(
        "Monday: ask the lab for the real picture.\n", encoding="utf-8"
    )
    (folder / "empty.png").write_bytes(b"")
    Image.new("L", (200, 150), 127).save(folder / "blank.png")
    Image.new("RGB", (1, 1), "white").save(folder / "dot.png")
    broken = {
        "truncated.png": Tier.PREMIUM,
        "notes.jpg": Tier.REGULAR,
        "empty.png": Tier.REGULAR,
        "blank.png": Tier.PREMIUM,
        "dot.png": Tier.REGULAR,
    }
    made = [
        Picture(name, (folder / name).resolve(), tier, Fate.BROKEN) for name, tier in broken.items()
    ]

    busy = Picture(
        "busy-storage.png", (folder / "busy-storage.png").resolve(), Tier.REGULAR, Fate.BUSY
    )
    _half_the_coins(busy.path, upper=True)
    _busy_marker(busy.path).touch()

    late = Picture(
        "late-upload.png", (folder / "late-upload.png").resolve(), Tier.REGULAR, Fate.LATE
    )
    lost = Picture(
        "lost-upload.png", (folder / "lost-upload.png").resolve(), Tier.REGULAR, Fate.LOST
    )
    for picture in (late, lost):
        picture.path.unlink(missing_ok=True)
    return [*made, busy, late, lost]


def finish_uploads(pictures: Iterable[Picture]) -> list[Picture]:
    """Upload the late ones of `pictures` and return them; a redrive can then succeed."""
    late = [picture for picture in pictures if picture.fate is Fate.LATE]
    for picture in late:
        _half_the_coins(picture.path, upper=False)
    return late


def read_image(path: Path) -> Pixels:
    """Read `path` from the storage as an RGB image of at most `MAX_SIDE` pixels a side.

    Raises `StorageError` when the file is not there (yet) or cannot be read, or the storage is too
    busy; `BrokenImageError` when it is empty, damaged, no image at all, too large to decode or too
    small to hold an object.
    """
    # The marker is how the example plays a busy storage: in a file, so that it holds for whichever
    # process reads first. unlink is atomic, so exactly one read fails, however many workers there
    # are.
    try:
        _busy_marker(path).unlink()
    except FileNotFoundError:
        pass
    else:
        message = f"the storage is busy and did not give {path.name} out"
        raise StorageError(message)
    try:
        data_size = path.stat().st_size
    except OSError as error:
        message = f"the storage has no {path.name}"
        raise StorageError(message) from error
    if data_size == 0:
        message = f"{path.name} is empty"
        raise BrokenImageError(message)
    try:
        with Image.open(path) as image:
            return _to_rgb(image, path.name)
    except UnidentifiedImageError as error:
        message = f"{path.name} is not an image"
        raise BrokenImageError(message) from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        # Pillow reports damage with whichever of these its decoder met.
        message = f"{path.name} cannot be decoded: {error}"
        raise BrokenImageError(message) from error


def _to_rgb(image: Image.Image, name: str) -> Pixels:
    """Decode, turn upright, put transparent parts on white, scale down to `MAX_SIDE`."""
    if min(image.size) < MIN_SIDE:
        message = (
            f"{name} is too small to segment: {image.width} x {image.height} px, at least "
            f"{MIN_SIDE} a side"
        )
        raise BrokenImageError(message)
    if image.width * image.height > MAX_PIXELS:
        message = (
            f"{name} is too large: {image.width} x {image.height} px, at most {MAX_PIXELS} pixels"
        )
        raise BrokenImageError(message)
    # For a JPEG this lets the decoder skip the pixels that scaling down would throw away.
    image.draft("RGB", (MAX_SIDE, MAX_SIDE))
    upright = ImageOps.exif_transpose(image)
    if upright.mode in {"I", "F"} or upright.mode.startswith("I;16"):
        upright = Image.fromarray(_stretch(np.asarray(upright, dtype=np.float64)))
    if upright.has_transparency_data:
        layer = upright.convert("RGBA")
        upright = Image.new("RGBA", layer.size, "white")
        upright.alpha_composite(layer)
    rgb = upright.convert("RGB")
    rgb.thumbnail((MAX_SIDE, MAX_SIDE))
    return np.asarray(rgb, dtype=np.uint8)


def _stretch(values: NDArray[np.float64]) -> Pixels:
    """Scale 16-bit and floating-point micrographs to 0..255."""
    low, high = float(np.nanmin(values)), float(np.nanmax(values))
    if not math.isfinite(high - low) or high == low:
        return np.zeros(values.shape, dtype=np.uint8)
    return np.asarray((np.nan_to_num(values, nan=low) - low) * (255 / (high - low)), dtype=np.uint8)


def _half_the_coins(path: Path, *, upper: bool) -> None:
    """Store one half of the picture of 24 coins as `path`: 12 of them.

    The file appears whole or not at all.
    """
    with Image.open(_shipped() / "coins.png") as coins:
        middle = coins.height // 2
        half = coins.crop(
            (0, 0, coins.width, middle) if upper else (0, middle, coins.width, coins.height)
        )
    part = path.with_suffix(".part")
    half.save(part, format="PNG")
    part.replace(path)


def _shipped() -> Path:
    return Path(str(files("skimage.data")))


def _busy_marker(path: Path) -> Path:
    return path.with_name(path.name + ".busy")
