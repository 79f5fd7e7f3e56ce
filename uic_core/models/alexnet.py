"""AlexNet with batch norm instead of local response normalisation, no groups (protocol.md, Networks); torchvision's."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from uic_core.models.architecture import MAX_POOLED, Architecture, Pool

if TYPE_CHECKING:
    from torch import nn

    from uic_core.models.network import Network

# kernel, stride, padding, max-pool after it
_CONVS = ((11, 4, 2, True), (5, 1, 2, True), (3, 1, 1, False), (3, 1, 1, False), (3, 1, 1, True))
_CHANNELS = (96, 256, 384, 384, 256)
TORCHVISION_CHANNELS = (64, 192, 384, 256, 256)


def convolutions(channels: Sequence[int], *, sobel: bool, batch_norm: bool = True) -> nn.Sequential:
    """AlexNet's conv1 … conv5 of so many channels, with its poolings, as in all its variants."""
    from torch import nn  # imported here: the workflow reads the descriptions below without torch

    children: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 2 if sobel else 3
    for number, (out, (kernel, stride, padding, pool)) in enumerate(zip(channels, _CONVS, strict=True), 1):
        children[f"conv{number}"] = nn.Conv2d(inputs, out, kernel, stride, padding)
        if batch_norm:
            children[f"bn{number}"] = nn.BatchNorm2d(out)
        children[f"relu{number}"] = nn.ReLU()
        if pool:
            children[f"pool{number}"] = nn.MaxPool2d(3, 2)
        inputs = out
    return nn.Sequential(children)


def alexnet(*, classes: int, image_size: int, sobel: bool, torchvision: bool = False) -> Network:
    """AlexNet-BN for square inputs of `image_size` >= 64; layers conv1 … conv5.

    `torchvision`: build torchvision's network, of Krizhevsky's "one weird trick": fewer channels, no batch norm.
    """
    from torch import nn

    from uic_core.models.network import Network, initialise, map_side

    features = convolutions(TORCHVISION_CHANNELS if torchvision else _CHANNELS, sobel=sobel, batch_norm=not torchvision)
    channels, side = map_side(features, sobel, image_size)
    classifier = nn.Sequential(
        OrderedDict(
            drop6=nn.Dropout(0.5),
            fc6=nn.Linear(channels * side * side, 4096),
            relu6=nn.ReLU(),
            drop7=nn.Dropout(0.5),
            fc7=nn.Linear(4096, ALEXNET.embedding_size),
            relu7=nn.ReLU(),
        )
    )
    network = Network(
        (ALEXNET_TORCHVISION if torchvision else ALEXNET).name,
        features=features,
        classifier=classifier,
        embedding_size=ALEXNET.embedding_size,
        ends={f"conv{number}": f"relu{number}" for number in range(1, 6)},
        classes=classes,
        image_size=image_size,
        sobel=sobel,
    )
    initialise(network)
    return network


_CONV = tuple(f"conv{number}" for number in range(1, 6))

ALEXNET = Architecture(
    name="alexnet",
    build=alexnet,
    embedding_size=4096,
    training_gflop=6.5,
    classifier_gflop=0.109,
    matrix_share=0.15,  # measured on an H200 (bench/RESULTS.md)
    probe_layers={
        "conv1": Pool(55, 6, 6, 3, 10),
        "conv2": Pool(27, 4, 4, 0, 6),
        "conv3": Pool(13, 3, 3, 1, 5),
        "conv4": Pool(13, 3, 3, 1, 5),
        "conv5": Pool(13, 2, 2, 0, 6),
    },
    fewshot_layers=(*_CONV, f"conv5{MAX_POOLED}"),  # conv5+MP: pool5, 3×3 with stride 2, of conv5 after its ReLU
    windows=tuple(
        window
        for kernel, stride, padding, pool in _CONVS
        for window in ((kernel, stride, padding), *[(3, 2, 0)] * pool)
    ),
    frozen=("conv1",),
    formats=("uic_core", "deepcluster", "selflabel", "torchvision"),
)

ALEXNET_TORCHVISION = replace(
    ALEXNET,
    name="alexnet_torchvision",
    build=partial(alexnet, torchvision=True),
    training_gflop=4.1,
    formats=("uic_core", "torchvision"),
)
