"""Find the objects in one image. This is the work of the example, independent of messaging.

An image passes through here in five steps: gray and denoised; split by Otsu's threshold, on the
plain image or with uneven light taken out, whichever parts better; holes closed and specks removed;
touching objects cut apart at their necks (distance transform and watershed); measured. Every size
follows from the size of the image, so that a 100-pixel micrograph and a 1000-pixel photograph both
come out right without a knob.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict
from scipy import ndimage
from skimage import color, filters, measure, morphology, segmentation

from examples.segmentation.images import BrokenImageError, Pixels

Gray: TypeAlias = NDArray[np.float64]
Mask: TypeAlias = NDArray[np.bool_]
Labels: TypeAlias = NDArray[np.int32]

# A neck narrower than about three quarters (e ** -0.3) of the smaller object beside it parts two
# objects.
NECK = 0.3
# Least part of the image's area that counts as an object, and the least number of pixels.
LEAST_PART = 2e-4
LEAST_PIXELS = 16
# An image whose gray values (0..1) spread less than this holds nothing but noise.
LEAST_CONTRAST = 0.02
# The part of the image's edge that must be bright before bright is taken for the background; in
# doubt it is not.
BRIGHT_EDGE = 0.6


class Areas(BaseModel):
    """Sizes of the objects, in pixels of the scaled image; all 0 when there are none."""

    model_config = ConfigDict(frozen=True)

    smallest: float = 0
    median: float = 0
    mean: float = 0
    largest: float = 0


class Segmentation(BaseModel):
    """What was found in one image.

    `elapsed` is seconds of work, `coverage` and `mean_intensity` run from 0 to 1.
    """

    model_config = ConfigDict(frozen=True)

    width: int
    height: int
    objects: int
    areas: Areas
    coverage: float
    mean_intensity: float
    objects_are: Literal["bright", "dark"]
    light_evened: bool
    elapsed: float


@dataclass(frozen=True, slots=True)
class _Split:
    """One split of an image into objects and background; `contrast` (0..1) rates it."""

    mask: Mask
    objects_are: Literal["bright", "dark"]
    light_evened: bool
    contrast: float


def segment(pixels: Pixels) -> tuple[Segmentation, Labels]:
    """Find the objects in an RGB image; returns measurements and each pixel's object or 0.

    Raises `BrokenImageError` when the image shows nothing: all pixels alike, or next to it.
    """
    started = time.perf_counter()
    gray: Gray = color.rgb2gray(pixels)
    low, high = np.percentile(gray, (0.1, 99.9))
    if high - low < LEAST_CONTRAST:
        message = (
            f"nothing to segment: all pixels have nearly the same value ({low:.2f} to "
            f"{high:.2f} of 1)"
        )
        raise BrokenImageError(message)
    split = _best_split(gray)
    labels = _cut_apart(_clean(split.mask))
    found = measure.regionprops(labels, intensity_image=gray)
    areas = np.array([region.area for region in found], dtype=np.float64)
    result = Segmentation(
        width=gray.shape[1],
        height=gray.shape[0],
        objects=len(found),
        areas=_areas(areas),
        coverage=float(areas.sum() / gray.size),
        mean_intensity=float(gray[labels > 0].mean()) if found else 0.0,
        objects_are=split.objects_are,
        light_evened=split.light_evened,
        elapsed=time.perf_counter() - started,
    )
    return result, labels


def save_labels(labels: Labels, path: Path) -> None:
    """Write the labels as a 16-bit PNG, atomically: a second run does no harm."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    Image.fromarray(labels.astype(np.uint16)).save(part, format="PNG")
    part.replace(path)


def load_labels(path: Path) -> Labels:
    """Read what `save_labels` wrote. Raises FileNotFoundError."""
    with Image.open(path) as image:
        return np.asarray(image, dtype=np.int32)


def _best_split(gray: Gray) -> _Split:
    """Split by Otsu's threshold, with and without slow changes of light; keep the better."""
    side = math.sqrt(gray.size)
    smooth: Gray = filters.gaussian(gray, sigma=max(0.5, side / 400))
    light: Gray = filters.gaussian(smooth, sigma=side / 8)
    plain = _split(smooth, light_evened=False)
    evened = _split(smooth - light, light_evened=True)
    return max(plain, evened, key=lambda split: split.contrast)


def _split(values: Gray, *, light_evened: bool) -> _Split:
    """Split `values` by Otsu's threshold; the side with most of the edge is background."""
    bright: Mask = values > filters.threshold_otsu(values)
    edge = np.concatenate([bright[0], bright[-1], bright[:, 0], bright[:, -1]])
    part = float(bright.mean())
    # Otsu's own measure: the variance between the two classes as a part of the whole variance.
    distance = float(values[bright].mean() - values[~bright].mean())
    contrast = part * (1 - part) * distance**2 / float(values.var())
    if float(edge.mean()) > BRIGHT_EDGE:
        return _Split(~bright, "dark", light_evened, contrast)
    return _Split(bright, "bright", light_evened, contrast)


def _clean(mask: Mask) -> Mask:
    """Close holes, and remove specks and hairs."""
    mask = ndimage.binary_fill_holes(mask)
    radius = int(math.sqrt(mask.size) / 300)
    if radius:
        mask = morphology.opening(mask, morphology.disk(radius))
    cleaned: Mask = morphology.remove_small_objects(mask, max_size=_least_area(mask.size))
    return cleaned


def _cut_apart(mask: Mask) -> Labels:
    """Give each object of `mask` a number, after cutting those that touch apart at their necks."""
    if not mask.any():
        return np.zeros(mask.shape, dtype=np.int32)
    depth = filters.gaussian(ndimage.distance_transform_edt(mask), sigma=1)
    # The logarithm makes a neck's width count in proportion to the object's; + 2 keeps single
    # pixels from mattering.
    depth = np.where(mask, np.log(depth + 2), 0)
    cores = measure.label(morphology.h_maxima(depth, NECK))
    labels = segmentation.watershed(-depth, cores, mask=mask)
    # A core less than NECK deep is not a maximum: an object that has no core of its own keeps its
    # number from the mask.
    uncut = measure.label(mask & (labels == 0))
    labels = np.where(uncut > 0, uncut + labels.max(), labels)
    return _without_scraps(labels)


def _without_scraps(labels: NDArray[np.int_]) -> Labels:
    """Drop small objects, and those that the edge cuts to less than half of a usual one."""
    regions = measure.regionprops(labels)
    half = float(np.median([region.area for region in regions])) / 2
    least = _least_area(labels.size)
    height, width = labels.shape
    scraps = []
    for region in regions:
        top, left, bottom, right = region.bbox
        at_edge = top == 0 or left == 0 or bottom == height or right == width
        if region.area < least or (at_edge and region.area < half):
            scraps.append(region.label)
    kept, _, _ = segmentation.relabel_sequential(np.where(np.isin(labels, scraps), 0, labels))
    return np.asarray(kept, dtype=np.int32)


def _least_area(size: int) -> int:
    return max(LEAST_PIXELS, round(size * LEAST_PART))


def _areas(areas: NDArray[np.float64]) -> Areas:
    if not areas.size:
        return Areas()
    return Areas(
        smallest=float(areas.min()),
        median=float(np.median(areas)),
        mean=float(areas.mean()),
        largest=float(areas.max()),
    )
