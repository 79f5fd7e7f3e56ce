"""Greyscale and two fixed Sobel filters before the first convolution (docs/protocol.md, Networks)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Sobel(nn.Module):
    """Normalised RGB [B, 3, H, W] -> vertical and horizontal edges [B, 2, H, W]. It has no trained weights.

    The mean over RGB and the two 3x3 filters are one convolution with a frozen kernel that is not in the state dict.
    """

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        filters = torch.tensor([[[1.0, 0, -1], [2, 0, -2], [1, 0, -1]], [[1.0, 2, 1], [0, 0, 0], [-1, -2, -1]]])
        self.register_buffer("kernel", filters[:, None].repeat(1, 3, 1, 1) / 3, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map RGB to edges."""
        return functional.conv2d(x, self.kernel.to(x.dtype), padding=1)
