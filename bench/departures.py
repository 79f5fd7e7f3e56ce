"""Measure the effect of some departures from the predecessors' code: the numbers that docs/protocol.md quotes.

`python -m bench.departures` prints all of them in a few minutes, or only the named parts. There are no bars:
departures are reported, not judged. The photographs are scikit-learn's two (640×427 pixels); labelled images are
drawn as in the demo, four times as large.
"""

from __future__ import annotations

import math
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from bench.measure import processor
from uic_core.data import partition, reader, shapes
from uic_core.data.augment import CROP_UNIFORMS, crop_box, gaussian_blur, normalize
from uic_core.data.crop import crop
from uic_core.data.index import Index, build_folder
from uic_core.evaluate.probes import Probes
from uic_core.evaluations import LinearProbe
from uic_core.methods import deepcluster, order
from uic_core.models import build
from uic_core.run import randomness

PROBE = LinearProbe.model_validate(
    {
        "data": "imagenet",
        "layers": {"alexnet": [f"conv{number}" for number in range(1, 6)]},
        "crop": {"alexnet": "random_crop"},
    }
    | {"images": {"alexnet": 0}, "val_images": {"alexnet": 0}, "epochs": 6, "batch_size": 64, "lr": 0.005}
    | {"lr_steps": [3, 5], "momentum": 0.9, "weight_decay": 0.0, "batch_norm": False, "seed": 0}
)
CLASSES, TRAIN, VAL, SEEDS = 20, 400, 200, (0, 1)
SIDE, RESIZE = 64, 73


def sampler(images: int = 1_281_167, classes: int = 10_000) -> None:
    """Print DeepCluster's draws per class against class sizes, for increasing spread of the sizes."""
    random = np.random.default_rng(0)
    for sigma in (0.2, 0.3, 0.5, 0.8, 1.2):
        weights = np.exp(random.normal(0, sigma, classes))
        values = random.choice(classes, images, p=weights / weights.sum()).astype(np.int32)
        groups = partition.group(values, classes, random)
        meant = order.Balanced(groups, 0, 0)
        drawn = [
            np.bincount(each.draw(0, images)[1], minlength=classes)[groups.sizes > 0]
            for each in (meant, deepcluster.SortedList(meant, values, classes))
        ]
        ours, theirs = (np.corrcoef(counts, groups.sizes[groups.sizes > 0])[0, 1] for counts in drawn)
        print(
            f"sizes ± {groups.sizes.std() / groups.sizes.mean():.2f} of their mean: correlation of draws with size "
            f"{theirs:.3f} (ours {ours:.3f}), draws a class {drawn[1].min()} to {drawn[1].max()} (ours "
            f"{drawn[0].min()} to {drawn[0].max()}), images seen {meant.coverage():.2f}"
        )


def _photographs() -> list[Image.Image]:
    """Return the two photographs, and a mosaic of four of them for crops of 672 pixels and more."""
    china, flower = (np.asarray(image) for image in load_sample_images().images)
    mosaic = np.vstack([np.hstack([china, flower]), np.hstack([flower[:, ::-1], china[:, ::-1]])])
    return [Image.fromarray(pixels) for pixels in (china, flower, mosaic)]


def _read(path: Path, box: reader.Box, size: int, *, reduced: bool) -> NDArray[np.int64]:
    """Make a crop as the loader does, from a file decoded at reduced or full size: [S, S, 3]."""
    pixels = np.array(reader.read_rgb(path))  # a copy: Pillow's memory is read-only
    if reduced:
        pixels, box = reader.read_part(path, lambda *_: box, size)
    made = torch.empty(size, size, 3, dtype=torch.uint8)
    crop(pixels, box, made)
    return made.numpy().astype(np.int64)


def decoding(folder: Path, crops: int = 400) -> None:
    """Print grey-level differences of crops from JPEGs decoded at reduced and full size, by reduction."""
    files = []
    for number, image in enumerate(_photographs()):
        files.append(folder / f"{number}.jpg")
        image.save(files[-1], quality=95)
    for size, chosen in ((64, files[:2]), (96, files[:2]), (224, files[2:])):
        differences: dict[int, list[float]] = {}
        numbers = randomness.uniforms(0, 0, np.arange(crops), CROP_UNIFORMS)
        for number, u in enumerate(numbers):
            path = chosen[number % len(chosen)]
            with Image.open(path) as image:
                box = crop_box(image.width, image.height, u)
            oversize = min(box[2] - box[0], box[3] - box[1]) / size
            reduction = next((factor for factor in (8, 4, 2) if oversize >= 1.5 * factor), 1)
            apart = np.abs(_read(path, box, size, reduced=True) - _read(path, box, size, reduced=False))
            differences.setdefault(reduction, []).append(float(apart.mean()))
        for reduction, found in sorted(differences.items()):
            print(
                f"crops of {size} pixels, file decoded at 1/{reduction} ({len(found)} crops): mean difference "
                f"{np.mean(found):.2f} grey levels of 255, at most {np.max(found):.2f} in a crop"
            )


