"""Stage `proposals`: selective search over a VOC07 split (PROTOCOL section 6), the same bytes every time.

A proposal file is an .npz without pickle: `ids` (unicode), `offsets` int64 [images + 1], `boxes` float32 [total, 4],
`fingerprint` of the split it was made from, `settings` as JSON. Boxes are left, top, right, bottom in the original
image's pixels, counted from 0, last pixel included, as annotations are (uic_core.data.voc).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import multiprocessing
import time
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from uic_core import config, recipe
from uic_core.data import reader, voc
from uic_core.data.boxes import overlaps
from uic_core.errors import InputError, stage
from uic_core.files import atomic


@dataclass(frozen=True)
class Proposals:
    """Candidate boxes of a split; image i has rows offsets[i]…offsets[i + 1] of `boxes`, best first."""

    ids: tuple[str, ...]
    offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    fingerprint: str
    settings: config.Proposals

    def of(self, position: int) -> NDArray[np.float32]:
        """Boxes of the image at `position` of the list, float32 [n, 4]."""
        return self.boxes[self.offsets[position] : self.offsets[position + 1]]

    def save(self, path: Path) -> None:
        """Write the file; equal proposals give equal bytes."""
        settings = json.dumps(self.settings.model_dump(), sort_keys=True)
        with atomic(path) as temporary:
            np.savez_compressed(
                temporary,
                ids=np.array(self.ids),
                offsets=self.offsets,
                boxes=self.boxes,
                fingerprint=np.array(self.fingerprint),
                settings=np.array(settings),
            )


def load(path: Path, fingerprint: str, sizes: Mapping[str, tuple[int, int]]) -> Proposals:
    """Read a proposal file and check that it belongs to the images at hand (FAULTS row 18).

    Args:
        fingerprint: `voc.fingerprint` of the split.
        sizes: (width, height) of every image, in the list's order.

    Raises:
        InputError: missing, damaged, made for other images or from other annotations, or a box outside its image.
    """
    remake = "delete it and run snakemake again"
    try:
        with np.load(path, allow_pickle=False) as arrays:
            settings = recipe.parse(config.Proposals, json.loads(str(arrays["settings"])), f"{path}: settings")
            found = Proposals(
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
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path}: is no proposal file ({error}); {remake}") from error
    if found.ids != tuple(sizes):
        other = next((a for a, b in zip(found.ids, sizes, strict=False) if a != b), "")
        where = f"first difference: {other}" if other else f"{len(found.ids)} images, the list has {len(sizes)}"
        raise InputError(f"{path}: proposals were made for another image list ({where}); {remake}")
    if found.fingerprint != fingerprint:
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
    for position, (image, (width, height)) in enumerate(sizes.items()):
        left, top, right, bottom = found.of(position).T
        # written so that NaN is outside too
        inside = (left >= 0) & (top >= 0) & (left <= right) & (top <= bottom) & (right < width) & (bottom < height)
        if not inside.all():
            box = ", ".join(f"{edge:g}" for edge in found.of(position)[~inside][0])
            raise InputError(f"{path}: {image}: box ({box}) is not inside the image, {width}×{height}; {remake}")
    return found


def search(path: Path, settings: config.Proposals) -> NDArray[np.float32]:
    """Selective search (Uijlings et al. 2013, by OpenCV) in one image.

    OpenCV ranks regions with libc's rand(): it is seeded here by the file's name, so that the boxes depend neither
    on the order nor on the number of processes.

    Returns:
        float32 [n, 4], n ≤ max_boxes, best first, no box twice, every side at least min_side pixels.

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


def make(root: Path, split: str, settings: config.Proposals, processes: int) -> Proposals:
    """Search every image of a VOC07 split, one image a task, over `processes` processes."""
    ids = voc.read_list(root, "Main", split)
    fingerprint = voc.fingerprint(root, 2007, [split])
    paths = [voc.image_path(root, 2007, image) for image in ids]
    one = partial(search, settings=settings)
    if processes == 1:
        found = [one(path) for path in paths]
    else:
        with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("fork")) as pool:
            found = list(pool.map(one, paths))
    offsets = np.concatenate([[0], np.cumsum([len(boxes) for boxes in found])]).astype(np.int64)
    return Proposals(ids, offsets, np.concatenate(found), fingerprint, settings)


def recall(proposals: Sequence[NDArray[np.float32]], truths: Sequence[NDArray[np.float32]], iou: float) -> float:
    """Share (0…1) of true boxes that some proposal of their image overlaps by at least `iou`.

    Both sequences hold one array [n, 4] an image, last pixel included; no true box at all gives 1.
    """
    covered = total = 0
    for boxes, truth in zip(proposals, truths, strict=True):
        total += len(truth)
        if len(boxes):
            covered += int((overlaps(truth, boxes).max(axis=1) >= iou).sum())
    return covered / total if total else 1.0


def main(arguments: list[str] | None = None) -> None:
    """Search a split and write its proposals; prints throughput and the recall on annotated objects."""
    parser = argparse.ArgumentParser(prog="python -m uic_core.openmmlab.proposals", description=__doc__)
    parser.add_argument("--protocol", required=True, type=Path)
    parser.add_argument("--voc", required=True, type=Path, help="the folder that holds VOC2007/")
    parser.add_argument("--split", required=True, choices=["trainval", "test"])
    parser.add_argument("--threads", type=int, default=1, help="processes; they change the time, not the boxes")
    parser.add_argument("--out", required=True, type=Path)
    options = parser.parse_args(arguments)
    with stage():
        settings = recipe.load(config.Proposals, options.protocol)
        started = time.monotonic()
        proposals = make(options.voc, options.split, settings, max(1, options.threads))
        seconds = time.monotonic() - started
        proposals.save(options.out)
        images = len(proposals.ids)
        annotations = [voc.read_annotation(voc.annotation_path(options.voc, image)) for image in proposals.ids]
        share = recall(
            [proposals.of(position) for position in range(images)],
            [annotation.boxes[~annotation.difficult] for annotation in annotations],
            0.5,
        )
        print(
            f"{images} images, {len(proposals.boxes) / images:.0f} boxes an image, recall at IoU .5: {share:.3f}, "
            f"{images / seconds:.2f} images/s with {max(1, options.threads)} processes"
        )


if __name__ == "__main__":
    main()
