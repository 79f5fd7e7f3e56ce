"""Changes of a training step that may be faster on a GPU. The product takes one over when a measurement says so.

Each changes a trainer before its first step. `python -m bench.gpu` measures them; tests/bench/test_variants.py holds
each against the step as it is.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from uic_core.data import augment
from uic_core.data.augment import MEAN, STD
from uic_core.pretrain.loop import Trainer
from uic_core.run import devices

Change = Callable[[Trainer], None]


def autotuned(_: Trainer) -> None:
    """Let cuDNN time its algorithms and take the fastest one for each shape."""
    torch.backends.cudnn.benchmark = True


def deterministic(_: Trainer) -> None:
    """Do as UIC_DETERMINISTIC=1 does."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def compiled(trainer: Trainer) -> None:
    """Let torch.compile fuse what it can."""
    trainer.network.compile()


def graphed(trainer: Trainer) -> None:
    """Do the same, with CUDA graphs that launch a whole pass at once. The optimiser stays outside of them."""
    trainer.network.compile(mode="reduce-overhead")


def space_to_depth(trainer: Trainer) -> None:
    """Compute conv1 on blocks of pixels."""
    first = trainer.network.features.get_submodule("conv1")
    assert type(first) is nn.Conv2d, "conv1 is a plain convolution"
    first.__class__ = SpaceToDepth