def _scenes(folder: Path, images: int, seed: int) -> Index:
    """Draw labelled JPEGs of 288 to 400 pixels a side, as in the demo; existing ones are reused."""
    for number in range(0 if folder.exists() else images):
        random = np.random.default_rng([seed, number])
        width, height = random.integers(288, 401, 2).tolist()
        radius = min(width, height) * random.uniform(0.7, 1.0) / 2
        x, y = (random.uniform(0.9 * radius, side - 0.9 * radius) for side in (width, height))
        thing = shapes.Thing(number % CLASSES, x, y, radius)
        path = folder / "train" / f"class{number % CLASSES:02}" / f"{number:05}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(shapes.draw(random, width, height, [thing], 0.45)[0]).save(path, quality=92)
    return build_folder(folder, "train", "imagenet")


def probes(folder: Path) -> None:
    """Train linear probes on random weights, with training crops decoded at reduced and at full size.

    The first arm decodes every training crop at 1/2. The learning rate is low: if a head's loss oscillates, as conv1's
    and conv2's still do, arms differ by chance.
    """
    train, val = _scenes(folder / "train", TRAIN, 1), _scenes(folder / "val", VAL, 2)
    torch.manual_seed(0)
    network = build("alexnet", classes=2, image_size=SIDE, sobel=True)
    spare = reader._SPARE
    for seed in SEEDS:
        for name, value in (("reduced", spare), ("whole", math.inf)):
            reader._SPARE = value
            try:
                curves = Probes(network, train, val, PROBE.model_copy(update={"seed": seed}), RESIZE).run()
            finally:
                reader._SPARE = spare
            shown = "  ".join(f"{layer} {100 * curve.top1[-1]:.1f}" for layer, curve in curves.items())
            print(f"seed {seed}, {name}: {shown}")


def _official_blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Blur normalised [B, 3, 224, 224] as the official code does: kernel 12, zero padding, to 225 × 225 pixels."""
    places = torch.arange(12) - 5.5
    line = torch.exp(-0.5 * (places / sigma) ** 2)
    kernel = torch.outer(line, line) / line.sum() ** 2
    return F.conv2d(images, kernel.expand(3, 1, 12, 12), padding=6, groups=3)


def blur() -> None:
    """Print grey-level differences of the official blur and ours, on the photographs' centres."""
    centres = [torch.from_numpy(reader.center_crop(image, 256, 224)) for image in _photographs()[:2]]
    batch = torch.stack(centres)
    std = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    for sigma in (0.1, 0.5, 1.0, 2.0):
        ours = normalize((gaussian_blur(batch.float(), np.full(2, sigma))).round().to(torch.uint8))
        theirs = _official_blur(normalize(batch), sigma)
        apart = ((theirs[..., :224, :224] - ours).abs() * std * 255).mean(1)
        inside = apart[:, 12:-12, 12:-12].mean()
        border = apart[:, 0].mean()
        unblurred = ((normalize(batch) - ours).abs() * std * 255).mean()
        print(
            f"sigma {sigma}: inside {inside:.1f} grey levels, first row {border:.1f}; ours moves an image by "
            f"{unblurred:.1f}"
        )


def whitening(folder: Path) -> None:
    """Print variances along the 256 kept directions, of a random network's features, and with dead units."""
    index = _scenes(folder / "train", TRAIN, 1)
    torch.manual_seed(0)
    network = build("alexnet", classes=2, image_size=SIDE, sobel=True).eval()
    views = [reader.center_crop(reader.read_rgb(index.file(place)), RESIZE, SIDE) for place in range(len(index))]
    with torch.no_grad():
        parts = [network.embed(normalize(torch.from_numpy(part))) for part in np.array_split(np.stack(views), 10)]
    features = torch.cat(parts).numpy()
    few = np.ascontiguousarray(features * (np.arange(features.shape[1]) < 100))
    for name, values in (("all units", features), ("100 units alive", few)):
        matrix = faiss.PCAMatrix(values.shape[1], 256, -0.5)
        matrix.train(values)
        variances = faiss.vector_to_array(matrix.eigenvalues)[:256]
        theirs = matrix.apply(values)
        print(
            f"{name}: variance of the 256th direction is {variances[-1] / variances[0]:.1e} of the first's; published "
            f"whitening: {np.isfinite(theirs).all(1).mean():.2f} of the rows finite, largest number "
            f"{np.nanmax(np.abs(theirs)):.1e}; ours keeps {deepcluster.whiten(values, 256).shape[1]} directions"
        )


def main(names: list[str]) -> None:
    """Print the named parts, or all of them."""
    print(f"departures, on {processor()}")
    randomness.seed_everything(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], None]] = {
            "sampler": sampler,
            "decoding": partial(decoding, folder),
            "blur": blur,
            "whitening": partial(whitening, folder),
            "probes": partial(probes, folder),
        }
        for part in names or parts:
            print(f"\n{part}")
            parts[part]()


if __name__ == "__main__":
    main(sys.argv[1:])
