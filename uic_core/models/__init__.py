"""The paper's networks, by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from uic_core.errors import InputError
from uic_core.models.alexnet import alexnet
from uic_core.models.network import Network
from uic_core.models.resnet import resnet50
from uic_core.models.vgg import vgg16

__all__ = ["ARCHS", "Network", "build"]

_BUILDERS: dict[str, Callable[..., Network]] = {
    "alexnet": alexnet,
    "vgg16": vgg16,
    "resnet50": resnet50,
    "resnet50_mlp": partial(resnet50, mlp=True),
    "alexnet_torchvision": partial(alexnet, torchvision=True),
}
ARCHS = tuple(_BUILDERS)


def build(arch: str, *, classes: int, image_size: int, sobel: bool) -> Network:
    """A network with fresh weights from torch's global generator.

    Args:
        arch: one of ARCHS.
        classes: K >= 2, outputs of the top layer.
        image_size: side of the square input, >= 64 pixels.
        sobel: greyscale and Sobel filters before the first layer.

    Raises:
        InputError: unknown arch (answered with the known ones), or an image size no feature map survives.
    """
    if arch not in _BUILDERS:
        raise InputError(f"arch: no architecture '{arch}' (known: {', '.join(ARCHS)})")
    if image_size < 64:
        raise InputError(f"image_size: {image_size} is too small for {arch}; take at least 64")
    return _BUILDERS[arch](classes=classes, image_size=image_size, sobel=sobel)
