"""RotNet's AlexNet: torchvision's channels, batch norm after every layer, no dropout (docs/protocol.md, Networks)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING

from uic_core.models.alexnet import ALEXNET, TORCHVISION_CHANNELS, convolutions
from uic_core.models.architecture import Pool

if TYPE_CHECKING:
    from uic_core.models.network import Network


def alexnet_rotnet(*, classes: int, image_size: int, sobel: bool) -> Network:
    """RotNet's AlexNet for square inputs of `image_size` >= 64; layers conv1 … conv5, PyTorch's initial weights."""
    from torch import nn  # imported here: the workflow reads the description below without torch

    from uic_core.models.network import Network, map_side

    features = convolutions(TORCHVISION_CHANNELS, sobel=sobel)
    channels, side = map_side(features, sobel, image_size)
    width = ALEXNET_ROTNET.embedding_size
    classifier = nn.Sequential(
        OrderedDict(
            fc6=nn.Linear(channels * side * side, width, bias=False),
            bn6=nn.BatchNorm1d(width),
            relu6=nn.ReLU(),
            fc7=nn.Linear(width, width, bias=False),
            bn7=nn.BatchNorm1d(width),
            relu7=nn.ReLU(),
        )
    )
    return Network(
        ALEXNET_ROTNET.name,
        features=features,
        classifier=classifier,
        embedding_size=width,
        ends={f"conv{number}": f"relu{number}" for number in range(1, 6)},
        classes=classes,
        image_size=image_size,
        sobel=sobel,
    )


ALEXNET_ROTNET = replace(
    ALEXNET,
    name="alexnet_rotnet",
    build=alexnet_rotnet,
    training_gflop=4.1,
    # RotNet's own pooling: 9216, 9408, 9600, 9216 and 9216 numbers at 224 pixels
    probe_layers={f"conv{number}": Pool.adaptive(side) for number, side in enumerate((12, 7, 5, 6, 6), 1)},
    formats=("uic_core", "torchvision"),
)
