"""Measure this machine's rates for `make plan`: training steps, image decoding, and the start of a stage."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch

from uic_core import models
from uic_core.config import Config
from uic_core.data import reader, synthetic
from uic_core.evaluations.counting import arithmetic
from uic_core.methods import METHODS
from uic_core.overview.rates import Rates
from uic_core.recipe import Training
from uic_core.run import devices
from uic_core.run.precision import autocast, resolve

_SECONDS = 3.0  # to measure each rate
_IMAGES = 64
# One stage of each environment, to measure its import time.
_STAGES = {"core": "uic_core.pretrain", "openmmlab": "uic_core.openmmlab.detection", "report": "uic_core.report.tables"}
_WORKFLOW_SECONDS = 1.0  # Snakemake's own time per job


def measured(config: Config, gpus: int, cpus: int) -> Rates:
    """Measure rates at the config's own sizes; without a GPU, with one job per CPU, all at once.

    Args:
        gpus: number of GPUs to plan for, if this machine has one.
        cpus: number of CPUs of this machine.
    """
    device = devices.current()
    gpu = device.type == "cuda"
    copies = 1 if gpu else cpus
    largest: dict[str, Training] = {}
    for recipe in config.runs.values():
        if isinstance(recipe, Training) and recipe.epochs >= largest.get(recipe.arch, recipe).epochs:
            largest[recipe.arch] = recipe
    with ProcessPoolExecutor(copies, mp_context=multiprocessing.get_context("spawn")) as pool:
        flops, exact = (
            {arch: _mean(pool, copies, partial(_training_rate, recipe, precision)) for arch, recipe in largest.items()}
            for precision in ("", "fp32")
        )
        dataset = config.datasets.one(next(iter(config.datasets.folders)))
        if dataset.generated:
            with tempfile.TemporaryDirectory() as folder:
                few = dataset.section.model_copy(
                    update={"root": folder, "classes": 2, "train_images": _IMAGES, "val_images": 2}
                )
                synthetic.generate(dataset.model_copy(update={"section": few}))
                decode = _mean(pool, copies, partial(_decoding_rate, folder, config))
        else:
            decode = _mean(pool, copies, partial(_decoding_rate, dataset.section.root, config))
    for recipe in config.runs.values():
        for rates in (flops, exact):
            rates.setdefault(recipe.arch, max(rates.values(), default=1e12))
    start = {name: _seconds_to_start(module) + _WORKFLOW_SECONDS for name, module in _STAGES.items()}
    threads = 16 if gpu else 1
    search = 2.0 * (config.evaluations.proposals.shorter_side / 500) ** 2
    where = torch.cuda.get_device_name() if gpu else f"{cpus} CPUs, a job each"
    said = f"measured here: {where}; " + ", ".join(f"{arch} {rate / 1e12:.3g} TFLOP/s" for arch, rate in flops.items())
    said += f", {decode:.0f} images/s a CPU; a job starts in {', '.join(f'{each:.0f} s' for each in start.values())}"
    return Rates(flops, exact, decode, search, dict(start), threads, gpus if gpu else cpus, gpu, said)


def _mean(pool: ProcessPoolExecutor, copies: int, measure: Callable[[int], float]) -> float:
    return float(np.mean(list(pool.map(measure, range(copies)))))


def _training_rate(recipe: Training, precision_name: str, _: int) -> float:
    """Return FLOP/s of forward, backward and SGD at a recipe's size; '' means the recipe's own precision."""
    device = devices.current()
    if device.type == "cpu":
        torch.set_num_threads(1)
    precision = resolve(precision_name or recipe.precision, device)
    built = models.build(recipe.arch, classes=recipe.classes, image_size=recipe.image_size, sobel=recipe.sobel)
    built = built.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(built.parameters(), lr=1e-3, momentum=0.9, fused=True)
    x = torch.randn(recipe.batch_size, 3, recipe.image_size, recipe.image_size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    target = torch.zeros(len(x), dtype=torch.long, device=device)

    def step() -> None:
        with autocast(precision, device):
            logits = built(x)
        optimizer.zero_grad(set_to_none=True)
        METHODS[recipe.method].loss(recipe, logits, target.to(torch.int32)).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return arithmetic(recipe).training * recipe.batch_size * _a_second(step)


def _decoding_rate(root: str, config: Config, _: int) -> float:
    """Return the images per second that one process decodes and crops."""
    torch.set_num_threads(1)
    recipe = next(iter(config.runs.values()))
    files = sorted(path for path in (Path(root) / "train").rglob("*") if path.is_file())[:_IMAGES]
    if not files:
        return 750.0  # no images yet: the rate in bench/RESULTS.md

    def read() -> None:
        for file in files:
            reader.center_crop(reader.read_rgb(file), recipe.resize, recipe.image_size)

    return len(files) * _a_second(read)


def _a_second(work: Callable[[], None]) -> float:
    """Return how often `work` runs per second."""
    work()
    done, started = 0, time.perf_counter()
    while time.perf_counter() - started < _SECONDS:
        work()
        done += 1
    return done / (time.perf_counter() - started)


def _seconds_to_start(module: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", module, "--help"], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started
