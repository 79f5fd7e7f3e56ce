"""Convolutions on small maps, for which oneDNN uses the tiles of AMX (a CPU's bf16 matrix unit) badly.

Its weight gradient multiplies one image row at a time: a row of 3 pixels leaves nine tenths of a 32-pixel tile empty.
Gathering each pixel's window (im2col) and one matrix product for the whole batch is 3 to 10 times faster.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

SIDE = 8
"""Side of the largest map that gains, in pixels, for kernels up to 3x3: windows of larger ones do not fit a cache."""


def tile(network: nn.Module) -> None:
    """Replace the weight gradient of the network's convolutions, in place. Parameters and their names stay."""
    for module in network.modules():
        if (
            type(module) is nn.Conv2d
            and module.groups == 1
            and module.dilation == (1, 1)
            and max(module.kernel_size) <= 3
        ):
            module.__class__ = _Convolution


class _Convolution(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        """The output of nn.Conv2d, with the gradient of this file if trained in bf16 on small maps."""
        side = (x.shape[-1] + 2 * int(self.padding[0]) - self.kernel_size[0]) // self.stride[0] + 1
        if side > SIDE or not torch.is_grad_enabled() or not torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        bias = None if self.bias is None else self.bias.bfloat16()
        found = _Function.apply(x.bfloat16(), self.weight.bfloat16(), bias, self.stride[0], int(self.padding[0]))
        assert isinstance(found, Tensor)
        return found


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:  # type: ignore[override]
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return functional.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None, None]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        of_x = None
        if ctx.needs_input_grad[0]:
            places = [ctx.stride] * 2, [ctx.padding] * 2, [1, 1], False, [0, 0], 1
            of_x = torch.ops.aten.convolution_backward(gradient, x, weight, None, *places, [True, False, False])[0]
        of_bias = gradient.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        return of_x, _of_weight(x, gradient, weight.shape[-1], ctx.stride, ctx.padding), of_bias, None, None


def _of_weight(x: Tensor, gradient: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Gradient of the weights, [O, C, k, k], channels last.

    Args:
        x: input, [B, C, H, W].
        gradient: gradient of the output, [B, O, h, w].
    """
    count, out, height, width = gradient.shape
    channels = x.shape[1]
    padded = functional.pad(x, (padding,) * 4).permute(0, 2, 3, 1).contiguous()
    image, row, pixel, channel = padded.stride()
    windows = padded.as_strided(
        (count, height, width, kernel, kernel, channels),
        (image, stride * row, stride * pixel, row, pixel, channel),
    ).reshape(-1, kernel * kernel * channels)
    found = gradient.permute(0, 2, 3, 1).reshape(-1, out).t() @ windows
    return found.view(out, kernel, kernel, channels).permute(0, 3, 1, 2)
