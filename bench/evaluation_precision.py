"""Evaluations whose network computes in bf16, beside float32: `make bench-evaluation_precision`, nine minutes of a CPU.

A supervised AlexNet of the demo, and the demo's probes, nearest neighbours and few-shot episodes on it. Both arms see
the same images in the same order, with the same first weights. On a CPU times are CPU seconds of this process.
"""

from __future__ import annotations

import contextlib
import math
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, get_args

import torch

from bench.measure import Arm, Bars, interleaved, now, ratios
from uic_core import recipe
from uic_core.data import synthetic
from uic_core.data.dataset import Datasets
from uic_core.data.index import Index, build_folder, build_miniimagenet
from uic_core.evaluate import fewshot, knn
from uic_core.evaluate.frozen import taps
from uic_core.evaluate.probes import Probes
from uic_core.evaluations import Fewshot, Knn, LinearProbe
from uic_core.evaluations.evaluation import Precision
from uic_core.methods import parse_run
from uic_core.models import build
from uic_core.models.network import Network
from uic_core.pretrain.loop import Trainer
from uic_core.recipe import Training
from uic_core.run import devices, randomness
from uic_core.run.parallel import ALONE
from uic_core.strict_yaml import read_yaml

DEMO = read_yaml(Path(__file__).parents[1] / "config" / "demo.yaml")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
VAL_IMAGES, SEEDS = 500, 4
POINTS = 0.1
"""What bf16 may change the mean accuracy of the five layers by."""
RATES = (0.005, DEMO["evaluations"]["linear_probe"]["lr"])
"""Learning rates of the probes. At the demo's own the loss oscillates, so that any rounding grows to points."""
STUDENT = 3.182
"""The 97.5 % quantile of Student's t, of the mean of SEEDS differences."""


def data(folder: Path) -> tuple[Index, Index, Index]:
    """Draw the demo's images, with more validation images: training, validation, few-shot."""
    section = DEMO["datasets"] | {"cache": DEMO["datasets"]["cache"] | {"root": str(folder / "cache")}}
    imagenet = section["folders"]["imagenet"] | {"root": str(folder / "imagenet"), "val_images": VAL_IMAGES}
    section |= {"folders": {"imagenet": imagenet}}
    section |= {"miniimagenet": section["miniimagenet"] | {"root": str(folder / "miniimagenet")}}
    datasets = recipe.parse(Datasets, section, "bench")
    for name in ("imagenet", "miniimagenet"):
        synthetic.generate(datasets.one(name))
    return (
        build_folder(folder / "imagenet", "train", "imagenet"),
        build_folder(folder / "imagenet", "val", "imagenet"),
        build_miniimagenet(folder / "miniimagenet", "test"),
    )


