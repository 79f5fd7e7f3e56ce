"""Images per second on this CPU: the precision and memory layout that `auto` chooses, relative to float32 in NCHW.

Both run the suite's own training loop on input that costs nothing. `nchw` says how the plain one differs.
"""

from __future__ import annotations

import contextlib
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from bench.measure import PAIRS, Bars, interleaved, ratios
from bench.methods import Process, recipe_of, resident, train
from uic_core.data.index import Index
from uic_core.pretrain.loop import Trainer
from uic_core.recipe import Training

CASES = {("alexnet", 224): (256, 1), ("alexnet", 64): (256, 4), ("vgg16", 64): (8, 3), ("resnet50", 64): (16, 3)}
"""Batch size and steps per epoch for each architecture and side of the input, pixels."""

WITH_AMX = {("alexnet", 224): 2.5, ("alexnet", 64): 4.0}


def nchw(trainer: Trainer) -> None:
    """Undo the loop's memory layout of weights and input."""
    for parameter in trainer.network.parameters():
        parameter.data = parameter.data.contiguous()

    def plain(_: nn.Module, images: tuple[Tensor]) -> tuple[Tensor]:
        return (images[0].contiguous(),)

    trainer.network.register_forward_pre_hook(plain)


def unread(images: int, classes: int) -> Index:
    """Return an index of files that are never opened."""
    labels = np.arange(images, dtype=np.int32) % classes
    return Index("unread", Path(), np.full(images, "none"), labels, tuple(map(str, range(classes))), "")


def trained(arch: str, size: int, batch: int, images: int, classes: int, **values: Any) -> tuple[Training, Index]:
    """Return `train`'s arguments for an epoch of UIC on `images` images; AlexNet has Sobel filters, as in the paper."""
    classes = min(classes, images)
    shape = {"arch": arch, "sobel": arch == "alexnet", "image_size": size, "resize": size * 256 // 224}
    return recipe_of("uic", batch_size=batch, classes=classes, **shape, **values), unread(images, classes)


def measure(bars: Bars, arch: str, size: int, batch: int, steps: int, pairs: int = PAIRS) -> None:
    """Measure one case, and each of the two choices alone where that is cheap."""
    auto, plain = (trained(arch, size, batch, batch * steps, 1000, precision=asked) for asked in ("auto", "fp32"))
    arms = {"auto": (*auto, 0, 0, resident), "fp32 in NCHW": (*plain, 0, 0, resident, nchw)}
    if arch == "alexnet":
        arms |= {"channels last alone": (*plain, 0, 0, resident), "precision alone": (*auto, 0, 0, resident, nchw)}
    print(f"  {arch} at {size} pixels, batches of {batch}:")
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(Process(train, *arguments)) for name, arguments in arms.items()}
        interleaved(dict(processes), pairs)
    speed = {name: process.each(lambda epoch: epoch.rate) for name, process in processes.items()}
    found = {name: ratios(rates, speed["fp32 in NCHW"]) for name, rates in speed.items()}
    alone = ", ".join(f"{name} {statistics.median(found[name]):.2f}" for name in list(arms)[2:])
    print(
        f"  auto: {statistics.median(speed['auto']):.1f} images/s" + (f"; {alone} times fp32 in NCHW" if alone else "")
    )
    bars.at_least(f"auto-floor-{arch}-{size}", found["auto"], 0.95)
    if (arch, size) in WITH_AMX and has_amx():
        bars.at_least(f"auto-{size}", found["auto"], WITH_AMX[arch, size])


def has_amx() -> bool:
    """Whether this CPU multiplies bf16 matrices in tiles."""
    return "amx_bf16" in Path("/proc/cpuinfo").read_text().split()


def main() -> None:
    """Print the bars."""
    bars = Bars("precision")
    for (arch, size), (batch, steps) in CASES.items():
        measure(bars, arch, size, batch, steps)
    if not has_amx():
        names = " and ".join(f"auto-{size}" for _, size in WITH_AMX)
        print(f"  {names} do not apply here: this CPU has no AMX.")
    bars.close()


if __name__ == "__main__":
    main()
