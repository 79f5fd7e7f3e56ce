"""Max-pooling that reduces a layer's activation to about 9,600 numbers for a linear probe (protocol.md, Networks)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from uic_core.models import ARCHS


def probe_pool(layer: str, activation: Tensor, arch: str) -> Tensor:
    """Activation [B, C, h, w] of `layer` -> [B, D]; vectors [B, D] are returned unchanged.

    For an input of 224 pixels this is the paper's pooling. For other sizes it is an adaptive max-pooling to the same
    side, or to the map's own side if that is smaller.
    """
    if activation.ndim == 2:
        return activation
    pool = ARCHS[arch].probe_layers[layer]
    assert pool is not None, f"{layer} of {arch} is a vector"
    if activation.shape[-1] == pool.side:
        pooled = functional.max_pool2d(activation, pool.kernel, pool.stride, pool.padding)
    else:
        pooled = functional.adaptive_max_pool2d(activation, min(pool.target, activation.shape[-1]))
    return torch.flatten(pooled, 1)
