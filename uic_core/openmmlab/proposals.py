"""Stage `proposals`: run selective search on a VOC07 split, or read the boxes that Fast R-CNN's
authors found with it and published as MATLAB files. The same inputs give the same bytes.

A proposal file is an .npz without pickle: `ids` (unicode), `offsets` int64 [images + 1], `boxes` float32 [total, 4],
`fingerprint` of its split, `settings` as JSON: of published boxes the SHA-256 of their file. Boxes are left, top,
right, bottom in the original image's pixels, counted from 0, last pixel included, like annotations (uic_core.data.voc).
"""

from __future__ import annotations

import ctypes
import json
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from uic_core import evaluations, recipe
from uic_core.arguments import add_checked, stage_parser
from uic_core.data import matlab, reader, stamps, voc
from uic_core.data.boxes import overlaps
from uic_core.errors import InputError, stage
from uic_core.evaluations.detection import SOURCE
from uic_core.files import DAMAGED, atomic, stamp, unchanged, write_json
from uic_core.run import cpus

_MIN_PUBLISHED_SIDE = 2


@dataclass(frozen=True)
class ProposedBoxes:
    """Candidate boxes of a split; image i has rows offsets[i] … offsets[i + 1] − 1 of `boxes`, best first."""

    ids: tuple[str, ...]
    offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    fingerprint: str
    settings: dict[str, Any]

    def of(self, position: int) -> NDArray[np.float32]:
        """Boxes of the image at `position` of the list, float32 [n, 4]."""
        return self.boxes[self.offsets[position] : self.offsets[position + 1]]

    def save(self, path: Path) -> None:
        """Write the file; equal proposals give equal bytes."""
        settings = json.dumps(self.settings, sort_keys=True)
        with atomic(path) as temporary:
            np.savez_compressed(
                temporary,
                ids=np.array(self.ids),
                offsets=self.offsets,
                boxes=self.boxes,
                fingerprint=np.array(self.fingerprint),
                settings=np.array(settings),
            )


def load(path: Path, fingerprint: str | None, sizes: Mapping[str, tuple[int, int]]) -> ProposedBoxes:
    """Read a proposal file and check that it belongs to the given images.

    Args:
        fingerprint: the split's, as `fingerprint_of` returns it; None compares none.
        sizes: (width, height) of every image, in the list's order.

    Raises:
        InputError: the file is missing, damaged, made for other images or from other annotations, or a box is outside
            its image.
    """
    remake = "delete it and run snakemake again"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            settings = json.loads(str(arrays["settings"]))
            if settings.keys() != {"source"}:
                recipe.parse(evaluations.Proposals, settings, f"{path}: settings")
            found = ProposedBoxes(
                tuple(arrays["ids"].tolist()),
                arrays["offsets"].astype(np.int64),
                arrays["boxes"].astype(np.float32),
                str(arrays["fingerprint"]),
                settings,
            )
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); {remake}") from error
    except DAMAGED as error:
        raise InputError(f"{path}: is no proposal file ({error}); {remake}") from error
    if found.ids != tuple(sizes):
        other = next((a for a, b in zip(found.ids, sizes, strict=False) if a != b), "")
        where = f"first difference: {other}" if other else f"{len(found.ids)} images, the list has {len(sizes)}"
        raise InputError(f"{path}: proposals were made for another image list ({where}); {remake}")
    if fingerprint is not None and found.fingerprint != fingerprint:
        raise InputError(
            f"{path}: proposals were made from other data (fingerprint {found.fingerprint}, now {fingerprint}); "
            f"{remake}"
        )
    whole = found.boxes.ndim == 2 and found.boxes.shape[1] == 4 and found.offsets.shape == (len(sizes) + 1,)
    if (
        not whole
        or found.offsets[0] != 0
        or found.offsets[-1] != len(found.boxes)
        or (np.diff(found.offsets) < 0).any()
    ):
        raise InputError(f"{path}: offsets and boxes do not fit together; {remake}")
    for position, (image, size) in enumerate(sizes.items()):
        _check_inside(found.of(position), size, f"{path}: {image}", remake)
    return found


def open_for(root: Path, split: str, path: Path, checked: Path | None = None) -> ProposedBoxes:
    """`load` a proposal file for the images of a VOC07 split; `checked` is as in `fingerprint_of`."""
    return load(path, fingerprint_of(root, split, checked), _sizes(root, voc.read_list(root, split)))


