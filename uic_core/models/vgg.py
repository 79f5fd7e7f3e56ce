"""VGG16 with batch norm, configuration D (PROTOCOL section 1)."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from uic_core.models.network import Network, initialise, map_side

BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions


def vgg16(*, classes: int, image_size: int, sobel: bool) -> Network:
    """VGG16-BN for square inputs of `image_size` >= 64; layers conv1 … conv13."""
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
            fc7=nn.Linear(4096, 4096),
            relu7=nn.ReLU(),
        )
    )
    network = Network(
        "vgg16",
        features=features,
        classifier=classifier,
        embedding_size=4096,
        ends={f"conv{n}": f"relu{n}" for n in range(1, number + 1)},
        classes=classes,
        image_size=image_size,
        sobel=sobel,
    )
    initialise(network)
    return network
