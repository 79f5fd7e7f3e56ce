"""Training on a GPU: the share of its bf16 matrix rate that steps reach, and the cost of loader and batch size.

The matrix rate is that of a large product in the same run; torch counts the operations of a step, forward and
backward. Steps run in the suite's own loop, on crops that are already on the device, or from the loader's
memory-mapped cache, read by as many processes as there are spare CPUs.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench.loader import photographs
from bench.measure import PAIRS, Arm, Bars, interleaved, ratios
from bench.methods import Process, resident, tiled, train
from bench.precision import trained
from uic_core.data import cache
from uic_core.data.index import Index, build_folder
from uic_core.models import build
from uic_core.pretrain.loop import Trainer
from uic_core.recipe import Training
from uic_core.run import cpus, devices

SIZE, STEPS, CLASSES = 224, 40, 3000
CASES = {"alexnet": (256, 0.35), "resnet50": (128, 0.14), "vgg16": (128, 0.50)}
"""Images per GPU and step (as 1024 over eight GPUs in config/paper.yaml), and the least share."""

OPTIONAL = ("torch.compile", "CUDA graphs")
"""Arms without a bar. If one fails, its rate is NaN."""


def flops(recipe: Training) -> float:
    """Return the operations of a training step for one image; a multiply-add counts as two."""
    network = build(recipe.arch, classes=recipe.classes, image_size=recipe.image_size, sobel=recipe.sobel)
    images = torch.randn(2, 3, recipe.image_size, recipe.image_size)
    with FlopCounterMode(display=False) as counter:
        nn.functional.cross_entropy(network(images), torch.tensor([0, 1])).backward()
    return float(counter.get_total_flops()) / len(images)


def product(side: int, times: int) -> Arm:
    """Arm: seconds per operation of a product of two square bf16 matrices."""
    device = devices.current()
    one, other = torch.randn(2, side, side, device=device, dtype=torch.bfloat16)

    def arm() -> float:
        found = one @ other
        found.sum().item()
        started = time.perf_counter()
        for _ in range(times):
            found = one @ other
        found[0, 0].item()  # waits for the device
        return (time.perf_counter() - started) / (2 * side**3 * times)

    return arm


def compiled(trainer: Trainer) -> None:
    """Let torch.compile fuse what it can."""
    trainer.network.compile()


def graphed(trainer: Trainer) -> None:
    """Do the same, with CUDA graphs that launch a whole pass at once."""
    trainer.network.compile(mode="reduce-overhead")


def tolerant(process: Process) -> Arm:
    """Return an arm that may fail, as compilers do, without ending the others."""

    def arm() -> float:
        with contextlib.suppress(EOFError, OSError):
            return process()
        return math.nan

    return arm


def measure(
    bars: Bars,
    cached: Index,
    arch: str,
    batch: int,
    share: float,
    size: int = SIZE,
    steps: int = STEPS,
    side: int = 8192,
    *,
    compilers: bool = True,
) -> None:
    """Measure an architecture's share of the matrix rate, input, compilers and, for AlexNet, a larger batch."""
    recipe, unread = trained(arch, size, batch, batch * steps, CLASSES)
    read = tiled(cached, batch * steps, recipe.classes)
    workers = max(1, cpus.workers(len(os.sched_getaffinity(0))))
    arms: dict[str, tuple[Any, ...]] = {
        "resident": (recipe, unread, 0, 0, resident),
        "end to end": (recipe, read, 0, workers),
    }
    if compilers:
        arms["torch.compile"] = (recipe, unread, 0, 0, resident, compiled)
        arms["CUDA graphs"] = (recipe, unread, 0, 0, resident, graphed)
    if arch == "alexnet":
        arms["batch × 4"] = (*trained(arch, size, 4 * batch, batch * steps, CLASSES), 0, 0, resident)
    print(f"  {arch} at {size} pixels, batches of {batch}:")
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(Process(train, *arguments)) for name, arguments in arms.items()}
        turns = {name: tolerant(process) if name in OPTIONAL else process for name, process in processes.items()}
        found = interleaved({"matrix product": product(side, 20), **turns})
    rates = {
        name: process.each(lambda epoch: epoch.rate) if len(process.epochs) > PAIRS else [math.nan]
        for name, process in processes.items()
    }
    limit = [1 / seconds for seconds in found["matrix product"]]
    report(bars, arch, batch, flops(recipe), limit, rates, share)


def report(
    bars: Bars, arch: str, batch: int, flop: float, limit: list[float], rates: dict[str, list[float]], share: float
) -> None:
    """Add bars from rates in images per second and the matrix rate in operations per second."""
    resident = rates["resident"]
    print(f"  {flop / 1e9:.2f} GFLOP an image, forward and backward; matrix rate {median(limit) / 1e12:.4g} TFLOP/s")
    print("  images/s: " + ", ".join(f"{name} {median(rate):.4g}" for name, rate in rates.items()))
    bars.at_least(f"gpu-{arch}", ratios([flop * rate for rate in resident], limit), share)
    bars.at_least(f"gpu-end-to-end-{arch}", ratios(rates["end to end"], resident), 0.9)
    if "batch × 4" in rates:
        bars.at_least(f"gpu-batch-{batch}", ratios(resident, rates["batch × 4"]), 0.85)


def main() -> None:
    """Print the bars."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--arch", nargs="+", choices=CASES, default=list(CASES), help="some architectures only")
    parser.add_argument("--no-compilers", action="store_true", help="leave out those arms, minutes each")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU at hand: bench/gpu measures nothing here")
        return
    bars = Bars(f"gpu, {devices.hardware()}")
    with tempfile.TemporaryDirectory() as folder:
        photographs(Path(folder), 768, 500, 375)
        cached = cache.build(build_folder(Path(folder), "train", "imagenet"), Path(folder) / "cache", "uint8", 256)
        for arch in options.arch:
            measure(bars, cached, arch, *CASES[arch], compilers=not options.no_compilers)
    bars.close()


if __name__ == "__main__":
    main()
