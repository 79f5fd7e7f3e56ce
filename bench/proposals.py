"""Selective search and the detector's input: use of all cores, covered objects, time spent waiting for images.

Uses the demo's settings, and enough of its scenes that the last search of a pass matters little. Takes four minutes.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from bench.measure import PAIRS, Bars, interleaved, ratios, seconds
from uic_core import checkpoint, evaluations, models, recipe
from uic_core.data import synthetic, voc
from uic_core.data.dataset import Dataset
from uic_core.methods.random import Random
from uic_core.openmmlab import proposals
from uic_core.strict_yaml import read_yaml

SIZES = {"trainval_images": 120, "test_images": 12}
ITERATIONS = 30
WORKERS = 2


def main() -> None:
    """Print the bars."""
    bars = Bars("proposals")
    cores = len(os.sched_getaffinity(0))
    demo = read_yaml(Path(__file__).parents[1] / "config" / "demo.yaml")
    settings = recipe.parse(evaluations.Proposals, demo["evaluations"]["proposals"], "bench")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        section = demo["datasets"]["voc07"] | SIZES | {"root": str(folder / "voc")}
        written = {"name": "voc07", "generated": True, "seed": 0, "section": section}
        synthetic.generate(recipe.parse(Dataset, written, "bench"), cores)
        root = folder / "voc"
        found = {split: proposals.make(root, split, settings, cores) for split in ("trainval", "test")}
        for split, each in found.items():
            each.save(folder / f"{split}.npz")
        times = interleaved(
            {
                "one process": seconds(lambda: proposals.make(root, "trainval", settings, 1)),
                f"{cores} processes": seconds(lambda: proposals.make(root, "trainval", settings, cores)),
            },
            PAIRS,
        )
        one, every = times.values()
        print(f"  images a second: {SIZES['trainval_images'] / min(every):.2f} with {cores} processes")
        shares = [ratio / cores for ratio in ratios(one, every)]
        bars.at_least("proposals-share-of-cores-times-one-core-s-rate", shares, 0.95)
        bars.at_least("proposals-recall-at-iou-0.5", [covered(root, found["trainval"])], 0.8)
        bars.at_most("detector-share-of-data-time", [data_time(folder, demo)], 10)
    bars.close()


def covered(root: Path, found: proposals.ProposedBoxes) -> float:
    """Return the share of annotated objects (not difficult) that a proposal overlaps by an IoU of .5."""
    annotations = [voc.read_annotation(voc.annotation_path(root, image)) for image in found.ids]
    boxes = [found.of(position) for position in range(len(found.ids))]
    return proposals.recall(boxes, [each.boxes[~each.difficult] for each in annotations], 0.5)


def data_time(folder: Path, demo: dict[str, dict[str, dict[str, object]]]) -> float:
    """Return the percentage of training that the detector waits for images, as its stage prints; two workers."""
    made_by = recipe.parse(Random, demo["runs"]["random_sobel"], "bench")
    torch.manual_seed(0)
    network = models.build("alexnet", classes=made_by.classes, image_size=made_by.image_size, sobel=True)
    checkpoint.save(folder / "checkpoint.safetensors", network, made_by, {})
    protocol = demo["evaluations"]["detection"] | {"iterations": ITERATIONS, "lr": 0.001, "lr_steps": []}
    recipe.save(recipe.parse(evaluations.Detection, protocol, "bench"), folder / "detection.yaml")
    command = [sys.executable, "-m", "uic_core.openmmlab.detection", "--run", "bench", "--threads", str(WORKERS + 1)]
    for option, path in {
        "checkpoint": "checkpoint.safetensors", "protocol": "detection.yaml", "voc": "voc", "out": "detection.json",
        "train-proposals": "trainval.npz", "test-proposals": "test.npz", "samples": "samples.npz", "work-dir": "work",
    }.items():  # fmt: skip
        command += [f"--{option}", str(folder / path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True)
    match = re.search(r"waiting for data: ([\d.]+) %", told.stdout + told.stderr)
    assert match is not None
    return float(match[1])


if __name__ == "__main__":
    main()
