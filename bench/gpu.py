"""Training on a GPU: where a step's time goes, the share of the matrix rate that it reaches, and what may be faster.

    python -m bench.gpu                  everything, in the order of what teaches most: about ten minutes
    python -m bench.gpu --profile        only where the time goes; without a GPU a tiny step, by CPU operators
    python -m bench.gpu --parts vgg16    some parts

Recipes, batches and augmentation are those of config/paper.yaml. The matrix rate is that of a large product in the
same run; torch counts the operations of a step, forward and backward. Steps run in the suite's own loop, on crops that
are already on the device, or from the loader's memory-mapped cache, read by as many processes as there are spare CPUs.
A part is written to a file of JSON lines when it has ended: with the same code and hardware a second call measures what
is left.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import math
import os
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bench import variants
from bench.kernels import profiled
from bench.loader import photographs
from bench.measure import PAIRS, Arm, Bars, interleaved, now, ratios
from bench.methods import Process, resident, tiled, train, trainer_of
from bench.precision import unread
from bench.variants import Change
from uic_core.config import read
from uic_core.data import cache
from uic_core.data.augment import UNIFORMS
from uic_core.data.index import Index, build_folder
from uic_core.files import sha256, write_text
from uic_core.methods.deepcluster import DeepCluster
from uic_core.methods.kmeans import clustered, whitened
from uic_core.models import ARCHS, build
from uic_core.recipe import Training
from uic_core.run import cpus, devices, randomness
from uic_core.run.precision import autocast

ROOT = Path(__file__).parents[1]
PAPER = ROOT / "config" / "paper.yaml"
RUNS = {"alexnet": "uic_3k", "resnet50": "uic_resnet50_strong", "vgg16": "uic_vgg16_strong"}
"""The run of config/paper.yaml that stands for an architecture."""

IMAGENET = 1_281_167
STEPS = 40
WARM_UP, PROFILED = 20, 20
MINUTES = 10
FEW = 3  # pairs, where less is to be learnt
TINY = {"image_size": 64, "resize": 73, "batch_size": 8, "classes": 8}
"""What --profile takes where there is no GPU."""

BOUNDS = {
    "gpu-alexnet": (">=", 0.30),  # the goal is .35
    "gpu-resnet50": (">=", 0.14),
    "gpu-vgg16": (">=", 0.50),
    "gpu-end-to-end-alexnet": (">=", 0.90),
    "gpu-end-to-end-resnet50": (">=", 0.90),
    "gpu-end-to-end-vgg16": (">=", 0.90),
    "gpu-batch-256": (">=", 0.85),
    "gpu-strong": (">=", 0.90),
    "gpu-seed-and-lr": (">=", 1.0),
    "gpu-kmeans": ("<=", 0.10),
}
"""Shares of the matrix rate; rates ÷ those of resident input, of batches of 1024, of standard augmentation; how many
compilers' steps heed a new seed and learning rate, 0 … 1; k-means' share of a DeepCluster epoch."""


def recipe_of(arch: str, **values: Any) -> Training:
    """Return the recipe of an architecture's run, endless, for a GPU's share of its batch; `values` replace its own."""
    recipe = read([PAPER]).runs[RUNS[arch]]
    assert isinstance(recipe, Training)
    own = {"epochs": 10**6, "lr": 0.01, "batch_size": recipe.batch_size // recipe.gpus}
    return recipe.model_copy(update=own | values)


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
        _ = one @ other
        started = now()
        for _ in range(times):
            _ = one @ other
        return (now() - started) / (2 * side**3 * times)

    return arm


def tolerant(process: Process) -> Arm:
    """Return an arm that may fail, as compilers do, without ending the others: it is then NaN."""

    def arm() -> float:
        with contextlib.suppress(EOFError, OSError):
            return process()
        return math.nan

    return arm


@dataclass(frozen=True)
class Images:
    """Photographs in a folder, written when they are first asked for."""

    folder: Path
    count: int = 768

    @functools.cached_property
    def cached(self) -> Index:
        """Their index, which reads from a memory map."""
        photographs(self.folder, self.count, 500, 375)
        index = build_folder(self.folder, "train", "imagenet")
        return cache.build(index, self.folder / "cache", "uint8", 256, _cpus())

    def of(self, recipe: Training, count: int) -> Index:
        """Index of so many images in a recipe's classes."""
        return tiled(self.cached, count, recipe.classes)


