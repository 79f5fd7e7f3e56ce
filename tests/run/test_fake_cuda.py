"""Where tensors are, on a GPU that is none: fake tensors have a device and no numbers, and refuse to mix devices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.recipes import recipe
from uic_core.data import augment
from uic_core.data.augment import UNIFORMS
from uic_core.evaluate.knn import Neighbours
from uic_core.methods import METHODS, kmeans
from uic_core.models import build
from uic_core.run import devices
from uic_core.run.randomness import uniforms

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def onto(device: torch.device, values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(device)  # fake tensors cannot be pinned

    monkeypatch.setattr(devices, "onto", onto)
    monkeypatch.setattr(augment, "_moments", augment._moments.__wrapped__)  # it would keep fake tensors
    with FakeTensorMode():
        yield


@pytest.mark.parametrize(
    "changes",
    [
        {"augmentation": "standard"},
        {"augmentation": "strong", "arch": "vgg16"},
        {"method": "selflabel", "augmentation": "selflabel", "heads": 2, "arch": "resnet50", "sobel": False},
        {"method": "rotnet", "classes": 4, "arch": "alexnet_rotnet", "sobel": False},
    ],
)
def test_a_steps_tensors_are_on_the_gpu(changes: dict[str, Any]) -> None:
    made: Any = recipe(**changes)
    method: Any = METHODS[made.method]
    with GPU:
        network = build(made.arch, classes=made.outputs, image_size=made.image_size, sobel=made.sobel)
    crops = torch.zeros(8, 3, made.image_size, made.image_size, dtype=torch.uint8, device=GPU)
    logits = network(method.views(made, crops, uniforms(0, 0, np.arange(8), UNIFORMS)))
    targets = torch.zeros(8, 2 if changes.get("heads") else 1, dtype=torch.int32, device=GPU).squeeze(1)
    found = {"loss": method.loss(made, logits, targets), **method.measures(made, logits, targets)}
    assert {(value.device, value.shape) for value in found.values()} == {(GPU, torch.Size())}


def test_nearest_rows_are_found_on_the_gpu() -> None:
    nearest = Neighbours(torch.zeros(50, 8, device=GPU), 3)
    nearest.add(torch.zeros(20, 8, device=GPU), 0)
    assert nearest.keys.device == GPU
    for _, *found in kmeans._nearest(torch.zeros(50, 8, device=GPU), torch.zeros(5, 8, device=GPU)):
        assert {each.device for each in found} == {GPU}


class _Copies(TorchDispatchMode):
    """Notes the types that leave the CPU, and those that come out of the copies."""

    def __init__(self) -> None:
        super().__init__()
        self.types: list[tuple[torch.dtype, torch.dtype]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten._to_copy and args[0].device != found.device:
            self.types.append((args[0].dtype, found.dtype))
        return found


def test_a_tensor_takes_its_type_after_the_copy() -> None:
    with _Copies() as copies:
        found = devices.like(torch.zeros(4, dtype=torch.float16), torch.zeros(1, dtype=torch.float64, device=GPU))
    assert (found.dtype, found.device) == (torch.float64, GPU)
    assert copies.types == [(torch.float16, torch.float16)]
