"""The architectures by name. To add one, add a file to this package and a line here. Imports no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from uic_core.errors import InputError, nearest
from uic_core.models.alexnet import ALEXNET, ALEXNET_TORCHVISION
from uic_core.models.alexnet_rotnet import ALEXNET_ROTNET
from uic_core.models.architecture import Architecture
from uic_core.models.resnet import RESNET50, RESNET50_MLP
from uic_core.models.vgg import VGG16

if TYPE_CHECKING:
    from uic_core.models.network import Network

ARCHS: dict[str, Architecture] = {
    each.name: each for each in (ALEXNET, VGG16, RESNET50, RESNET50_MLP, ALEXNET_TORCHVISION, ALEXNET_ROTNET)
}


def known(arch: str) -> str:
    """Return the name of a known architecture unchanged. Raises ValueError, with the known names, for any other."""
    if arch not in ARCHS:
        raise ValueError(f"no architecture '{arch}'; {nearest(arch, ARCHS)}(known: {', '.join(ARCHS)})")
    return arch


def build(arch: str, *, classes: int, image_size: int, sobel: bool) -> Network:
    """Build a network with fresh weights from torch's global generator.

    Args:
        arch: one of ARCHS.
        classes: K >= 2, outputs of the top layer.
        image_size: side of the square input, >= 64 pixels.
        sobel: put greyscale and Sobel filters before the first layer.

    Raises:
        InputError: unknown arch (the message lists the known ones), or an image size too small for the feature maps.
    """
    try:
        known(arch)
    except ValueError as error:
        raise InputError(f"arch: {error}") from None
    if image_size < 64:
        raise InputError(f"image_size: {image_size} is too small for {arch}; take at least 64")
    return ARCHS[arch].build(classes=classes, image_size=image_size, sobel=sobel)


def with_fc6() -> str:
    """Names of the architectures that detection and segmentation support, as text."""
    *names, last = (name for name, arch in ARCHS.items() if arch.windows)
    return f"{', '.join(names)} or {last}"