def workers() -> int:
    """Number of decoding processes: all CPUs but one."""
    return max(1, cpus.workers(_cpus()))


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def profiles(arch: str, bars: Bars, images: Images) -> None:
    """Say where the time of a step goes, on resident input and end to end."""
    gpu = torch.cuda.is_available()
    warm_up, steps = (WARM_UP, PROFILED) if gpu else (1, 2)
    recipe = recipe_of(arch, **({} if gpu else TINY))
    count = recipe.batch_size * (warm_up + 2 * steps + 1)
    arms: dict[str, tuple[Index, int, tuple[Change, ...]]] = {
        "resident": (unread(count, recipe.classes), 0, (resident,)),
        "end to end": (images.of(recipe, count), workers(), ()),
    }
    for name, (index, decoding, changes) in arms.items():
        found = profiled(recipe, index, decoding, warm_up, steps, *changes)
        bars.say(f"{arch}, {recipe.augmentation}, batches of {recipe.batch_size}, {name}: {found.table()}")


def rates(arch: str, bars: Bars, images: Images) -> list[str]:
    """Compare the rate of training with the matrix rate, and of other input, augmentation and batches with it.

    Returns:
        The arms that failed.
    """
    recipe = recipe_of(arch)
    count = STEPS * recipe.batch_size
    arms: dict[str, tuple[Any, ...]] = {
        "resident": _resident(recipe, count),
        "end to end": (recipe, images.of(recipe, count), 0, workers()),
    }
    if arch == "alexnet":
        arms["batch × 4"] = _resident(recipe.model_copy(update={"batch_size": 4 * recipe.batch_size}), count)
        arms["strong"] = _resident(recipe.model_copy(update={"augmentation": "strong"}), count)
    found, limit = raced(arms)
    report(bars, arch, flops(recipe), limit, found)
    return failed(found)


def report(bars: Bars, arch: str, flop: float, limit: list[float], found: dict[str, list[float]]) -> None:
    """Add bars from rates in images per second and the matrix rate in operations per second."""
    bars.say(
        f"{arch}: {flop / 1e9:.2f} GFLOP an image and step; matrix rate {median(limit) / 1e12:.4g} TFLOP/s; images/s: "
        + ", ".join(f"{name} {median(rate):.4g}" for name, rate in found.items())
    )
    unread = found["resident"]
    judge(bars, f"gpu-{arch}", ratios([flop * rate for rate in unread], limit))
    judge(bars, f"gpu-end-to-end-{arch}", ratios(found["end to end"], unread))
    if "batch × 4" in found:
        judge(bars, "gpu-batch-256", ratios(unread, found["batch × 4"]))
        judge(bars, "gpu-strong", ratios(found["strong"], unread))


def changed(arch: str, changes: dict[str, Change], bars: Bars, _: Images, pairs: int = PAIRS) -> list[str]:
    """Compare changed steps with the step as it is, on resident input; an arm that fails is NaN.

    Returns:
        The arms that failed.
    """
    recipe = recipe_of(arch)
    count = STEPS * recipe.batch_size
    arms = {"as it is": _resident(recipe, count)}
    arms |= {name: _resident(recipe, count, change) for name, change in changes.items()}
    if arch == "alexnet" and "fused input" in changes:
        heavy = recipe.model_copy(update={"augmentation": "strong"})
        arms["strong"] = _resident(heavy, count)
        arms["strong, fused input"] = _resident(heavy, count, changes["fused input"])
    found = raced(arms, pairs)[0]
    for name, rate in found.items():
        speed = median(ratios(rate, found["as it is"]))
        bars.say(
            f"{arch}, {recipe.augmentation}, {name}: {median(rate):.4g} images/s, {speed:.3f} of the step as it is"
        )
    return failed(found)


