"""Augmentation. The crop box is drawn where the image is decoded; the rest runs on the device, batch by batch.

All randomness comes from uniform numbers (`randomness.uniforms`), so a view depends only on seed, epoch and image.
Each image has its own parameters and its own order of the four colour operations, as in torchvision's ColorJitter.
Pixels stay float between the operations: nothing is rounded to 8 bits.
"""

from __future__ import annotations

import functools
import itertools
import math
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from uic_core.run import devices

Augmentation = Literal["standard", "strong", "selflabel"]

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

UNIFORMS = 10
"""What `augment` takes per image: flip?, jitter?, brightness, contrast, saturation, hue, order, grey?, blur?, sigma."""

_ATTEMPTS = 10
SCALE = (0.08, 1.0)
"""Shares of an image's area that a random crop takes: torchvision's default of RandomResizedCrop, as the ratio's."""
_RATIO = (3 / 4, 4 / 3)
CROP_UNIFORMS = 2 * _ATTEMPTS + 2
"""Numbers for `crop_box`: area and aspect ratio of each attempt, then the position (x, y)."""

_GREY = (0.2989, 0.587, 0.114)
_ORDERS = np.array(list(itertools.permutations(range(4))))
_BRIGHTNESS, _CONTRAST, _SATURATION, _HUE = range(4)
_STRENGTH = {"strong": np.array([0.8, 0.8, 0.8, 0.2]), "selflabel": np.array([0.4, 0.4, 0.4, 0.4])}


def crop_box(
    width: int,
    height: int,
    u: NDArray[np.float64],
    scale: tuple[float, float] = SCALE,
    ratio: tuple[float, float] = _RATIO,
) -> tuple[int, int, int, int]:
    """Return the box of a RandomResizedCrop, with torchvision's distribution.

    The area is uniform in `scale` (share of the image's area), the aspect ratio (width / height) log-uniform in
    `ratio`. The first of ten such pairs that fits is placed uniformly. If none fits, the box is the centre, with the
    ratio clipped.

    Args:
        u: CROP_UNIFORMS numbers in [0, 1).

    Returns:
        (left, top, right, bottom), right and bottom exclusive, inside the image.
    """
    assert len(u) >= CROP_UNIFORMS, f"crop_box takes {CROP_UNIFORMS} numbers, got {len(u)}"
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for first in range(0, 2 * _ATTEMPTS, 2):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * u[first])
        shape = math.exp(low + (high - low) * u[first + 1])
        w, h = round(math.sqrt(area * shape)), round(math.sqrt(area / shape))
        if 0 < w <= width and 0 < h <= height:
            left = int(u[2 * _ATTEMPTS] * (width - w + 1))
            top = int(u[2 * _ATTEMPTS + 1] * (height - h + 1))
            return left, top, left + w, top + h
    w, h = width, height
    if width / height < ratio[0]:
        h = round(width / ratio[0])
    elif width / height > ratio[1]:
        w = round(height * ratio[1])
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def crop_boxes(
    width: int, height: int, u: NDArray[np.float64], scale: tuple[float, float] = SCALE
) -> NDArray[np.int64]:
    """`crop_box` of many images of one size: [B, CROP_UNIFORMS] numbers → int64 [B, 4]."""
    area = width * height * (scale[0] + (scale[1] - scale[0]) * u[:, 0 : 2 * _ATTEMPTS : 2])
    low, high = map(math.log, _RATIO)
    shape = np.exp(low + (high - low) * u[:, 1 : 2 * _ATTEMPTS : 2])
    w, h = (np.rint(np.sqrt(each)).astype(np.int64) for each in (area * shape, area / shape))
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.argmax(1)[:, None]
    w, h = (np.take_along_axis(each, first, 1)[:, 0] for each in (w, h))
    left = (u[:, 2 * _ATTEMPTS] * (width - w + 1)).astype(np.int64)
    top = (u[:, 2 * _ATTEMPTS + 1] * (height - h + 1)).astype(np.int64)
    boxes = np.stack([left, top, left + w, top + h], 1)
    for row in np.flatnonzero(~fits.any(1)):
        boxes[row] = crop_box(width, height, u[row], scale)
    return boxes


