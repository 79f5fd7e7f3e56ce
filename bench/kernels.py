"""Where the time of a training step goes: milliseconds and launches by group of kernels, and how long the GPU idles.

torch's profiler says which operator launched a kernel. The kernel's group is that of the innermost operator with one.
But all that runs in a named range, and in the range's backward pass, is the range's. On a CPU times are of operators.
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate
from torch import Tensor
from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from bench.measure import now
from bench.methods import trainer_of
from bench.variants import Change
from uic_core.data.index import Index
from uic_core.pretrain.loop import Trainer
from uic_core.recipe import Training

FIRST, AUGMENTATION, OPTIMISER, OTHER = "Sobel and conv1", "augmentation", "optimiser", "other"
_OPERATORS = {
    "convolutions": re.compile("conv"),
    "BN": re.compile("batch_norm"),
    "pooling": re.compile("pool"),
    "matrix products": re.compile(r"::(add|b|badd)?mm\b|::linear\b|::matmul\b"),
    "copies": re.compile(r"::copy_|::clone|::contiguous|::cat\b"),
}
GROUPS = (FIRST, *_OPERATORS, OPTIMISER, AUGMENTATION, OTHER)
_FROM_AND_TO_HOST = re.compile("HtoD|DtoH")


@dataclass(frozen=True)
class Profile:
    """A training step, the mean of several.

    Attributes:
        step: milliseconds from one to the next, without the profiler.
        busy: milliseconds in which the GPU does anything but copy from and to the host; on a CPU, in operators.
        groups: milliseconds and launches by group, in the order of GROUPS; on a CPU, operators are counted.
    """

    step: float
    busy: float
    groups: dict[str, tuple[float, float]]

    def table(self) -> str:
        """Return a table of the groups, under a line on the whole."""
        total = sum(milliseconds for milliseconds, _ in self.groups.values())
        launches = sum(count for _, count in self.groups.values())
        rows = [
            (group, milliseconds, f"{milliseconds / total:.1%}", count)
            for group, (milliseconds, count) in self.groups.items()
        ]
        head = ("kernels", "ms a step", "share", "launches a step")
        idle = max(0.0, 1 - self.busy / self.step)
        return (
            f"{self.step:.4g} ms a step, {idle:.1%} of it idle; {launches:.0f} launches a step\n"
            f"{tabulate(rows, head, floatfmt='.3f')}"
        )


def profiled(recipe: Training, index: Index, workers: int, warm_up: int, steps: int, *changes: Change) -> Profile:
    """Train for an epoch and profile steps of it. Label passes do not count: they are between the steps.

    Args:
        workers: decoding processes.
        warm_up: steps before the first timed one; then `steps` are timed, and as many profiled.
    """
    images = (warm_up + 2 * steps + 1) * recipe.batch_size
    assert len(index) >= images, f"{len(index)} images are fewer than the {images} of these steps"
    trainer = trainer_of(recipe.model_copy(update={"epochs": 1}), index, workers, *changes)
    _name_ranges(trainer)
    watch = Watch(trainer, warm_up, steps)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer.run(Path(folder))
    return watch.profile()


class Watch:
    """Times and profiles steps, which it counts by the batches that the loader hands out for them.

    Attributes:
        complete: all these steps have been.
    """

    def __init__(self, trainer: Trainer, warm_up: int, steps: int) -> None:
        gpu = trainer.device.type == "cuda"
        self._seed, self._warm_up, self._steps = trainer.recipe.seed, warm_up, steps
        self._profiler = profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * gpu], acc_events=True)
        self._started = self._seconds = 0.0
        self.complete = False
        self._stream = trainer.loader.stream
        trainer.loader.stream = self._counted  # type: ignore[assignment, method-assign]

    def profile(self) -> Profile:
        """Return what was found."""
        assert self.complete, "the epoch had too few steps"
        return summary(self._profiler.events(), self._steps, 1000 * self._seconds / self._steps)

    def _counted(
        self, batches: Iterable[NDArray[np.int64]], view: Any, seed: int, epoch: int
    ) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
        found = self._stream(batches, view, seed, epoch)
        return self._watched(found) if (view, seed) == ("resized_crop", self._seed) else found

    def _watched(self, batches: Iterator[Any]) -> Iterator[Any]:
        for number, batch in enumerate(batches):
            if number == self._warm_up:
                self._started = now()
            elif number == self._warm_up + self._steps:
                self._seconds = now() - self._started
                self._profiler.start()
            elif number == self._warm_up + 2 * self._steps:
                now()
                self._profiler.stop()
                self.complete = True
            yield batch


def _name_ranges(trainer: Trainer) -> None:
    """Name the parts of a step that are no operator."""
    network = trainer.network
    for module in (network.sobel, network.features.get_submodule("conv1")):
        module.forward = named(FIRST, module.forward)
    trainer.method = replace(trainer.method, views=named(AUGMENTATION, trainer.method.views))


def named(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose operators are in a named range."""

    def in_range(*arguments: Any) -> Any:
        with record_function(name):
            return work(*arguments)

    return in_range


