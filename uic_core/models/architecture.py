"""Descriptions of architectures, which the suite reads without building a network. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from uic_core.models.network import Network

Format = Literal["uic_core", "uic_official", "deepcluster", "selflabel", "torchvision", "moco", "swav"]
"""Code bases whose checkpoints can be read (uic_core/models/formats.py)."""

MAX_POOLED = "+MP"
"""Suffix of a layer's name for its activation after the network's last max-pooling."""

FC7 = "fc7"
"""The last hidden layer of a classifier of fully connected layers, after its ReLU: the top layer's input."""

FCN_STRIDE = 32
"""Of FCN-32s' scores, in pixels."""


class Build(Protocol):
    """Builds a network with fresh weights from torch's global generator."""

    def __call__(self, *, classes: int, image_size: int, sobel: bool) -> Network: ...


@dataclass(frozen=True)
class Pool:
    """Max-pooling of a probed layer to about 9,600 numbers, for inputs of 224 pixels (docs/protocol.md, Linear probes).

    For maps of another side it is adaptive.

    Attributes:
        side: side of the layer's map; 0: the pooling is adaptive for every map.
        kernel, stride, padding: parameters of the pooling.
        target: side of the map after the pooling.
    """

    side: int
    kernel: int
    stride: int
    padding: int
    target: int

    @classmethod
    def adaptive(cls, target: int) -> Pool:
        """Adaptive max-pooling to a map of side `target`, whatever the map."""
        return cls(side=0, kernel=0, stride=0, padding=0, target=target)


@dataclass(frozen=True)
class Architecture:
    """An architecture.

    Attributes:
        build: builds a network.
        embedding_size: D, the length of the top layer's input.
        training_gflop: 10⁹ operations of forward and backward for an image of 224 pixels.
        classifier_gflop: 10⁹ operations of a forward pass in the layers after the convolutions, without the top layer.
        matrix_share: share of a GPU's bf16 matrix rate that training reaches.
        probe_layers: layers for linear probes, each with its pooling, or None if its output is a vector.
        fewshot_layers: layers for few-shot classification.
        windows: (kernel, stride, padding) of the convolutions and poolings before fc6; empty if there is no fc6. Fast
            R-CNN and FCN-32s then do not support the architecture.
        frozen: layers that Fast R-CNN does not train.
        formats: code bases that have checkpoints of this architecture.
        resnet_depth: depth of torchvision's and OpenMMLab's ResNet of this name; 0 if it is no ResNet.
    """

    name: str
    build: Build
    embedding_size: int
    training_gflop: float
    matrix_share: float
    probe_layers: Mapping[str, Pool | None]
    fewshot_layers: tuple[str, ...]
    classifier_gflop: float = 0.0
    windows: tuple[tuple[int, int, int], ...] = ()
    frozen: tuple[str, ...] = ()
    formats: tuple[Format, ...] = ("uic_core",)
    resnet_depth: int = 0

    @property
    def knn_layers(self) -> tuple[str, ...]:
        """Layers for nearest neighbours: those of linear probes, and fc7 where there is one."""
        return (*self.probe_layers, *[FC7] * bool(self.windows))

    def fc6_side(self, image_size: int) -> int:
        """Side of fc6's input map, for images of `image_size` ≥ 64 pixels."""
        side = image_size
        for kernel, stride, padding in self.windows:
            side = (side + 2 * padding - kernel) // stride + 1
        return side

    def fcn(self, pad: int, fc6_side: int) -> tuple[int, int]:
        """How FCN-32s aligns scores with the pixels of images: (side of the bilinear kernel, rows and columns to crop).

        A window of kernel k and padding p after a total stride j moves the centre of score 0 by j·((k-1)/2 - p). A
        bilinear kernel of side 63 puts it at pixel 31, one of side 64 at 31.5; the kernel is chosen so that the crop is
        an integer. This gives FCN's own numbers: (63, 18) for AlexNet and (64, 19) for VGG16, both padded by 100.

        Args:
            pad: padding of conv1, pixels, in place of its own.
            fc6_side: side k of fc6's k×k kernel.
        """
        (conv1_side, conv1_stride, _), *others = self.windows
        total, centre = 1, 0.0
        for kernel, stride, padding in ((conv1_side, conv1_stride, pad), *others, (fc6_side, 1, 0)):
            centre += total * ((kernel - 1) / 2 - padding)
            total *= stride
        assert total == FCN_STRIDE, f"FCN-32s takes a stride of {FCN_STRIDE}, not {total}"
        bilinear = 2 * FCN_STRIDE - 1 if centre.is_integer() else 2 * FCN_STRIDE
        return bilinear, int((bilinear - 1) / 2 - centre)

    def least_pad(self, image_size: int) -> int:
        """The least padding of conv1, in pixels, with which FCN-32s gives every pixel of any image a score.

        Both borders are cropped alike, but conv1 may miss up to 3 pixels at the far border: the crop must be 3 or more.
        """
        _, crop = self.fcn(0, self.fc6_side(image_size))
        return max(0, 3 - crop)