def normalize(batch: Tensor) -> Tensor:
    """Convert uint8 [B, 3, H, W] to float32 in [0, 1] and standardise with ImageNet's mean and standard deviation."""
    assert batch.dtype == torch.uint8, f"normalize takes uint8 images, got {batch.dtype}"
    return _standardize(batch.float().div_(255))


@torch.no_grad()
def augment(batch: Tensor, uniforms: NDArray[np.float64] | Tensor, kind: Augmentation) -> Tensor:
    """Augment cropped images on their device (docs/protocol.md, Pretraining).

    standard: horizontal flip with probability .5. strong: also colour jitter (.8, .8, .8, .2) with p .8, greyscale
    with p .2, Gaussian blur with p .5, sigma uniform in [.1, 2) pixels, odd kernel (23 at 224). Blur is drawn per
    image as in SimCLR; the official UIC code draws it once per batch and uses an even kernel. selflabel: greyscale with
    p .2, then always colour jitter (.4, .4, .4, .4). Its flip is the last; it only moves pixels, so it may come first.

    Args:
        batch: uint8 [B, 3, S, S].
        uniforms: [B, UNIFORMS] in [0, 1), on the CPU.

    Returns:
        float32 [B, 3, S, S], normalised.
    """
    assert batch.dtype == torch.uint8, f"augment takes uint8 images, got {batch.dtype}"
    u = np.asarray(uniforms, np.float64)
    assert u.shape == (len(batch), UNIFORMS), f"uniforms of shape {u.shape} for {len(batch)} images"
    with torch.autocast(batch.device.type, enabled=False):
        images = flip(batch, u[:, 0] < 0.5)
        if kind == "standard":
            return normalize(images)
        pixels = images.float() / 255
        # Factors are within 1 ± strength; the hue shift is within ± strength turns.
        factors = _STRENGTH[kind] * (2 * u[:, 2:6] - 1) + np.array([1, 1, 1, 0])
        order = _ORDERS[(u[:, 6] * len(_ORDERS)).astype(int)]
        if kind == "selflabel":
            pixels = greyscale(pixels, u[:, 7] < 0.2)
            return _standardize(jitter(pixels, factors, order, np.full(len(u), True)))
        pixels = jitter(pixels, factors, order, u[:, 1] < 0.8)
        pixels = greyscale(pixels, u[:, 7] < 0.2)
        blurred = np.flatnonzero(u[:, 8] < 0.5)
        if len(blurred):
            rows = _to(pixels, blurred)
            pixels[rows] = gaussian_blur(pixels[rows], 0.1 + 1.9 * u[blurred, 9])
        return _standardize(pixels)


def flip(images: Tensor, chosen: NDArray[np.bool_]) -> Tensor:
    """Mirror the `chosen` (bool [B]) images of [B, C, H, W] left to right."""
    images, rows = images.clone(), _to(images, np.flatnonzero(chosen))
    images[rows] = images[rows].flip(-1)
    return images


