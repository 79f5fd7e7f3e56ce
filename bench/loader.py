"""Images per CPU-second, relative to torchvision's ImageFolder with PIL's RandomResizedCrop, ToTensor and Normalize.

The images are photograph-like JPEGs of 500×375 pixels and about 100 KB, as in ImageNet. Each arm has one decoding
process. Ours leaves flip and normalisation to the training device; their cost on this CPU is shown beside the bars.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from bench.measure import Arm, Bars, interleaved, ratios, seconds
from uic_core.data import cache, stamps
from uic_core.data.augment import MEAN, STD, UNIFORMS, augment
from uic_core.data.index import Index, build_folder
from uic_core.data.loader import Loader
from uic_core.run.randomness import uniforms

IMAGES, SIZE, BATCH = 768, 224, 64


def photographs(folder: Path, images: int, width: int, height: int) -> None:
    """Write photograph-like JPEGs in two class folders.

    Amplitudes fall with frequency as in natural scenes, and channels are correlated. At 500×375 pixels the files have
    the size of ImageNet's, 110 KB; reduced to 256 pixels, they have 30 KB.
    """
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = 1
    noise = np.fft.fft2(rng.normal(size=(4, height, width, 3)), axes=(1, 2))
    scenes = np.fft.ifft2(noise / frequency[None, :, :, None] ** 1.2, axes=(1, 2)).real
    scenes += 2 * scenes.mean(3, keepdims=True)
    scenes *= 32 / scenes.std((1, 2, 3), keepdims=True)
    for number in range(images):
        shifted = np.roll(scenes[number % 4], rng.integers(0, height, 2), (0, 1)) + rng.uniform(90, 160, 3)
        path = folder / "train" / f"class{number % 2}" / f"{number:05}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(shifted.clip(0, 255).astype(np.uint8)).save(path, quality=95)


def cpu_seconds(batches: Callable[[], Iterable[object]]) -> Arm:
    """Return an arm that measures the CPU time of this process and its children while it consumes all batches."""

    def total() -> float:
        processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    def arm() -> float:
        started = total()
        for _ in batches():
            pass
        return total() - started

    return arm


def reference(folder: Path) -> DataLoader[object]:
    """Return the reference loader, without flip, which ours leaves to the device too."""
    steps = [
        transforms.RandomResizedCrop(SIZE),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    dataset = ImageFolder(str(folder / "train"), transforms.Compose(steps))
    return DataLoader(dataset, BATCH, shuffle=True, num_workers=1, persistent_workers=True)


def ours(index: Index) -> Callable[[], Iterable[object]]:
    """Return a function that yields batches as in training, of another epoch at each call."""
    loader = Loader(index, SIZE, 256, BATCH, workers=1)
    epochs = iter(range(1000))

    def batches() -> Iterable[object]:
        epoch = next(epochs)
        order = np.random.default_rng(epoch).permutation(len(index))
        return loader.batches(order, "resized_crop", 0, epoch)

    return batches


def finished(images: torch.Tensor) -> torch.Tensor:
    """Flip and normalise, which the loader leaves to the device."""
    return augment(images, uniforms(0, 0, np.arange(len(images)), UNIFORMS), "standard")


def stating(folder: Path, files: int) -> list[float]:
    """Return the seconds that comparing the files of ImageNet takes before a job, from five passes over fewer files."""
    paths = [folder / f"n{number // 1000:08}" / f"n{number // 1000:08}_{number}.JPEG" for number in range(files)]
    for path in paths:
        path.parent.mkdir(exist_ok=True)
        path.touch()
    made, names = folder / "index.npz", [str(path) for path in paths]
    stamps.save(made, names)
    return [pass_() * 1_281_167 / files for pass_ in [seconds(lambda: stamps.verify(made, names))] * 5]


def main() -> None:
    """Print the bars."""
    torch.set_num_threads(1)
    bars = Bars("loader")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs(folder, IMAGES, 500, 375)
        index = build_folder(folder, "train", "imagenet")
        sizes = [index.file(position).stat().st_size for position in range(IMAGES)]
        print(f"  {IMAGES} JPEGs of 500×375 pixels, {np.mean(sizes) / 1000:.0f} KB each on the mean")
        indexes = {
            "originals": index,
            "jpeg-256": cache.build(index, folder / "cache", "jpeg", 256),
            "memory-map": cache.build(index, folder / "cache", "uint8", 256),
        }
        for source, cached in indexes.items():
            if cached.pixels is not None:
                print(f"  {source}: {cached.pixels.length.mean() / 1000:.0f} KB an image")
        peer = reference(folder)
        arms = {"ImageFolder": cpu_seconds(lambda: peer)}
        arms |= {source: cpu_seconds(ours(cached)) for source, cached in indexes.items()}
        found = interleaved(arms)
        batch = next(iter(ours(index)()))[0]  # type: ignore[index]
        device = interleaved(
            {"flip and normalisation": cpu_seconds(lambda: map(finished, [batch] * (IMAGES // BATCH)))}
        )
    for name, bound in (("originals", 2.3), ("jpeg-256", 6.0), ("memory-map", 12.0)):
        bars.at_least(f"loader-{name}", ratios(found["ImageFolder"], found[name]), bound)
        whole = [a + b for a, b in zip(found[name], device["flip and normalisation"], strict=True)]
        share = np.median(ratios(found["ImageFolder"], whole))
        rate = IMAGES / np.median(found[name])
        print(f"  {name}: {rate:.0f} images a CPU-second; {share:.2f} times the peer with flip and normalisation")
    with tempfile.TemporaryDirectory() as name:
        bars.at_most("seconds-to-compare-imagenets-files", stating(Path(name), 50_000), 60)
    bars.close()


if __name__ == "__main__":
    main()
