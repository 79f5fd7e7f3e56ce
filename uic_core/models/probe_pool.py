"""Max-pooling that brings a layer's activation to about 9,600 numbers for a linear probe (PROTOCOL section 1)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from uic_core.models import ARCHS


def probe_pool(layer: str, activation: Tensor, arch: str) -> Tensor:
    """Activation [B, C, h, w] of `layer` -> [B, D]; vectors [B, D] pass unchanged.

    At an input of 224 the pooling is the paper's; at other sizes an adaptive max-pool to the same side, or to the
    map's own where that is smaller.
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
