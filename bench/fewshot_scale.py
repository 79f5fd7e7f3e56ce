"""The few-shot stage at Table 5's size: 12,000 images, four columns, two resolutions, 2,000 episodes, two cores.

The stage runs unchanged in its own process. `python -m bench.fewshot_scale` runs all of it in a quarter of an hour;
`make bench-frozen` checks the same bars with a part of the larger resolution, scaled up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from bench.loader import photographs
from bench.measure import Bars, seconds
from uic_core import checkpoint, recipe
from uic_core.data.index import Index, build_folder
from uic_core.evaluate import fewshot
from uic_core.evaluations import Fewshot
from uic_core.methods.random import Random
from uic_core.models import build
from uic_core.run import devices
from uic_core.strict_yaml import read_yaml

IMAGES, CLASSES = 12_000, 20
PART = 10
"""A cost that is scaled up is measured on one image in this many."""

MINUTES, GIGABYTES = 30, 6
CONFIG = read_yaml(Path(__file__).parents[1] / "config" / "paper.yaml")


def labelled(index: Index, classes: int) -> Index:
    """Label the images with `classes` classes, equally many images in each."""
    labels = (np.arange(len(index)) % classes).astype(np.int32)
    return replace(index, classes=tuple(str(number) for number in range(classes)), labels=labels)


def peak_bytes(process: subprocess.Popen[bytes]) -> float:
    """Wait for a process; return the peak memory of it and its children, with shared pages counted once."""
    peak = 0.0
    while process.poll() is None:
        held = 0
        try:
            for member in (parent := psutil.Process(process.pid), *parent.children(recursive=True)):
                held += member.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
        peak = max(peak, held)
        threading.Event().wait(0.5)
    return peak


def stage(folder: Path, index: Index, **changes: Any) -> tuple[float, float, dict[str, int]]:
    """Run the stage on the paper's protocol with `changes`; return seconds, peak bytes, the columns' dimensions."""
    index.save(folder / "index.npz")
    made_by = recipe.parse(Random, CONFIG["runs"]["random_sobel"], "bench")
    torch.manual_seed(0)
    network = build("alexnet", classes=made_by.classes, image_size=made_by.image_size, sobel=True)
    checkpoint.save(folder / "checkpoint.safetensors", network, made_by, {})
    recipe.save(recipe.parse(Fewshot, CONFIG["evaluations"]["fewshot"] | changes, "bench"), folder / "fewshot.yaml")
    command = [sys.executable, "-m", "uic_core.evaluate.fewshot", "--run", "random_sobel", "--threads", "2"]
    command += ["--checkpoint", str(folder / "checkpoint.safetensors"), "--protocol", str(folder / "fewshot.yaml")]
    command += ["--index", str(folder / "index.npz"), "--out", str(folder / "fewshot.json")]
    started = time.monotonic()
    process = subprocess.Popen(command, env=os.environ)
    peak = peak_bytes(process)
    assert process.returncode == 0
    settings = json.loads((folder / "fewshot.json").read_text())["protocol"]
    return time.monotonic() - started, peak, settings["dimensions"]


def scaled(bars: Bars, part: Index, folder: Path) -> None:
    """Measure the bars: all images at 84 pixels; at 224, a tenth of them and a part of the Gram matrices.

    Peak memory is in the Gram matrix, which depends on the number of images but not on their size, or in the features
    of a batch, which do not depend on that number: each occurs in one of the two runs. Time at 224 is that of a tenth
    of the images times ten (including start-up), plus that of a Gram matrix of all images for a chunk of dimensions,
    scaled to all dimensions. Episodes are in the first run.

    Args:
        part: a tenth of the images.
    """
    whole = replace(part, paths=np.tile(part.paths, PART), labels=np.tile(part.labels, PART))
    resolutions = CONFIG["evaluations"]["fewshot"]["resolutions"]
    native, most, _ = stage(folder, whole, resolutions={"native": resolutions["native"]})
    upsampled, also, dimensions = stage(folder, part, resolutions={"upsampled": resolutions["upsampled"]})
    chunk = torch.rand(IMAGES, 4096, device=devices.current())
    product = seconds(lambda: fewshot.gram([chunk], IMAGES, chunk.device)[0, 0].item())  # waits for the device
    product()
    multiplying = product() * sum(dimensions.values()) / chunk.shape[1]
    print(
        f"  {IMAGES} images, four columns: {native / 60:.1f} min at 84 pixels; at 224 scaled up from {len(part)}: "
        f"{upsampled * PART / 60:.1f} min, and Gram matrices {multiplying / 60:.1f} min"
    )
    bars.at_most("fewshot-minutes", [(native + upsampled * PART + multiplying) / 60], MINUTES)
    bars.at_most("fewshot-memory-gb", [max(most, also) / 1e9], GIGABYTES)


def main() -> None:
    """Print the bars, without scaling."""
    bars = Bars("few-shot at scale")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs(folder, IMAGES, 84, 84)
        taken, most, _ = stage(folder, labelled(build_folder(folder, "train", "imagenet"), CLASSES))
        bars.at_most("fewshot-minutes", [taken / 60], MINUTES)
        bars.at_most("fewshot-memory-gb", [most / 1e9], GIGABYTES)
    bars.close()


if __name__ == "__main__":
    main()