def compilers(bars: Bars, images: Images) -> list[str]:
    """Compare torch.compile and CUDA graphs with AlexNet's step as it is; ask by its dropout whether a replay heeds."""
    failing, recipe = changed("alexnet", _COMPILERS, bars, images), recipe_of("alexnet")
    with cpus.pool(1, "spawn") as pool:
        judge(bars, "gpu-seed-and-lr", [pool.submit(heeds, recipe, each).result() for each in _COMPILERS.values()])
    return failing


def clustering(bars: Bars, images: Images, count: int = IMAGENET, **values: Any) -> None:
    """Compare an epoch's clustering, of `count` images, with DeepCluster's training and its pass for features.

    The features are noise: k-means makes all its iterations whatever they are. The pass counts as a third of training;
    it is in float32 and takes longer, so the share is rather less. `values` replace the recipe's own.
    """
    recipe = read([PAPER]).runs["deepcluster"]
    assert isinstance(recipe, DeepCluster)
    recipe = recipe.model_copy(update=values)
    trained = recipe_of(recipe.arch)
    rate = median(raced({"resident": _resident(trained, STEPS * trained.batch_size)})[0]["resident"])
    device = devices.current()
    randomness.seed_everything(recipe.seed)
    features = torch.randn(count, ARCHS[recipe.arch].embedding_size, device=device)
    started = now()
    rows = whitened(features, count, recipe.pca, device)
    whitening = now() - started
    clustered(rows, np.arange(count), count, recipe.classes, recipe.kmeans_iterations, recipe.seed)
    taken = now() - started
    rest = 4 / 3 * count / rate
    bars.say(
        f"DeepCluster, {count:,} images in {recipe.classes:,} clusters: whitening {whitening:.3g} s, k-means "
        f"{taken - whitening:.3g} s, training and the pass for features {rest:.3g} s"
    )
    judge(bars, "gpu-kmeans", [taken / (taken + rest)])


def heeds(recipe: Training, change: Change) -> float:
    """Return 1 if a changed step draws its dropout by a new seed and moves by a new learning rate, else 0.

    A CUDA graph repeats what it recorded: a seed or a rate that was recorded as a number would stay for ever.
    """
    trainer = trainer_of(recipe, unread(recipe.classes, recipe.classes), 0, change)
    network, device = trainer.network.train(), trainer.device
    first = {name: value.clone() for name, value in network.state_dict().items()}
    shape = (recipe.batch_size, 3, recipe.image_size, recipe.image_size)
    crops = torch.randint(256, shape, dtype=torch.uint8, device=device)
    numbers = randomness.uniforms(recipe.seed, 0, np.arange(len(crops)), UNIFORMS)
    x = trainer.method.views(recipe, crops, numbers).contiguous(memory_format=torch.channels_last)
    targets = torch.arange(len(x), device=device, dtype=torch.int32) % recipe.classes

    def step(seed: int, lr: float) -> tuple[torch.Tensor, bool]:
        """Return the logits, and whether the weights moved, of a step from the first weights."""
        network.load_state_dict(first)
        for group in trainer.optimizer.param_groups:
            group["lr"] = lr
        torch.manual_seed(seed)
        with autocast(trainer.precision, device):
            logits = network(x)
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.method.loss(recipe, logits, targets).backward()
        trainer.optimizer.step()
        return logits.detach().clone(), not torch.equal(network.top.weight, first["top.weight"])

    for seed in range(3):  # they compile and record
        step(seed, recipe.lr)
    (once, moved), (again, _), (other, _), (_, moved_at_0) = (
        step(seed, lr) for seed, lr in ((1, recipe.lr), (1, recipe.lr), (2, recipe.lr), (1, 0.0))
    )
    drawn_anew = (again - once).norm() < 0.1 * (other - once).norm()
    return float(moved and not moved_at_0 and bool(drawn_anew))


