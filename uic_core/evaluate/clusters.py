"""Stage `clusters`: compare a run's pseudo-labels with the annotated labels (Table 1's NMI, Figs. 3 and 4).

Expected for UIC with 3000 classes on ImageNet: NMI 38.5 %, mean class size 427. Takes minutes on one core.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from uic_core import checkpoint, recipe
from uic_core.arguments import stage_parser
from uic_core.data.index import Index
from uic_core.data.partition import class_sizes, group, nmi
from uic_core.errors import InputError, stage
from uic_core.evaluations import Clusters
from uic_core.evaluations.clusters import ClusterArrays
from uic_core.files import DAMAGED, RETRAIN, atomic, sha256, stamp, unchanged
from uic_core.run import metrics, trained


def read_labels(path: Path, images: int, classes: int) -> NDArray[np.int32]:
    """Read a run's labels.npy; refuse pickled content.

    Returns:
        int32 [images], 0..classes − 1.

    Raises:
        InputError: the file is missing, damaged or pickled, or its labels are not integers, have the wrong length, or
            are out of range.
    """
    try:
        # Memory-mapped, so that a damaged header cannot request more memory than the file has bytes.
        stored = np.lib.format.open_memmap(path, mode="r")
    except FileNotFoundError as error:
        raise InputError(f"{path}: is not there; run snakemake to make it") from error
    except DAMAGED as error:
        raise InputError(f"{path}: is no whole .npy file of numbers ({error}); {RETRAIN}") from error
    if stored.dtype.kind not in "iu" or stored.ndim != 1:
        raise InputError(
            f"{path}: holds {stored.dtype} of shape {list(stored.shape)}, expected int32 [{images}]; {RETRAIN}"
        )
    if len(stored) != images:
        raise InputError(f"{path}: labels {len(stored)} images, but the run trained on {images}; {RETRAIN}")
    low, high = int(stored.min()), int(stored.max())
    if low < 0 or high >= classes:
        raise InputError(f"{path}: labels from {low} to {high}, but the run has classes 0 to {classes - 1}; {RETRAIN}")
    return np.array(stored, np.int32)


def read_history(path: Path) -> dict[str, NDArray[Any]]:
    """Read a run's history.jsonl, which covers E epochs.

    Returns:
        `empty_by_epoch` int64 [E], the number of empty classes at the start of each epoch, and `nmi_by_epoch`
        float64 [E], 0..1, the NMI of each epoch's resulting labels with the annotated ones.

    Raises:
        InputError: as `trained.history`.
    """
    epochs = trained.history(path, "empty_classes", "nmi_annotated")
    return {
        "empty_by_epoch": np.array([epoch["empty_classes"] for epoch in epochs], np.int64),
        "nmi_by_epoch": np.array([epoch["nmi_annotated"] for epoch in epochs], np.float64),
    }


def class_entropies(labels: NDArray[np.integer], annotated: NDArray[np.integer], classes: int) -> NDArray[np.float64]:
    """Compute the entropy of the annotated labels within each pseudo-class, nats; 0 for an empty one.

    Args:
        labels: int [N], 0..classes − 1.
        annotated: int [N], ≥ 0.

    Returns:
        float64 [classes], ≥ 0.
    """
    width = int(annotated.max()) + 1
    pairs, counts = np.unique(labels.astype(np.int64) * width + annotated, return_counts=True)
    owner = pairs // width
    shares = counts / class_sizes(labels, classes)[owner]
    entropies = np.zeros(classes)
    np.add.at(entropies, owner, shares * np.log(1 / shares))
    return entropies


def size_entropy(sizes: NDArray[np.integer]) -> float:
    """Entropy of the class sizes divided by ln K: 1 if all sizes are equal, 0 if one class has all images."""
    shares = sizes[sizes > 0] / sizes.sum()
    return float((shares * np.log(1 / shares)).sum() / math.log(len(sizes)))


def choose_classes(
    sizes: NDArray[np.integer], entropies: NDArray[np.floating], protocol: Clusters
) -> NDArray[np.int64]:
    """Choose the classes for Fig. 4, lowest entropy first; ties go to the larger class, then to the lower number.

    Only classes with at least `min_images` members qualify. If fewer than `grid_classes` classes do, the minimum drops
    to the size of the `grid_classes`-th largest class, so the largest ones are shown. Empty classes are never shown.
    """
    ranked = np.sort(sizes[sizes > 0])[::-1]
    shown = min(protocol.grid_classes, len(ranked))
    bar = min(protocol.min_images, int(ranked[shown - 1]))
    order: NDArray[np.int64] = np.lexsort((np.arange(len(sizes)), -sizes, entropies))
    chosen: NDArray[np.int64] = order[sizes[order] >= bar][:shown]
    return chosen


def choose_images(
    labels: NDArray[np.integer], sizes: NDArray[np.integer], chosen: NDArray[np.integer], count: int
) -> NDArray[np.int64]:
    """Choose the shown images: positions [G, M], evenly spaced members of each class.

    The index is sorted by annotated class, so evenly spaced members show the annotated classes in proportion.
    M is `count`, or the size of the largest chosen class if that is less; -1 fills the rows of smaller ones.
    """
    grid = np.full((len(chosen), min(count, int(sizes[chosen].max()))), -1, np.int64)
    for row, number in zip(grid, chosen, strict=True):
        members = np.flatnonzero(labels == number)
        columns = min(count, len(members))
        row[:columns] = members[(2 * np.arange(columns) + 1) * len(members) // (2 * columns)]
    return grid


def evaluate(
    labels: NDArray[np.integer], index: Index, classes: int, protocol: Clusters
) -> tuple[dict[str, metrics.Value], ClusterArrays]:
    """Compute values and arrays for pseudo-labels [N] of an index's images; grid positions refer to this index.

    `entropy_of_sizes` is a share of ln K, the entropy of equal sizes. `lowest_entropy` is the entropy of the first
    shown class, `lowest_entropy/mean` the mean over all shown ones, nats.
    """
    sizes = class_sizes(labels, classes)
    entropies = class_entropies(labels, index.labels, classes)
    chosen = choose_classes(sizes, entropies, protocol)
    arrays = ClusterArrays(
        class_sizes=sizes,
        grid_classes=chosen,
        grid_images=choose_images(labels, sizes, chosen, protocol.grid_images),
        grid_entropy=entropies[chosen],
        grid_annotated=np.array([np.bincount(index.labels[labels == number]).argmax() for number in chosen]),
    )
    images = len(labels)
    values = {
        "nmi": metrics.Value(
            value=100 * nmi(group(labels.astype(np.int32), classes), index.labels), unit="%", n=images
        ),
        "empty_classes": metrics.Value(value=int((sizes == 0).sum()), unit="classes", n=classes),
        "entropy_of_sizes": metrics.Value(value=100 * size_entropy(sizes), unit="%", n=classes),
        "largest": metrics.Value(value=int(sizes.max()), unit="images"),
        "smallest": metrics.Value(value=int(sizes.min()), unit="images"),
        "mean": metrics.Value(value=images / classes, unit="images"),
        "lowest_entropy": metrics.Value(value=float(entropies[chosen[0]]), unit="nats", n=int(sizes[chosen[0]])),
        "lowest_entropy/mean": metrics.Value(value=float(entropies[chosen].mean()), unit="nats", n=len(chosen)),
    }
    return values, arrays


def main(arguments: list[str] | None = None) -> None:
    """Compare pseudo-labels with annotations; write the metrics JSON and the figures' arrays."""
    parser = stage_parser("uic_core.evaluate.clusters", main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="its recipe says what was labelled, and its K")
    parser.add_argument("--labels", type=Path, required=True, help="the run's labels.npy")
    parser.add_argument("--history", type=Path, required=True, help="the run's history.jsonl")
    parser.add_argument("--protocol", type=Path, required=True, help="the config's clusters section")
    parser.add_argument("--train-index", type=Path, required=True, help="index of all training images")
    parser.add_argument("--out", type=Path, required=True, help="metrics JSON to write")
    parser.add_argument("--arrays", type=Path, required=True, help="arrays of Figs. 3 and 4 to write, .npz")
    parser.add_argument("--run", required=True, help="the run's name")
    options = parser.parse_args(arguments)
    with stage():
        protocol = recipe.load(Clusters, options.protocol)
        index = Index.load(options.train_index)
        _, trained_by, origin = checkpoint.of_run(options.run, options.checkpoint)
        if reason := protocol.refuses(options.run, trained_by):
            raise InputError(f"{options.checkpoint}: {reason}")
        assert isinstance(trained_by, recipe.Recipe)
        labelled = index.subset(trained_by.images_of(0), trained_by.seed)
        stamped = {"labels": stamp(options.labels), "history": stamp(options.history)}
        with unchanged(labels=options.labels, history=options.history) as hashes:
            labels = read_labels(options.labels, len(labelled), trained_by.classes)
            history = read_history(options.history)
        for name, digest in hashes.items():
            trained.check(getattr(options, name), digest)
        values, arrays = evaluate(labels, labelled, trained_by.classes, protocol)
        empty = history["empty_by_epoch"]  # at the start of each epoch; empty for an untrained run
        for name, count in {"most": empty.max(initial=0), "last": empty[-1:].sum()}.items():
            values[f"empty_classes/{name}"] = metrics.Value(value=int(count), unit="classes", n=len(empty))
        with atomic(options.arrays) as temporary:
            np.savez_compressed(temporary, **(_in_whole_index(arrays, labelled, index) | history))
        metrics.record(
            options.out, "clusters", origin,
            dataset=metrics.Dataset(name=index.name, fingerprint=index.fingerprint, sizes={"train": len(labelled)}),
            values=values,
            protocol={**protocol.model_dump(), "nmi": "geometric normaliser", "classes": trained_by.classes},
            seed=trained_by.seed, files=hashes | {"arrays": sha256(options.arrays)}, stamps=stamped,
        )  # fmt: skip
        large = int((arrays.class_sizes >= protocol.min_images).sum())
        if large < len(arrays.grid_classes):
            print(f"Fig. 4: classes of {protocol.min_images} images or more: {large}, so smaller ones are shown too")
        print(f"{options.run}: NMI {values['nmi'].value:.1f} %, {values['empty_classes'].value:.0f} empty classes")


def _in_whole_index(arrays: ClusterArrays, labelled: Index, index: Index) -> dict[str, Any]:
    """The arrays by name, with grid positions in the whole index instead of its labelled subset."""
    place = {path: position for position, path in enumerate(index.paths.tolist())}
    shown = labelled.paths[arrays.grid_images]
    positions = np.array([[place[path] for path in row] for row in shown.tolist()])
    positions[arrays.grid_images < 0] = -1
    return {**asdict(arrays), "grid_images": positions}


if __name__ == "__main__":
    main()