def summary(events: Sequence[FunctionEvent], steps: int, step: float) -> Profile:
    """Return the mean of `steps` profiled steps.

    Args:
        events: of torch's profiler, in order of their starts, with parents.
        step: milliseconds of a step.
    """
    on_device = [each for each in events if each.device_type != DeviceType.CPU and not each.is_user_annotation]
    sums: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for _, group, microseconds in attributed(events, on_gpu=bool(on_device)):
        sums[group] += microseconds
        counts[group] += 1
    if on_device:  # some may have no operator
        sums[OTHER] += sum(each.time_range.elapsed_us() for each in on_device) - sum(sums.values())
        counts[OTHER] += len(on_device) - sum(counts.values())
        busy = _union(each for each in on_device if not _FROM_AND_TO_HOST.search(each.name))
    else:
        busy = sum(sums.values())
    groups = {group: (sums[group] / steps / 1000, counts[group] / steps) for group in GROUPS}
    return Profile(step, busy / steps / 1000, groups)


def attributed(events: Sequence[FunctionEvent], *, on_gpu: bool) -> Iterator[tuple[str, str, float]]:
    """Yield operator, group and microseconds of every kernel that an operator launched; on a CPU, of every operator."""
    # A backward operator has the number of the forward operator whose gradient it computes. Before that one takes a
    # number, others show the same: it is the last of them.
    made = {each.sequence_nr: _range(each) for each in events if each.sequence_nr >= 0 and not each.fwd_thread}
    for event in events:
        if event.device_type != DeviceType.CPU:
            continue
        if on_gpu:
            # An annotation's span on the device is among its kernels.
            kernels = [kernel.duration for kernel in event.kernels if kernel.name != event.name]
        else:
            kernels = [event.self_cpu_time_total] * (not event.is_user_annotation)
        if kernels:
            group = _range(event) or _of_forward(event, made) or _operator(event)
            for microseconds in kernels:
                yield event.name, group, microseconds


def _range(event: FunctionEvent) -> str:
    """Return the named range that an event is in, '' if in none."""
    for each in _lineage(event):
        if each.name in (FIRST, AUGMENTATION):
            return each.name
        if each.name.startswith("Optimizer."):
            return OPTIMISER
    return ""


def _of_forward(event: FunctionEvent, made: dict[int, str]) -> str:
    """Return the range of the forward operator whose gradient an event computes, '' if there is none."""
    return next((made.get(each.sequence_nr, "") for each in _lineage(event) if each.fwd_thread), "")


def _operator(event: FunctionEvent) -> str:
    for each in _lineage(event):
        for group, pattern in _OPERATORS.items():
            if pattern.search(each.name):
                return group
    return OTHER


def _lineage(event: FunctionEvent) -> Iterator[FunctionEvent]:
    """Yield an event, its parent, the parent's parent …"""
    current: FunctionEvent | None = event
    while current is not None:
        yield current
        current = current.cpu_parent


def _union(events: Iterable[FunctionEvent]) -> float:
    """Return the microseconds in which at least one of the events runs."""
    total, end = 0.0, -1.0
    for span in sorted((each.time_range for each in events), key=lambda span: span.start):
        total += max(0.0, span.end - max(span.start, end))
        end = max(end, span.end)
    return total
