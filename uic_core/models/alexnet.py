"""AlexNet with batch norm in place of local response normalisation, no groups (PROTOCOL section 1); torchvision's."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from uic_core.models.network import Network, initialise, map_side

# out channels, kernel, stride, padding, max-pool after it
CONVS = ((96, 11, 4, 2, True), (256, 5, 1, 2, True), (384, 3, 1, 1, False), (384, 3, 1, 1, False), (256, 3, 1, 1, True))
TORCHVISION_CHANNELS = (64, 192, 384, 256, 256)


def alexnet(*, classes: int, image_size: int, sobel: bool, torchvision: bool = False) -> Network:
    """AlexNet-BN for square inputs of `image_size` >= 64; layers conv1 … conv5.

    `torchvision`: the network of Krizhevsky's "one weird trick" that torchvision has: fewer channels, no batch norm.
    """
    children: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 2 if sobel else 3
    for number, (out, kernel, stride, padding, pool) in enumerate(CONVS, 1):
        if torchvision:
            out = TORCHVISION_CHANNELS[number - 1]
        children[f"conv{number}"] = nn.Conv2d(inputs, out, kernel, stride, padding)
        if not torchvision:
            children[f"bn{number}"] = nn.BatchNorm2d(out)
        children[f"relu{number}"] = nn.ReLU(inplace=False)
        if pool:
            children[f"pool{number}"] = nn.MaxPool2d(3, 2)
        inputs = out
    features = nn.Sequential(children)
    channels, side = map_side(features, sobel, image_size)
    classifier = nn.Sequential(
        OrderedDict(
            drop6=nn.Dropout(0.5),
            fc6=nn.Linear(channels * side * side, 4096),
            relu6=nn.ReLU(),
            drop7=nn.Dropout(0.5),
            fc7=nn.Linear(4096, 4096),
            relu7=nn.ReLU(),
        )
    )
    network = Network(
        "alexnet_torchvision" if torchvision else "alexnet",
        features=features,
        classifier=classifier,
        embedding_size=4096,
        ends={f"conv{number}": f"relu{number}" for number in range(1, 6)},
        classes=classes,
        image_size=image_size,
        sobel=sobel,
    )
    initialise(network)
    return network