def fingerprint_of(root: Path, split: str, checked: Path | None) -> str:
    """Return a VOC07 split's fingerprint, with `stamps.by_content`."""
    return stamps.by_content(checked, split, voc.fingerprint(root, [split]))


def _check_inside(boxes: NDArray[np.floating], size: tuple[int, int], where: str, remedy: str) -> None:
    """Raises InputError: a box extends outside its image of `size` (width, height)."""
    left, top, right, bottom = boxes.T
    # this form counts NaN as outside, too
    inside = (left >= 0) & (top >= 0) & (left <= right) & (top <= bottom) & (right < size[0]) & (bottom < size[1])
    if not inside.all():
        box = ", ".join(f"{edge:g}" for edge in boxes[~inside][0])
        raise InputError(f"{where}: box ({box}) is not inside the image, {size[0]}×{size[1]}; {remedy}")


def search(path: Path, settings: evaluations.Proposals) -> NDArray[np.float32]:
    """Run selective search (Uijlings et al. 2013, OpenCV's implementation) on one image.

    OpenCV ranks regions with libc's rand(). It is seeded here from the file's name, so that the boxes depend neither
    on the order of images nor on the number of processes.

    Returns:
        float32 [n, 4], n ≤ max_boxes, best first, without duplicates, every side at least min_side pixels.

    Raises:
        InputError: the image is missing or damaged.
    """
    cv2.setNumThreads(1)
    ctypes.CDLL(None).srand(zlib.crc32(f"{settings.seed} {path.stem}".encode()))
    image = reader.read_rgb(path)
    width, height = image.size
    pixels = np.asarray(reader.shorter_side(image, settings.shorter_side))[:, :, ::-1]
    algorithm = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    algorithm.setBaseImage(np.ascontiguousarray(pixels))
    if settings.mode == "fast":
        algorithm.switchToSelectiveSearchFast()
    else:
        algorithm.switchToSelectiveSearchQuality()
    left, top, across, down = np.asarray(algorithm.process(), np.float64).T
    x, y = width / pixels.shape[1], height / pixels.shape[0]
    edges = np.stack([left * x, top * y, (left + across) * x, (top + down) * y], axis=1).round()
    boxes = edges - np.array([0, 0, 1, 1])
    boxes = boxes[np.minimum(edges[:, 2] - edges[:, 0], edges[:, 3] - edges[:, 1]) >= settings.min_side]
    first = np.unique(boxes, axis=0, return_index=True)[1]
    return np.asarray(boxes[np.sort(first)][: settings.max_boxes], np.float32)


def make(
    root: Path, split: str, settings: evaluations.Proposals, processes: int, checked: Path | None = None
) -> ProposedBoxes:
    """Make a VOC07 split's proposals: read `settings.source`, or search in `processes` processes; print which.

    `checked` is as in `fingerprint_of`.

    Raises:
        InputError: an image cannot be read, or from `published`.
    """
    ids = voc.read_list(root, split)
    fingerprint = fingerprint_of(root, split, checked)
    digest = ""
    if settings.source:
        path = settings.published(split)
        with unchanged(source=path) as hashes:
            found = published(path, _sizes(root, ids))
        digest = hashes["source"]
        print(f"{path}: {len(ids)} images")
    else:
        started = time.monotonic()
        found = _search_all([voc.image_path(root, image) for image in ids], settings, processes)
        print(f"{len(ids) / (time.monotonic() - started):.2f} images/s with {processes} processes")
    offsets = np.concatenate([[0], np.cumsum([len(boxes) for boxes in found])]).astype(np.int64)
    return ProposedBoxes(ids, offsets, np.concatenate(found), fingerprint, settings.made_by(digest))


def _search_all(paths: list[Path], settings: evaluations.Proposals, processes: int) -> list[NDArray[np.float32]]:
    one = partial(search, settings=settings)
    if processes == 1:
        return [one(path) for path in paths]
    with cpus.pool(processes, "fork") as pool:
        # chunks of one image: searches are slow, and larger chunks would leave processes idle at the end
        return list(pool.map(one, paths))


def _sizes(root: Path, ids: Sequence[str]) -> dict[str, tuple[int, int]]:
    """(width, height) of every image, from the annotations."""
    annotations = {image: voc.read_annotation(voc.annotation_path(root, image)) for image in ids}
    return {image: (annotation.width, annotation.height) for image, annotation in annotations.items()}


