"""What the suite must know of an architecture before, or without, building it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from uic_core.models.network import Network

Format = Literal["uic_core", "uic_official", "deepcluster", "selflabel", "torchvision", "moco", "swav"]
"""Code bases whose checkpoints can be read (uic_core/models/formats.py)."""

MAX_POOLED = "+MP"
"""Suffix of a layer's name: after the network's last max-pooling."""

_FCN_STRIDE = 32


class Build(Protocol):
    """Makes a network with fresh weights from torch's global generator."""

    def __call__(self, *, classes: int, image_size: int, sobel: bool) -> Network: ...


@dataclass(frozen=True)
class Pool:
    """Max-pooling of a probed layer to about 9,600 numbers (PROTOCOL section 1), at an input of 224 pixels.

    Attributes:
        side: of the layer's map.
        kernel, stride, padding: of the pooling.
        target: side after it.
    """

    side: int
    kernel: int
    stride: int
    padding: int
    target: int


@dataclass(frozen=True)
class Architecture:
    """An architecture.

    Attributes:
        build: makes a network.
        embedding_size: D, the length of the top layer's input.
        training_gflop: 10⁹ operations of forward and backward for an image of 224 pixels (PROTOCOL section 9).
        matrix_share: share of a GPU's bf16 matrix rate that training reaches.
        probe_layers: what linear probes can be trained on, with its pooling; None where it is a vector.
        fewshot_layers: what few-shot classification can take features of.
        windows: (kernel, stride, padding) of the convolutions and poolings before fc6; empty where there is no fc6,
            and so neither Fast R-CNN nor FCN-32s.
        frozen: layers that Fast R-CNN does not train.
        formats: code bases whose checkpoints it can be of.
        resnet_depth: of torchvision's and OpenMMLab's network of this name; 0 where it is no ResNet.
    """

    name: str
    build: Build
    embedding_size: int
    training_gflop: float
    matrix_share: float
    probe_layers: Mapping[str, Pool | None]
    fewshot_layers: tuple[str, ...]
    windows: tuple[tuple[int, int, int], ...] = ()
    frozen: tuple[str, ...] = ()
    formats: tuple[Format, ...] = ("uic_core",)
    resnet_depth: int = 0

    def fc6_side(self, image_size: int) -> int:
        """Side of the map that fc6 looks at, for images of `image_size` ≥ 64 pixels."""
        side = image_size
        for kernel, stride, padding in self.windows:
            side = (side + 2 * padding - kernel) // stride + 1
        return side

    def least_pad(self, image_size: int) -> int:
        """The least padding of conv1 that leaves no pixel without a score in FCN-32s, pixels.

        A window of kernel k and padding p on top of stride j moves the centre of score 0 by j·((k-1)/2 - p). FCN's
        upsampling puts it at pixel 31, or 31.5. What lies before is cut off, and 3 pixels must be to spare
        (uic_core.openmmlab.fcn.placement finds the same from the layers).
        """
        jump, centre = 1, float(self.windows[0][2])  # with conv1 as if it had no padding of its own
        for kernel, stride, padding in self.windows:
            centre += jump * ((kernel - 1) / 2 - padding)
            jump *= stride
        assert jump == _FCN_STRIDE, f"FCN-32s takes a stride of {_FCN_STRIDE}, not {jump}"
        centre += jump * (self.fc6_side(image_size) - 1) / 2
        upsampled = 31.0 if centre.is_integer() else 31.5
        return max(0, int(centre - upsampled) + 3)
