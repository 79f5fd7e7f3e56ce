"""What detection and segmentation leave of a few test images, for the report's pictures: an .npz without pickle.

The annotation stands beside what was found, so that the pictures need nothing but these files and the images.
Imports no torch: the report reads this.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from uic_core.errors import InputError
from uic_core.files import atomic

COUNT = 6
"""Images kept of a test set."""


@dataclass(frozen=True)
class Detected:
    """One image with its annotated and its detected objects; boxes as in uic_core.data.voc.

    Attributes:
        path: the image's file.
        truth_boxes, truth_labels, truth_difficult: float32 [n, 4], int64 [n], bool [n].
        boxes, labels, scores: float32 [m, 4], int64 [m], float32 [m] in 0…1, best first.
    """

    path: str
    truth_boxes: NDArray[np.float32]
    truth_labels: NDArray[np.int64]
    truth_difficult: NDArray[np.bool_]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]


@dataclass(frozen=True)
class Segmented:
    """One image's annotated and predicted mask, uint8 [height, width]: classes, 255 where nothing is counted."""

    path: str
    truth: NDArray[np.uint8]
    mask: NDArray[np.uint8]


Kind = TypeVar("Kind", Detected, Segmented)

# kind of the dtype and number of dimensions
_FORMS: dict[type, dict[str, tuple[str, int]]] = {
    Detected: {
        "path": ("U", 0), "truth_boxes": ("f", 2), "truth_labels": ("i", 1), "truth_difficult": ("b", 1),
        "boxes": ("f", 2), "labels": ("i", 1), "scores": ("f", 1),
    },
    Segmented: {"path": ("U", 0), "truth": ("u", 2), "mask": ("u", 2)},
}  # fmt: skip


@dataclass(frozen=True)
class Samples(Generic[Kind]):
    """Sample images of one run.

    Attributes:
        run: whose checkpoint it was.
        fingerprint: of the data set, as in the metrics.
        classes: names; labels and mask values are positions in them.
        ids: of the images, in the order of `images`.
    """

    run: str
    fingerprint: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    images: tuple[Kind, ...]

    def save(self, path: Path) -> None:
        """Write the file; equal samples give equal bytes."""
        names = ("run", "fingerprint", "classes", "ids")
        arrays: dict[str, Any] = {name: np.array(getattr(self, name)) for name in names}
        for number, image in enumerate(self.images):
            arrays |= {f"{number}.{each.name}": np.array(getattr(image, each.name)) for each in fields(image)}
        with atomic(path) as temporary:
            np.savez_compressed(temporary, **arrays)


def choose(ids: Sequence[str]) -> tuple[str, ...]:
    """COUNT images of a list by chance, in its order, the same ones for every run; all of a shorter list."""
    places = np.random.default_rng(0).permutation(len(ids))[:COUNT]
    return tuple(ids[place] for place in sorted(places))


def load(path: Path, kind: type[Kind]) -> Samples[Kind]:
    """Read what `Samples.save` wrote; pickled content is refused.

    Raises:
        InputError: missing, damaged, or with arrays that are not those of `kind` or do not fit together.
    """
    remedy = "delete the file and run snakemake again"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            ids, classes = (tuple(arrays[name].tolist()) for name in ("ids", "classes"))
            images = tuple(_image(arrays, number, kind) for number in range(len(ids)))
            found = Samples(str(arrays["run"]), str(arrays["fingerprint"]), classes, ids, images)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; run snakemake to make it") from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, TypeError) as error:
        raise InputError(f"{path}: does not hold samples of images ({error}); {remedy}") from error
    if not found.images or not all(_fits(image, len(classes)) for image in found.images):
        raise InputError(f"{path}: boxes, masks and classes do not fit together; {remedy}")
    return found


def _image(arrays: Any, number: int, kind: type[Kind]) -> Kind:
    values: dict[str, Any] = {}
    for name, (letter, dimensions) in _FORMS[kind].items():
        value = arrays[f"{number}.{name}"]
        if value.dtype.kind != letter or value.ndim != dimensions:
            raise ValueError(f"{number}.{name} has the form {value.dtype}{list(value.shape)}")
        values[name] = value if dimensions else str(value)
    return kind(**values)


def _fits(image: Detected | Segmented, classes: int) -> bool:
    if isinstance(image, Segmented):
        known = (image.mask < classes) & (image.truth.shape == image.mask.shape)
        return bool(known.all())
    labels = np.concatenate([image.truth_labels, image.labels])
    lengths = len(image.truth_boxes) == len(image.truth_labels) == len(image.truth_difficult)
    lengths &= len(image.boxes) == len(image.labels) == len(image.scores)
    wide = image.truth_boxes.shape[1:] == image.boxes.shape[1:] == (4,)
    return lengths and wide and bool(((labels >= 0) & (labels < classes)).all())
