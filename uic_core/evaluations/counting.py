"""Count a network's operations without running it: twice the multiply-adds of convolutions and linear layers."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode

from uic_core.evaluations.evaluation import Arithmetic
from uic_core.models import build
from uic_core.models.probe_pool import probe_pool
from uic_core.recipe import External, Recipe


def arithmetic(recipe: Recipe | External, image_size: int = 0) -> Arithmetic:
    """Count a run's network, at its own image size or another one (pixels)."""
    classes = 1000 if isinstance(recipe, External) else recipe.outputs
    return count(recipe.arch, classes, image_size or recipe.image_size, recipe.sobel)


@functools.cache
def probed(arch: str, image_size: int, sobel: bool, layers: tuple[str, ...], classes: int) -> tuple[float, float, int]:
    """Return FLOPs per image up to the deepest probed layer, FLOPs of all heads, and bytes of the heads."""
    with torch.device("meta"):
        built = build(arch, classes=2, image_size=image_size, sobel=sobel).eval()
        images = torch.empty(1, 3, image_size, image_size)
        trunk = _flops(lambda x: built.taps(x, layers), images)
        pooled = [probe_pool(layer, tap, arch) for layer, tap in built.taps(images, layers).items()]
    weights = sum(each.shape[1] * classes for each in pooled)
    return trunk, 2.0 * weights, 4 * weights


@functools.cache
def count(arch: str, classes: int, image_size: int, sobel: bool) -> Arithmetic:
    """Count a network. Arguments as in uic_core.models.build."""
    with torch.device("meta"):
        built = build(arch, classes=classes, image_size=image_size, sobel=sobel).eval()
        images = torch.empty(1, 3, image_size, image_size)
        features = _flops(built.maps, images)
        # autocast does not support meta tensors, so the top layer is counted separately
        whole = _flops(built.embed, images) + 2.0 * built.embedding_size * classes
    return Arithmetic(features, whole - features, sum(parameter.numel() for parameter in built.parameters()))


def _flops(function: Callable[[torch.Tensor], object], images: torch.Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        function(images)
    return float(counter.get_total_flops())
