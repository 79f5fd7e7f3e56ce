"""Where a step's time goes: every kernel has the group of the operator that launched it, backward too."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent
from torch.profiler import ProfilerActivity, profile

from bench import gpu, kernels
from bench.methods import resident, trainer_of
from bench.precision import unread


def test_operators_have_their_groups_backward_too() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(676, 5)
    )
    network[0].forward = kernels.named(kernels.FIRST, network[0].forward)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, fused=True)
    x = torch.randn(2, 3, 32, 32, requires_grad=True)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
        for _ in range(2):
            network(x).sum().backward()
            optimizer.step()
    found = Counter((name, group) for name, group, _ in kernels.attributed(profiler.events(), on_gpu=False))
    for name, group in {
        "aten::convolution": kernels.FIRST,
        "aten::convolution_backward": kernels.FIRST,
        "aten::native_batch_norm": "BN",
        "aten::native_batch_norm_backward": "BN",
        "aten::max_pool2d_with_indices": "pooling",
        "aten::max_pool2d_with_indices_backward": "pooling",
        "aten::addmm": "matrix products",
        "aten::_fused_sgd_": kernels.OPTIMISER,
    }.items():
        assert found[name, group] == 2, (name, group)
    assert found["aten::convolution", "convolutions"] == found["aten::convolution_backward", "convolutions"] == 2
    assert found["aten::mm", "matrix products"] == 4  # of the weights and of the input


def event(name: str, start: int, end: int, **more: Any) -> FunctionEvent:
    """An event of thread 1, from `start` to `end` in microseconds."""
    return FunctionEvent(more.pop("id", 0), name, 1, start, end, **more)


def test_kernels_by_hand() -> None:
    """One step of 20 µs: kernels at 2…6 and 4…9, a copy from the host at 10…13, one kernel that nobody launched."""
    outer, inner = event("aten::conv2d", 0, 5), event("aten::cudnn_convolution", 1, 4)
    inner.append_kernel("gemm", 0, 4)
    step, fused = event("Optimizer.step#SGD.step", 5, 9, is_user_annotation=True), event("aten::_fused_sgd_", 6, 8)
    step.append_kernel("Optimizer.step#SGD.step", 0, 5)  # its span on the device
    fused.append_kernel("sgd", 0, 5)
    copy = event("aten::copy_", 9, 10)
    copy.append_kernel("Memcpy HtoD (Pinned -> Device)", 0, 3)
    spans = {"gemm": (2, 6), "sgd": (4, 9), "Memcpy HtoD (Pinned -> Device)": (10, 13), "unknown": (14, 15)}
    on_device = [event(name, *span, device_type=DeviceType.CUDA) for name, span in spans.items()]
    on_device.append(event("Optimizer.step#SGD.step", 4, 9, device_type=DeviceType.CUDA, is_user_annotation=True))
    events = EventList([outer, inner, step, fused, copy, *on_device])
    events._build_tree()
    found = kernels.summary(events, 1, 0.020)
    assert found.busy == pytest.approx(0.008)  # 2…9 and 14…15
    groups = {group: (round(1000 * took), count) for group, (took, count) in found.groups.items() if count}
    assert groups == {"convolutions": (4, 1), kernels.OPTIMISER: (5, 1), "copies": (3, 1), kernels.OTHER: (1, 1)}
    assert found.table().splitlines()[0] == "0.02 ms a step, 60.0% of it idle; 4 launches a step"


def test_label_passes_do_not_count() -> None:
    recipe = gpu.recipe_of("alexnet", **gpu.TINY)
    trainer = trainer_of(recipe, unread(40, 8), 0, resident)
    watch = kernels.Watch(trainer, 0, 1)
    batches = [torch.arange(8).numpy()] * 3
    for view, seed in (("center_crop", recipe.seed), ("resized_crop", recipe.seed + 1)):
        assert len(list(trainer.loader.stream(batches, view, seed, 0))) == 3
        assert not watch.complete
    list(trainer.loader.stream(batches, "resized_crop", recipe.seed, 0))
    assert watch.complete
