"""The architectures, by name. A new one is a file of this package and a line here. Imports no torch."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from uic_core.errors import InputError
from uic_core.models.alexnet import ALEXNET, ALEXNET_TORCHVISION
from uic_core.models.architecture import Architecture
from uic_core.models.resnet import RESNET50, RESNET50_MLP
from uic_core.models.vgg import VGG16

if TYPE_CHECKING:
    from uic_core.models.network import Network

ARCHS: dict[str, Architecture] = {
    each.name: each for each in (ALEXNET, VGG16, RESNET50, RESNET50_MLP, ALEXNET_TORCHVISION)
}


def known(arch: str) -> str:
    """The name of an architecture, as it is. Raises ValueError for any other text, with the names there are."""
    if arch not in ARCHS:
        near = difflib.get_close_matches(arch, ARCHS, n=1, cutoff=0.0)
        raise ValueError(f"no architecture '{arch}'; did you mean '{near[0]}'? (known: {', '.join(ARCHS)})")
    return arch


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
    try:
        known(arch)
    except ValueError as error:
        raise InputError(f"arch: {error}") from None
    if image_size < 64:
        raise InputError(f"image_size: {image_size} is too small for {arch}; take at least 64")
    return ARCHS[arch].build(classes=classes, image_size=image_size, sobel=sobel)


def with_fc6() -> str:
    """The architectures that detection and segmentation take, for the reader."""
    *names, last = (name for name, arch in ARCHS.items() if arch.windows)
    return f"{', '.join(names)} or {last}"