def published(path: Path, sizes: Mapping[str, tuple[int, int]]) -> list[NDArray[np.float32]]:
    """Read one of Fast R-CNN's proposal files: cell arrays `images` (ids) and `boxes`, one matrix [n, 4] per image.

    Boxes in the file are top, left, bottom, right, counted from 1, last pixel included.

    Args:
        sizes: (width, height) of the images to return, in this order.

    Returns:
        Each image's boxes in the format of `ProposedBoxes`, in the file's order. As in Fast R-CNN, duplicates and boxes
        with a side below 2 pixels are removed.

    Raises:
        InputError: the file is missing, is not a proposal file, has other images, or a box is outside its image.
    """
    remedy = "name the folder that Fast R-CNN's selective_search_data came in"
    found = matlab.variables(path, "images", "boxes")
    images, boxes = (found[name].ravel().tolist() for name in ("images", "boxes"))
    ids = [str(cell.item()) if isinstance(cell, np.ndarray) and cell.size == 1 else "" for cell in images]
    cells = {Path(image).stem: cell for image, cell in zip(ids, boxes, strict=False)}
    if len(ids) != len(boxes) or cells.keys() != sizes.keys() or len(ids) != len(sizes):
        other = min(cells.keys() ^ sizes.keys(), default="one of them twice")
        raise InputError(
            f"{path}: holds boxes of other images than the list ({len(boxes)} against {len(sizes)}, {other!r}); "
            f"{remedy}"
        )
    kept = []
    for image, size in sizes.items():
        cell = cells[image]
        if not (isinstance(cell, np.ndarray) and cell.ndim == 2 and cell.shape[1] == 4 and cell.dtype.kind in "uif"):
            raise InputError(f"{path}: {image}: is no matrix of boxes [n, 4]; {remedy}")
        ours = cell.astype(np.float64)[:, [1, 0, 3, 2]] - 1
        _check_inside(ours, size, f"{path}: {image}", remedy)
        ours = ours[np.sort(np.unique(ours, axis=0, return_index=True)[1])]
        large = (ours[:, 2:] - ours[:, :2] + 1 >= _MIN_PUBLISHED_SIDE).all(axis=1)
        kept.append(np.asarray(ours[large], np.float32))
    return kept


def recall_on(root: Path, proposals: ProposedBoxes) -> tuple[float, int]:
    """Compute recall (0…1) at IoU .5 over VOC07's objects that are not difficult, and the number of these objects."""
    annotations = [voc.read_annotation(voc.annotation_path(root, image)) for image in proposals.ids]
    truths = [annotation.boxes[~annotation.difficult] for annotation in annotations]
    found = [proposals.of(position) for position in range(len(truths))]
    return recall(found, truths, 0.5), sum(map(len, truths))


def recall(proposals: Sequence[NDArray[np.float32]], truths: Sequence[NDArray[np.float32]], iou: float) -> float:
    """Share (0…1) of true boxes that some proposal of their image overlaps by at least `iou`.

    Both sequences hold one array [n, 4] per image, last pixel included. Without any true box the recall is 1.
    """
    covered = total = 0
    for boxes, truth in zip(proposals, truths, strict=True):
        total += len(truth)
        if len(boxes):
            covered += int((overlaps(truth, boxes).max(axis=1) >= iou).sum())
    return covered / total if total else 1.0


def main(arguments: list[str] | None = None) -> None:
    """Make and write a split's proposals; print throughput and the recall of annotated objects."""
    parser = stage_parser("uic_core.openmmlab.proposals", __doc__)
    parser.add_argument("--protocol", required=True, type=Path)
    parser.add_argument("--voc", required=True, type=Path, help="the folder that holds VOC2007/")
    parser.add_argument("--split", required=True, choices=["trainval", "test"])
    parser.add_argument("--threads", type=int, default=1, help="processes; they change the time, not the boxes")
    add_checked(parser)
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args(arguments)
    with stage():
        settings = recipe.load(evaluations.Proposals, options.protocol)
        stamps.verify(options.checked, voc.files(options.voc))
        source, beside = settings.published(options.split), options.out.with_suffix(SOURCE)
        stamped = stamp(source)  # first: of a file that is replaced meanwhile, the new one is looked at again
        proposals = make(options.voc, options.split, settings, options.threads, options.checked)
        beside.unlink(missing_ok=True)  # of an earlier file
        proposals.save(options.out)
        if settings.source:
            write_json(beside, {"path": str(source), "stamp": stamped})
        images = len(proposals.ids)
        share, _ = recall_on(options.voc, proposals)
        print(f"{images} images, {len(proposals.boxes) / images:.0f} boxes an image, recall at IoU .5: {share:.3f}")


if __name__ == "__main__":
    main()