def raced(arms: dict[str, tuple[Any, ...]], pairs: int = PAIRS) -> tuple[dict[str, list[float]], list[float]]:
    """Train the arms in turn, each in a process; the first one must not fail.

    Args:
        arms: arguments of bench.methods.train.

    Returns:
        Images per second of each arm, NaN for one that failed; the matrix rates, operations per second.
    """
    first = next(iter(arms))
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(Process(train, *arguments)) for name, arguments in arms.items()}
        turns: dict[str, Arm] = {
            name: process if name == first else tolerant(process) for name, process in processes.items()
        }
        seconds = interleaved({"matrix product": product(8192, 20), **turns}, pairs)["matrix product"]
    found = {
        name: process.each(lambda epoch: epoch.rate) if len(process.epochs) > pairs else [math.nan] * pairs
        for name, process in processes.items()
    }
    return found, [1 / each for each in seconds]


def failed(found: dict[str, list[float]]) -> list[str]:
    """Return the arms without a rate."""
    return [name for name, rate in found.items() if math.isnan(median(rate))]


def _resident(recipe: Training, images: int, *changes: Change) -> tuple[Any, ...]:
    """Arguments of bench.methods.train for crops that are on the device."""
    return recipe, unread(images, recipe.classes), 0, 0, resident, *changes


def judge(bars: Bars, name: str, values: list[float]) -> None:
    """Add the line of a bar."""
    sign, bound = BOUNDS[name]
    (bars.at_least if sign == ">=" else bars.at_most)(name, values, bound)


@dataclass(frozen=True)
class Part:
    """Measurements that are kept together.

    Attributes:
        seconds: how long it may take, a guess.
        bars: names of its bars.
        work: measures and adds the lines of the bars; returns the arms that failed, if it has any.
    """

    seconds: int
    bars: tuple[str, ...]
    work: Callable[[Bars, Images], list[str] | None]


_ALEXNET: dict[str, Change] = {
    "cuDNN's autotuner": variants.autotuned,
    "conv1 by space-to-depth": variants.space_to_depth,
    "fused input": variants.fused_input,
    "top layer in bf16": variants.short_top,
    "these four": variants.together(
        variants.autotuned, variants.space_to_depth, variants.fused_input, variants.short_top
    ),
    "deterministic kernels": variants.deterministic,
}
_COMPILERS: dict[str, Change] = {"torch.compile": variants.compiled, "CUDA graphs": variants.graphed}
_LARGE: dict[str, Change] = {
    "cuDNN's autotuner": variants.autotuned,
    "fused input": variants.fused_input,
    "both": variants.together(variants.autotuned, variants.fused_input),
    **_COMPILERS,
}
PARTS = {
    "profile-alexnet": Part(30, (), partial(profiles, "alexnet")),
    "alexnet": Part(
        50, ("gpu-alexnet", "gpu-end-to-end-alexnet", "gpu-batch-256", "gpu-strong"), partial(rates, "alexnet")
    ),
    "variants-alexnet": Part(80, (), partial(changed, "alexnet", _ALEXNET)),
    "vgg16": Part(40, ("gpu-vgg16", "gpu-end-to-end-vgg16"), partial(rates, "vgg16")),
    "resnet50": Part(40, ("gpu-resnet50", "gpu-end-to-end-resnet50"), partial(rates, "resnet50")),
    "kmeans": Part(30, ("gpu-kmeans",), clustering),
    "profile-vgg16": Part(20, (), partial(profiles, "vgg16")),
    "profile-resnet50": Part(20, (), partial(profiles, "resnet50")),
    "compilers-alexnet": Part(90, ("gpu-seed-and-lr",), compilers),
    "variants-resnet50": Part(110, (), partial(changed, "resnet50", _LARGE, pairs=FEW)),
    "variants-vgg16": Part(80, (), partial(changed, "vgg16", _LARGE, pairs=FEW)),
}
"""In the order of what teaches most; together within MINUTES."""


