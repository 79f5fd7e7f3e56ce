"""Measure this machine's rates for `make plan`: training steps, image decoding, and the start of a stage."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from uic_core import models
from uic_core.config import Config
from uic_core.data import reader, synthetic
from uic_core.errors import InputError
from uic_core.evaluations.counting import arithmetic
from uic_core.methods import METHODS
from uic_core.overview.rates import Rates
from uic_core.recipe import Training
from uic_core.run import cpus, devices, randomness
from uic_core.run.precision import autocast, resolve

_SECONDS = 3.0  # to measure each rate
_IMAGES = 64
# One stage of each environment, to measure its import time.
_STAGES = {"core": "uic_core.pretrain", "openmmlab": "uic_core.openmmlab.detection", "report": "uic_core.report.tables"}
_PROCESS_BYTES = 1 << 30  # torch, and what its kernels take
_WORKFLOW_SECONDS = 1.0  # Snakemake's own time per job


def measured(config: Config, gpus: int, cpus: int) -> Rates:
    """Measure rates at the config's own sizes; without a GPU, with one job per CPU, all at once.

    Args:
        gpus: number of GPUs to plan for, if this machine has one.
        cpus: number of CPUs of this machine.
    """
    device = devices.current()
    gpu = device.type == "cuda"
    largest: dict[str, Training] = {}
    for recipe in config.runs.values():
        if isinstance(recipe, Training) and recipe.epochs >= largest.get(recipe.arch, recipe).epochs:
            largest[recipe.arch] = recipe
    copies = 1 if gpu else cpus
    flops: dict[str, float] = {}
    exact: dict[str, float] = {}
    for arch, recipe in largest.items():
        at_once, images = (1, recipe.batch_size // recipe.gpus) if gpu else fitting(recipe, free_memory(), cpus)
        for rates, precision in ((flops, ""), (exact, "fp32")):
            rates[arch] = _mean(at_once, partial(_training_rate, recipe, images, precision))
    dataset = config.datasets.one(next(iter(config.datasets.folders)))
    if dataset.generated:
        with tempfile.TemporaryDirectory() as folder:
            few = dataset.section.model_copy(
                update={"root": folder, "classes": 2, "train_images": _IMAGES, "val_images": 2}
            )
            synthetic.generate(dataset.model_copy(update={"section": few}))
            decode = _mean(copies, partial(_decoding_rate, folder, config))
    else:
        decode = _mean(copies, partial(_decoding_rate, dataset.section.root, config))
    for recipe in config.runs.values():
        for rates in (flops, exact):
            rates.setdefault(recipe.arch, max(rates.values(), default=1e12))
    start = {name: _seconds_to_start(module) + _WORKFLOW_SECONDS for name, module in _STAGES.items()}
    threads = 16 if gpu else 1
    search = 2.0 * ((config.evaluations.proposals.shorter_side if config.evaluations.proposals else 500) / 500) ** 2
    where = torch.cuda.get_device_name() if gpu else f"{cpus} CPUs, a job each"
    said = f"measured here: {where}; " + ", ".join(f"{arch} {rate / 1e12:.3g} TFLOP/s" for arch, rate in flops.items())
    said += f", {decode:.0f} images/s a CPU; a job starts in {', '.join(f'{each:.0f} s' for each in start.values())}"
    return Rates(flops, exact, decode, search, dict(start), threads, gpus if gpu else cpus, gpu, said)


def _mean(copies: int, measure: Callable[[int], float]) -> float:
    """Return the mean of what several processes measure at the same time."""
    with cpus.pool(copies, "spawn") as pool:
        return float(np.mean(list(pool.map(measure, range(copies)))))


def fitting(recipe: Training, free: int, processes: int) -> tuple[int, int]:
    """Return how many of `processes` may train at once in `free` bytes, and the images of their batches.

    One process at a time trains with smaller batches if it must: on a CPU the rate hardly depends on them.

    Raises:
        InputError: two images do not fit.
    """
    fixed, view = _training_bytes(recipe)
    image = view * METHODS[recipe.method].views_per_image
    whole = fixed + image * recipe.batch_size
    if whole <= free:
        return min(processes, free // whole), recipe.batch_size
    images = (free - fixed) // image
    if images < 2:
        raise InputError(
            f"--measure: training {recipe.arch} takes {(fixed + 2 * image) / 1e9:.1f} GB at least, and "
            f"{free / 1e9:.1f} GB are free; free some memory, or leave --measure out: --peak assumes rates"
        )
    return 1, images


def _training_bytes(recipe: Training) -> tuple[int, int]:
    """Return the memory of a training process, in bytes: in any case, and for every view of a batch."""
    kept, images = 0, 5  # 5: no weight has this many rows

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal kept
        if tensor.shape[:1] == (images,):
            kept += tensor.nbytes  # twice if two layers keep it, which makes room for gradients
        return tensor

    with torch.device("meta"):
        built = models.build(recipe.arch, classes=recipe.outputs, image_size=recipe.image_size, sobel=recipe.sobel)
        x = torch.empty(images, 3, recipe.image_size, recipe.image_size)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            built.train().embed(x)
    weights = sum(parameter.nbytes for parameter in built.parameters())
    # weights, gradients, momentum, and copies in the layout of the kernels
    return _PROCESS_BYTES + 4 * weights, kept // images


def free_memory() -> int:
    """Return the bytes that new processes may take: of the machine, or of this job or container if it has a limit."""
    info = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free = 1024 * int(info["MemAvailable"].split()[0])
    for folder in (Path("/sys/fs/cgroup"), *map(Path, _own_groups())):
        with contextlib.suppress(OSError, ValueError):  # no limit reads "max"
            limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
            free = min(free, limit - used)
    return free


def _own_groups() -> list[str]:
    """Return the folder of this process's control group and those above it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::/"):
                group = Path("/sys/fs/cgroup", line.removeprefix("0::/"))
                return [str(each) for each in (group, *group.parents)]
    return []


def _training_rate(recipe: Training, images: int, precision_name: str, _: int) -> float:
    """Return FLOP/s of forward, backward and SGD on batches of `images`; '' means the recipe's own precision."""
    randomness.seed_everything(recipe.seed)  # its arithmetic is the training's: without TF32
    device, method = devices.current(), METHODS[recipe.method]
    views = images * method.views_per_image
    if device.type == "cpu":
        torch.set_num_threads(1)
    precision = resolve(precision_name or recipe.precision, device)
    built = models.build(recipe.arch, classes=recipe.outputs, image_size=recipe.image_size, sobel=recipe.sobel)
    built = built.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    optimizer = torch.optim.SGD(built.parameters(), lr=1e-3, momentum=0.9, fused=True)
    x = torch.randn(views, 3, recipe.image_size, recipe.image_size, device=device)
    x = x.contiguous(memory_format=torch.channels_last)
    target = torch.zeros(images, dtype=torch.int32, device=device)

    def step() -> None:
        with autocast(precision, device):
            logits = built(x)
        optimizer.zero_grad(set_to_none=True)
        method.loss(recipe, logits, target).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return arithmetic(recipe).training * views * _a_second(step)


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