def jitter(images: Tensor, factors: NDArray[np.float64], order: NDArray[np.int64], chosen: NDArray[np.bool_]) -> Tensor:
    """Change brightness, contrast, saturation and hue of [B, 3, H, W] in [0, 1], with factors and order per image.

    The first three blend the image with another one (black, its mean grey, its greyscale), so each step of the order
    computes them together; a factor of 1 changes nothing. Hue costs most and is computed only where needed.

    Args:
        factors: [B, 4]; three factors ≥ 0 and a hue shift in turns (-.5 to .5).
        order: [B, 4], per image a permutation of 0…3 (columns of `factors`).
        chosen: bool [B]; the other images stay as they are.
    """
    every = np.arange(len(images))
    for operation in order.T:
        hue = operation == _HUE
        factor = _to(images, np.where(hue | ~chosen, 1.0, factors[every, operation]))[:, None, None, None]
        with_mean = _to(images, operation == _CONTRAST)[:, None, None, None]
        with_grey = _to(images, operation == _SATURATION)[:, None, None, None]
        grey = _grey(images)
        other = torch.where(with_mean, grey.mean((2, 3), keepdim=True), grey) * (with_mean | with_grey)
        images = (factor * images + (1 - factor) * other).clamp_(0, 1)
        due = np.flatnonzero(hue & chosen)
        if len(due):
            rows = _to(images, due)
            images[rows] = shift_hue(images[rows], _to(images, factors[due, _HUE]))
    return images


def shift_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate the hue of [B, 3, H, W] in [0, 1] by `turns` [B] (1: full circle); HSV value and saturation stay.

    V is the largest channel, C the range of the channels. The channel at angle n of the hexagon is
    V - C·clamp(min(k, 4 - k), 0, 1) with k = (n + hue) mod 6 and n = 5, 3, 1 for red, green, blue.
    """
    red, green, blue = images.unbind(1)
    value = images.amax(1)
    spread = value - images.amin(1)
    safe = torch.where(spread > 0, spread, 1)
    hue = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    turned = hue + 6 * turns[:, None, None]
    k = torch.stack([(turned + n) % 6 for n in (5, 3, 1)], 1)
    return value[:, None] - spread[:, None] * torch.minimum(k, 4 - k).clamp_(0, 1)


def greyscale(images: Tensor, chosen: NDArray[np.bool_]) -> Tensor:
    """Replace the `chosen` (bool [B]) images of [B, 3, H, W] by their luma in all three channels."""
    return torch.where(_to(images, chosen)[:, None, None, None], _grey(images), images)


def kernel_size(side: int) -> int:
    """Return the odd blur kernel size for `side` pixels: 23 at 224 as in SimCLR, else in proportion, at least 3."""
    return max(3, 2 * round((23 * side / 224 - 1) / 2) + 1)


def gaussian_blur(images: Tensor, sigma: NDArray[np.float64]) -> Tensor:
    """Blur float images [B, C, S, S], each with its own Gaussian `sigma` [B] (pixels); edges are reflected."""
    count, channels, side, _ = images.shape
    reach = kernel_size(side) // 2
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    weights /= weights.sum(1, keepdims=True)
    kernels = _to(images, weights).repeat_interleave(channels, 0)[:, None, None, :]
    planes = F.pad(images, (reach, reach, reach, reach), mode="reflect").flatten(0, 1)[None]
    planes = F.conv2d(planes, kernels, groups=count * channels)
    planes = F.conv2d(planes, kernels.transpose(2, 3), groups=count * channels)
    return planes.view(count, channels, side, side)


def _standardize(pixels: Tensor) -> Tensor:
    """Standardise in place: on a CPU, memory for another batch costs as much as the arithmetic.

    Mean and deviation are expanded to every pixel, in the images' layout: inner loops over three values are slower.
    """
    mean, std = (torch.empty_like(pixels[:1]).copy_(values) for values in _moments(pixels.device, pixels.dtype))
    return pixels.sub_(mean).div_(std)


@functools.cache
def _moments(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return mean and deviation, [3, 1, 1] each; copied to the device once, as a copy waits for running kernels."""
    mean, std = torch.tensor([MEAN, STD], dtype=dtype)[:, :, None, None].to(device)
    return mean, std


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(1)
    return (_GREY[0] * red + _GREY[1] * green + _GREY[2] * blue)[:, None]


def _to(images: Tensor, values: NDArray[np.generic]) -> Tensor:
    """Copy parameters to the images' device; convert floats to the images' precision."""
    tensor = devices.onto(images.device, values)
    return tensor.to(images.dtype) if tensor.is_floating_point() else tensor