def open_lines(name: str) -> list[str]:
    """Return a line for each bar of a part that is not measured, or one for a part without a bar."""
    bars = [f"open {bar} {BOUNDS[bar][0]} {BOUNDS[bar][1]:g}" for bar in PARTS[name].bars]
    return bars or [f"open gpu-{name}"]


def code() -> str:
    """Hash what decides the numbers beside the hardware: the sources, and the recipes."""
    files = [*sorted(file for name in ("bench", "uic_core") for file in (ROOT / name).rglob("*.py")), PAPER]
    return hashlib.sha256("".join(map(sha256, files)).encode()).hexdigest()[:16]


class Kept:
    """What earlier calls measured with the same code and hardware, in a file with a line of JSON for each part."""

    def __init__(self, file: Path, hardware: str, code: str) -> None:
        self._file, self._here = file, {"hardware": hardware, "code": code}
        found = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        self._records = {self._key(each): each for each in found}

    def recall(self, name: str, bars: Bars) -> bool:
        """Add what a part found; False if it has not been measured whole."""
        record = self._records.get(self._key(self._here | {"part": name}))
        if record is None or any(line.startswith("open ") for line in record["bars"]):
            return False
        for line in record["said"]:
            bars.say(line)
        for line in record["bars"]:
            bars.add(line)
        return True

    def keep(self, name: str, said: list[str], bars: list[str]) -> None:
        """Write what a part found."""
        record = {"part": name, **self._here, "said": said, "bars": bars}
        self._records[self._key(record)] = record
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_text(self._file, "".join(f"{json.dumps(each, ensure_ascii=False)}\n" for each in self._records.values()))

    @staticmethod
    def _key(record: dict[str, Any]) -> tuple[Any, ...]:
        return record["hardware"], record.get("code"), record["part"]


def measure(names: list[str], bars: Bars, kept: Kept, images: Images, minutes: float) -> None:
    """Measure parts that are not kept yet and, by their guesses, end in time. An error ends its part alone.

    A part with an open line is kept to be read, and measured again by the next call.
    """
    end = time.monotonic() + 60 * minutes
    for name in names:
        part, said, lines = PARTS[name], len(bars.said), len(bars.lines)
        if kept.recall(name, bars):
            continue
        if time.monotonic() + part.seconds > end:
            for line in open_lines(name):
                bars.add(line)
        else:
            print(f" {name}", flush=True)
            try:
                for arm in part.work(bars, images) or ():
                    bars.add(f"open gpu-{name}: {arm} failed")
            except Exception:
                traceback.print_exc()
                bars.add(f"MISS gpu-{name} ended with an error")
                continue
        kept.keep(name, bars.said[said:], bars.lines[lines:])


def main(arguments: list[str] | None = None) -> None:
    """Print the bars; exit with status 1 if one is missed."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", action="store_true", help="only where the time of a step goes")
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="only these")
    parser.add_argument(
        "--minutes", type=float, default=MINUTES, help=f"start no part that would end later ({MINUTES})"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(os.environ.get("OUT", ROOT / "results"), "gpu.jsonl"),
        help="file of what was found; delete it to measure all of it anew (gpu.jsonl in $OUT or in results)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    gpu = torch.cuda.is_available()
    if not gpu and not options.profile:
        print("no GPU at hand: bench/gpu measures nothing here")
        return
    names = options.parts or [name for name in PARTS if not options.profile or name.startswith("profile-")]
    hardware = f"{devices.hardware() or 'CPU'}, torch {torch.__version__}"
    bars = Bars(f"gpu, {hardware}")
    with tempfile.TemporaryDirectory() as folder:
        images = Images(Path(folder)) if gpu else Images(Path(folder), 8)
        measure(names, bars, Kept(options.out, hardware, code()), images, options.minutes)
    bars.close()


if __name__ == "__main__":
    main()
