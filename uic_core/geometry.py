"""What follows from an architecture's kernels and strides alone, for a config to be checked by. Imports no torch."""

from __future__ import annotations

from uic_core.recipe import Arch


def fc6_side(arch: Arch, image_size: int) -> int | None:
    """Side of the map that fc6 looks at, for images of `image_size` ≥ 64 pixels; None where there is no fc6.

    PROTOCOL section 1: AlexNet has conv1 (kernel 11, stride 4, padding 2) and three max-poolings 3/2, VGG16 five 2/2.
    """
    if arch in ("resnet50", "resnet50_mlp"):
        return None
    if arch == "vgg16":
        return image_size // 32
    side = (image_size + 2 * 2 - 11) // 4 + 1
    for _ in range(3):
        side = (side - 3) // 2 + 1
    return side


def least_pad(arch: Arch, image_size: int) -> int | None:
    """The least padding of conv1 that leaves no pixel without a score in FCN-32s, pixels; None without fc6.

    Score 0 looks at pixel 33 - pad + 16·(k - 1) of AlexNet's input, 16.5 - pad + 16·(k - 1) of VGG16's, for an fc6 of
    k×k; upsampling puts it at 31 and 31.5, and of the difference, which is cut off, 3 pixels must be to spare
    (uic_core.openmmlab.fcn.placement finds the same from the layers).
    """
    side = fc6_side(arch, image_size)
    if side is None:
        return None
    return max(0, 16 * (side - 1) + (-12 if arch == "vgg16" else 5))
