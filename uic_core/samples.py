"""Detections and segmentations of a few test images, for the report's pictures: an .npz without pickle.

The files hold the annotations too, so that the pictures need only these files and the images. Imports no torch,
because the report uses this.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from uic_core.errors import InputError
from uic_core.files import DAMAGED, atomic

COUNT = 6
"""Number of images kept per test set."""


@dataclass(frozen=True)
class Detected:
    """One image with its annotated and its detected objects; boxes are as in uic_core.data.voc.

    Attributes:
        path: file of the image.
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
    """Annotated and predicted mask of one image, uint8 [height, width]: classes, or 255 for ignored pixels."""

    path: str
    truth: NDArray[np.uint8]
    mask: NDArray[np.uint8]


Kind = TypeVar("Kind", Detected, Segmented)

# kind of the dtype and number of dimensions of each array
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
        run: name of the run.
        fingerprint: fingerprint of the data set, as in the metrics.
        classes: class names; labels and mask values are positions in this tuple.
        ids: image ids, in the order of `images`.
    """

    run: str
    fingerprint: str
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    images: tuple[Kind, ...]

    def save(self, path: Path) -> None:
        """Write the file. Equal samples give equal bytes."""
        names = ("run", "fingerprint", "classes", "ids")
        arrays: dict[str, Any] = {name: np.array(getattr(self, name)) for name in names}
        for number, image in enumerate(self.images):
            arrays |= {f"{number}.{each.name}": np.array(getattr(image, each.name)) for each in fields(image)}
        with atomic(path) as temporary:
            np.savez_compressed(temporary, **arrays)


def choose(ids: Sequence[str]) -> tuple[str, ...]:
    """Choose COUNT images at random, in the order of the list, the same for every run; a shorter list is kept whole."""
    places = np.random.default_rng(0).permutation(len(ids))[:COUNT]
    return tuple(ids[place] for place in sorted(places))


def load(path: Path, kind: type[Kind]) -> Samples[Kind]:
    """Read a file that `Samples.save` wrote. Pickled content is refused.

    Raises:
        InputError: the file is missing or damaged, or its arrays are not those of `kind` or do not fit together.
    """
    remedy = "delete the file and run snakemake again"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            ids, classes = (tuple(arrays[name].tolist()) for name in ("ids", "classes"))
            images = tuple(_image(arrays, number, kind) for number in range(len(ids)))
            found = Samples(str(arrays["run"]), str(arrays["fingerprint"]), classes, ids, images)
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; run snakemake to make it") from error
    except DAMAGED as error:
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
