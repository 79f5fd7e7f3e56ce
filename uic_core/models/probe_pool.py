"""Max-pooling that brings a layer's activation to about 9,600 numbers for a linear probe (PROTOCOL section 1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_Pool = tuple[int, tuple[int, int, int], int]
"""Side of the map at 224, (kernel, stride, padding), side after pooling."""

_ALEXNET: dict[str, _Pool] = {
    "conv1": (55, (6, 6, 3), 10),
    "conv2": (27, (4, 4, 0), 6),
    "conv3": (13, (3, 3, 1), 5),
    "conv4": (13, (3, 3, 1), 5),
    "conv5": (13, (2, 2, 0), 6),
}
POOLS: dict[str, dict[str, _Pool]] = {
    "alexnet": _ALEXNET,
    "alexnet_torchvision": _ALEXNET,
    "vgg16": {"conv13": (14, (3, 3, 0), 4)},
}


def probe_pool(layer: str, activation: Tensor, arch: str) -> Tensor:
    """Activation [B, C, h, w] of `layer` -> [B, D]; vectors [B, D] pass unchanged.

    At an input of 224 the pooling is the paper's; at other sizes an adaptive max-pool to the same side, or to the
    map's own where that is smaller.
    """
    if activation.ndim == 2:
        return activation
    side, (kernel, stride, padding), target = POOLS[arch][layer]
    if activation.shape[-1] == side:
        pooled = functional.max_pool2d(activation, kernel, stride, padding)
    else:
        pooled = functional.adaptive_max_pool2d(activation, min(target, activation.shape[-1]))
    return torch.flatten(pooled, 1)
