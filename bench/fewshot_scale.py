"""The few-shot stage as Table 5 takes it: 12,000 images, four columns, two resolutions, 2,000 episodes, two cores.

The stage runs as it is, in a process of its own. Takes a quarter of an hour, so it is no part of `make bench`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
import torch

from bench.frozen import labelled
from bench.loader import photographs
from bench.measure import Bars
from uic_core import recipe
from uic_core.config import Fewshot
from uic_core.data.index import build_imagenet
from uic_core.files import read_yaml
from uic_core.models import build
from uic_core.pretrain import checkpoint

IMAGES, CLASSES = 12_000, 20


def peak_bytes(process: subprocess.Popen[bytes]) -> float:
    """Wait for a process; the most memory that it and its children held, shared pages counted once."""
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


def main() -> None:
    """Print the bar."""
    bars = Bars("few-shot at scale")
    config = read_yaml(Path(__file__).parents[1] / "config" / "paper.yaml")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs(folder, IMAGES, 84, 84)
        labelled(build_imagenet(folder, "train"), CLASSES).save(folder / "index.npz")
        made_by = recipe.parse(recipe.Recipe, config["runs"]["random_sobel"], "bench")
        torch.manual_seed(0)
        network = build("alexnet", classes=made_by.classes, image_size=made_by.image_size, sobel=True)
        checkpoint.save(folder / "checkpoint.safetensors", network, made_by, {})
        recipe.save(recipe.parse(Fewshot, config["evaluations"]["fewshot"], "bench"), folder / "fewshot.yaml")
        command = [sys.executable, "-m", "uic_core.evaluate.fewshot", "--run", "random_sobel", "--threads", "2"]
        command += ["--checkpoint", str(folder / "checkpoint.safetensors"), "--protocol", str(folder / "fewshot.yaml")]
        command += ["--index", str(folder / "index.npz"), "--out", str(folder / "fewshot.json")]
        started = time.monotonic()
        process = subprocess.Popen(command, env=os.environ)
        peak = peak_bytes(process)
        assert process.returncode == 0
        print(f"  {IMAGES} images, four columns, two resolutions: {(time.monotonic() - started) / 60:.1f} minutes")
        bars.at_most("fewshot-memory-gb", [peak / 1e9], 6)
    bars.close()


if __name__ == "__main__":
    main()
