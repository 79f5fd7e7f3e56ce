"""VGG16 with batch norm, configuration D (docs/protocol.md, Networks)."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from uic_core.models.architecture import MAX_POOLED, Architecture, Pool

if TYPE_CHECKING:
    from uic_core.models.network import Network

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions


def vgg16(*, classes: int, image_size: int, sobel: bool) -> Network:
    """VGG16-BN for square inputs of `image_size` >= 64; layers conv1 … conv13."""
    from torch import nn  # imported here: the workflow reads the description below without torch

    from uic_core.models.network import Network, initialise, map_side

    children: OrderedDict[str, nn.Module] = OrderedDict()
    inputs, number = 2 if sobel else 3, 0
    for block, (channels, count) in enumerate(BLOCKS, 1):
        for _ in range(count):
            number += 1
            children[f"conv{number}"] = nn.Conv2d(inputs, channels, 3, padding=1)
            children[f"bn{number}"] = nn.BatchNorm2d(channels)
            children[f"relu{number}"] = nn.ReLU()
            inputs = channels
        children[f"pool{block}"] = nn.MaxPool2d(2, 2)
    features = nn.Sequential(children)
    channels, side = map_side(features, sobel, image_size)
    classifier = nn.Sequential(
        OrderedDict(
            fc6=nn.Linear(channels * side * side, 4096),
            relu6=nn.ReLU(),
            drop6=nn.Dropout(0.5),
            fc7=nn.Linear(4096, VGG16.embedding_size),
            relu7=nn.ReLU(),
        )
    )
    network = Network(
        VGG16.name,
        features=features,
        classifier=classifier,
        embedding_size=VGG16.embedding_size,
        ends={f"conv{n}": f"relu{n}" for n in range(1, number + 1)},
        classes=classes,
        image_size=image_size,
        sobel=sobel,
    )
    initialise(network)
    return network


VGG16 = Architecture(
    name="vgg16",
    build=vgg16,
    embedding_size=4096,
    training_gflop=92.7,
    classifier_gflop=0.239,
    matrix_share=0.5,  # the minimum that `make bench-gpu` accepts
    probe_layers={"conv13": Pool(14, 3, 3, 0, 4)},
    fewshot_layers=(*(f"conv{number}" for number in range(1, 14)), f"conv13{MAX_POOLED}"),
    windows=tuple(window for _, count in BLOCKS for window in (*[(3, 1, 1)] * count, (2, 2, 0))),
    frozen=("conv1", "conv2", "conv3", "conv4"),  # conv1_1 … conv2_2, as in Fast R-CNN
    formats=("uic_core", "deepcluster", "torchvision"),
)