def trained(index: Index, folder: Path) -> Network:
    """Train the demo's supervised network."""
    made = parse_run(DEMO["runs"]["supervised"], "bench")
    assert isinstance(made, Training)
    randomness.seed_everything(made.seed)
    network = build(made.arch, classes=made.outputs, image_size=made.image_size, sobel=made.sobel)
    with contextlib.redirect_stdout(None):
        Trainer(made, index, network, None, ALONE, 0, math.inf).run(folder)
    network.zero_grad()
    network.to(devices.current(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network


def section(name: str, model: type[recipe.S], precision: Precision, **changes: Any) -> recipe.S:
    """Return the demo's section of an evaluation in a precision."""
    return recipe.parse(model, DEMO["evaluations"][name] | {"precision": precision} | changes, "bench")


def probed(network: Network, train: Index, val: Index, precision: Precision, seed: int, lr: float) -> list[float]:
    """Return each layer's top-1 accuracy after the last epoch, percent."""
    protocol = section("linear_probe", LinearProbe, precision, seed=seed, lr=lr)
    with contextlib.redirect_stdout(None):
        made = Probes(network, train, val, protocol, DEMO["templates"]["alexnet"]["resize"])
        with contextlib.closing(made):
            return [100 * float(curve.top1[-1]) for curve in made.run().values()]


def probes(bars: Bars, network: Network, train: Index, val: Index, seed: int, lr: float) -> float:
    """Return what bf16 changes the mean accuracy of the layers by, points."""
    found = {precision: probed(network, train, val, precision, seed, lr) for precision in PRECISIONS}
    for precision, layers in found.items():
        shown = "  ".join(f"{value:.1f}" for value in layers)
        bars.say(f"  probes, lr {lr}, seed {seed}, {precision}: {shown}  mean {statistics.fmean(layers):.2f}")
    return statistics.fmean(found["bf16"]) - statistics.fmean(found["fp32"])


def neighbours(network: Network, bank: Index, queries: Index, precision: Precision) -> dict[str, float]:
    """Return the top-1 accuracy of each layer, k and T, percent."""
    protocol = section("knn", Knn, precision)
    known = bank.subset(protocol.images[network.arch], protocol.seed)
    layers, resize = protocol.layers[network.arch], DEMO["templates"]["alexnet"]["resize"]
    found = knn.neighbours(network, known, queries, layers, protocol.neighbours[-1], resize, precision=precision)
    return {key: value.value for key, value in knn.values(found, known, queries, protocol).items()}


def episodes(network: Network, index: Index, precision: Precision, folder: Path) -> dict[str, float]:
    """Return the few-shot accuracy of each column, percent."""
    with contextlib.redirect_stdout(None):
        values, _ = fewshot.evaluate(network, index, section("fewshot", Fewshot, precision), folder)
    return {key: value.value for key, value in values.items()}


def passes(images: torch.Tensor, network: Network, layers: list[str], precision: Precision) -> Arm:
    """Return an arm that measures the seconds of a pass up to the deepest layer: CPU seconds, or those of a GPU."""
    clock = now if images.is_cuda else time.process_time

    def arm() -> float:
        began = clock()
        taps(network, images, layers, precision)
        return clock() - began

    return arm


def speed(bars: Bars) -> None:
    """Compare passes of 64 images, by architecture and side of the input."""
    cases = {("alexnet", 64): "conv5", ("alexnet", 224): "conv5", ("vgg16", 64): "conv13", ("resnet50", 64): "avgpool"}
    for (arch, side), layer in cases.items():
        torch.manual_seed(0)
        network = build(arch, classes=2, image_size=side, sobel=arch == "alexnet").eval().requires_grad_(False)
        network.to(devices.current(), memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = torch.randn(64, 3, side, side, device=devices.current()).contiguous(memory_format=torch.channels_last)
        found = interleaved({precision: passes(images, network, [layer], precision) for precision in PRECISIONS})
        times = ratios(found["fp32"], found["bf16"])
        bars.say(f"  {arch} at {side}, up to {layer}: bf16 {statistics.median(times):.2f} times as fast as fp32")


def main() -> None:
    """Print the bar, and what has none."""
    assert set(PRECISIONS) < set(get_args(Precision))
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    bars = Bars("evaluations in bf16")
    speed(bars)
    with tempfile.TemporaryDirectory() as name, torch.random.fork_rng():
        folder = Path(name)
        train, val, few = data(folder)
        network = trained(train, folder)
        for lr in RATES:
            differences = [probes(bars, network, train, val, seed, lr) for seed in range(SEEDS)]
            interval = STUDENT * statistics.stdev(differences) / math.sqrt(SEEDS)
            mean = statistics.fmean(differences)
            bars.say(f"  lr {lr}: bf16 − fp32, mean over layers: {mean:+.3f} ± {interval:.3f} points (95 %)")
            if lr == RATES[0]:
                bars.at_most("bf16-probe-points", [abs(mean)], POINTS)
        for kind, (plain, rounded) in (
            ("nearest neighbours", [neighbours(network, train, val, precision) for precision in PRECISIONS]),
            ("few-shot", [episodes(network, few, precision, folder) for precision in PRECISIONS]),
        ):
            apart = [rounded[key] - plain[key] for key in plain]
            bars.say(f"  {kind}: {min(apart):+.2f} to {max(apart):+.2f} points, mean {statistics.fmean(apart):+.2f}")
    bars.close()


if __name__ == "__main__":
    main()