class SpaceToDepth(nn.Conv2d):
    """A convolution of stride s as one of stride 1 over blocks of s×s pixels. Names and shapes of its weights stay.

    Tensor cores take many channels: AlexNet's conv1, 11×11 on the 2 Sobel channels, is 3×3 on 32. Only for groups,
    dilation 1 and square kernels.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] as nn.Conv2d does."""
        kernel, stride, padding = self.kernel_size[0], self.stride[0], int(self.padding[0])
        blocks = -(-kernel // stride)
        height, width = (
            stride * ((side + 2 * padding - kernel) // stride + blocks) - side - padding for side in x.shape[2:]
        )
        x = functional.pad(x, (padding, width, padding, height))
        more = blocks * stride - kernel
        weight = functional.pad(self.weight, (0, more, 0, more))
        x, weight = (
            functional.pixel_unshuffle(each, stride).contiguous(memory_format=torch.channels_last)
            for each in (x, weight)
        )
        return functional.conv2d(x, weight, self.bias)


def short_top(trainer: Trainer) -> None:
    """Multiply the top layer's inputs and weights as bf16, with a float32 result."""
    trainer.network.top.__class__ = ShortLinear


class ShortLinear(nn.Linear):
    """A linear layer whose products are of bf16 numbers and whose sums are float32: logits have no ties by rounding."""

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, D] to float32 [B, K]."""
        found: Tensor = _ShortProduct.apply(x, self.weight)  # type: ignore[assignment]
        return found + self.bias


class _ShortProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:  # type: ignore[override]
        x, weight = x.bfloat16(), weight.bfloat16()
        ctx.save_for_backward(x, weight)
        return _product(x, weight.t())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        gradient = gradient.bfloat16()
        return _product(gradient, weight), _product(gradient.t(), x)


def _product(one: Tensor, other: Tensor) -> Tensor:
    """Multiply bf16 matrices with a float32 result. On a CPU torch has no such product, but the same numbers."""
    return torch.mm(one, other, out_dtype=torch.float32) if one.is_cuda else one.float() @ other.float()


def fused_input(trainer: Trainer) -> None:
    """Make the network's input from crops in one compiled region, the Sobel filters included.

    The network's own Sobel layer goes: passes for labels, which bring other crops, are not for such a trainer.
    """
    recipe = trainer.recipe
    make = torch.compile(_INPUTS[recipe.augmentation], fullgraph=True, dynamic=False)
    blur = blur_matrices(recipe.image_size).to(trainer.device)

    def views(_: Any, crops: Tensor, uniforms: NDArray[np.float64]) -> Tensor:
        with torch.no_grad():
            return make(crops, devices.onto(crops.device, parameters(uniforms)), blur, recipe.sobel, trainer.precision)

    trainer.method = replace(trainer.method, views=views)
    trainer.network.sobel = nn.Identity()


def parameters(uniforms: NDArray[np.float64]) -> NDArray[np.float32]:
    """What `augment` draws from its numbers, for every image, in one array to copy.

    Returns:
        float32 [B, 11]: flip?, three factors and the shift of hue, their order (four), greyscale?, sigma of the blur in
        pixels. An image that is not jittered has the factors 1 and the shift 0; one that is not blurred, sigma 0.
    """
    u, still = uniforms, np.array([1.0, 1.0, 1.0, 0.0])
    factors = np.where(u[:, 1:2] < 0.8, augment._STRENGTH["strong"] * (2 * u[:, 2:6] - 1) + still, still)
    order = augment._ORDERS[(u[:, 6] * len(augment._ORDERS)).astype(int)]
    sigma = np.where(u[:, 8] < 0.5, 0.1 + 1.9 * u[:, 9], 0)
    return np.column_stack([u[:, 0] < 0.5, factors, order, u[:, 7] < 0.2, sigma]).astype(np.float32)


def standard(crops: Tensor, drawn: Tensor, _: Tensor, sobel: bool, dtype: torch.dtype) -> Tensor:
    """Flip, normalise and, with `sobel`, take edges.

    Args:
        crops: uint8 [B, 3, S, S].
        drawn: from `parameters`, [B, 11].

    Returns:
        `dtype` [B, 3, S, S], or edges [B, 2, S, S]; channels last.
    """
    return _finished(_flipped(crops, drawn), sobel, dtype)


def strong(crops: Tensor, drawn: Tensor, blur: Tensor, sobel: bool, dtype: torch.dtype) -> Tensor:
    """Do the same after colour jitter, greyscale and blur, as `augment` does for chosen images alone.

    Args:
        blur: of `blur_matrices`, [taps, S·S].
    """
    images = _flipped(crops, drawn)
    factors, places = drawn[:, 1:5], drawn[:, 5:9]
    for place in range(4):
        operation = places[:, place].long()
        factor = factors.gather(1, operation[:, None])[:, :, None, None]
        is_hue, with_mean, with_grey = (
            (operation == each)[:, None, None, None] for each in (augment._HUE, augment._CONTRAST, augment._SATURATION)
        )
        grey = augment._grey(images)
        other = torch.where(with_mean, grey.mean((2, 3), keepdim=True), grey) * (with_mean | with_grey)
        blended = (factor * images + (1 - factor) * other).clamp(0, 1)
        turned = augment.shift_hue(images, factor.flatten())
        images = torch.where(is_hue, torch.where(factor == 0, images, turned), blended)
    images = torch.where(drawn[:, 9, None, None, None] > 0, augment._grey(images), images)
    sigma, offsets = drawn[:, 10:], torch.arange(len(blur), device=drawn.device) - len(blur) // 2
    weights = torch.exp(-0.5 * (offsets / sigma.clamp(min=0.1)) ** 2)
    weights = torch.where(sigma > 0, weights / weights.sum(1, keepdim=True), (offsets == 0).float())
    matrices = (weights @ blur).unflatten(1, images.shape[2:])[:, None]
    return _finished(matrices @ images @ matrices.mT, sobel, dtype)


def blur_matrices(side: int) -> Tensor:
    """The matrix of each tap of a blur whose edges are reflected, float [taps, S·S]; taps: kernel_size(S)."""
    taps = augment.kernel_size(side)
    reach = taps // 2
    lines = functional.pad(torch.arange(side).float()[None], (reach, reach), mode="reflect")[0].long()
    return functional.one_hot(lines.unfold(0, taps, 1), side).transpose(0, 1).flatten(1).float()


def edges(images: Tensor) -> Tensor:
    """[B, 3, H, W] → Sobel's edges [B, 2, H, W], as uic_core.models.sobel, by sums that a compiler fuses."""
    grey = functional.pad(images.mean(1), (1, 1, 1, 1))
    rows = grey[:, :-2] + 2 * grey[:, 1:-1] + grey[:, 2:]
    columns = grey[:, :, :-2] + 2 * grey[:, :, 1:-1] + grey[:, :, 2:]
    return torch.stack([rows[:, :, :-2] - rows[:, :, 2:], columns[:, :-2] - columns[:, 2:]], 1)


def _flipped(crops: Tensor, drawn: Tensor) -> Tensor:
    """Return float [B, 3, S, S] in [0, 1]."""
    return torch.where(drawn[:, 0, None, None, None] > 0, crops.flip(-1), crops).float() / 255


def _finished(images: Tensor, sobel: bool, dtype: torch.dtype) -> Tensor:
    """Normalise images in [0, 1]; with `sobel`, take edges."""
    channels = zip(images.unbind(1), MEAN, STD, strict=True)
    images = torch.stack([(channel - mean) / std for channel, mean, std in channels], 1)
    return (edges(images) if sobel else images).to(dtype, memory_format=torch.channels_last)


_INPUTS = {"standard": standard, "strong": strong}


def together(*changes: Change) -> Change:
    """Return all changes as one."""
    return functools.partial(_apply, changes)


def _apply(changes: tuple[Change, ...], trainer: Trainer) -> None:
    for change in changes:
        change(trainer)
