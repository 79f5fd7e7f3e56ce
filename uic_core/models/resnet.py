"""ResNet50, also with a two-layer MLP head that linear probes keep (docs/protocol.md, Networks, paper section 5.2)."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from uic_core.models.architecture import Architecture

if TYPE_CHECKING:
    from torch import nn

    from uic_core.models.network import Network


def resnet(*, classes: int, image_size: int, sobel: bool, depth: int = 50, mlp: bool = False) -> Network:
    """torchvision's ResNet for inputs of any size; `mlp` adds [1x1 conv D, BN, ReLU] twice after the pooling."""
    # Imported here: the workflow reads the descriptions below, and importing torchvision takes seconds.
    import torchvision
    from torch import nn

    from uic_core.models.network import PooledNetwork

    trunk = getattr(torchvision.models, f"resnet{depth}")(weights=None)
    size = trunk.fc.in_features
    children = OrderedDict(trunk.named_children())
    del children["avgpool"], children["fc"]
    if sobel:
        children["conv1"] = nn.Conv2d(2, 64, 7, stride=2, padding=3, bias=False)
    head: OrderedDict[str, nn.Module] = OrderedDict(avgpool=nn.AdaptiveAvgPool2d(1))
    for number in (1, 2) if mlp else ():
        head[f"conv{number}"] = nn.Conv2d(size, size, 1, bias=False)
        head[f"bn{number}"] = nn.BatchNorm2d(size)
        head[f"relu{number}"] = nn.ReLU()
    network = PooledNetwork(
        f"resnet{depth}_mlp" if mlp else f"resnet{depth}",
        features=nn.Sequential(children),
        classifier=nn.Sequential(head),
        embedding_size=size,
        ends={"avgpool": "avgpool", "mlp": "mlp"} if mlp else {"avgpool": "avgpool"},
        classes=classes,
        image_size=image_size,
        sobel=sobel,
    )
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(network.top.weight, 0.0, 0.01)
    nn.init.zeros_(network.top.bias)
    return network


RESNET50 = Architecture(
    name="resnet50",
    build=resnet,
    embedding_size=2048,
    training_gflop=24.3,
    matrix_share=0.14,  # the minimum that `make bench-gpu` accepts
    probe_layers={"avgpool": None},
    fewshot_layers=("avgpool",),
    formats=("uic_core", "uic_official", "selflabel", "torchvision", "moco", "swav"),
    resnet_depth=50,
)

RESNET50_MLP = replace(
    RESNET50,
    name="resnet50_mlp",
    build=partial(resnet, mlp=True),
    training_gflop=24.4,
    probe_layers={"avgpool": None, "mlp": None},
    fewshot_layers=("avgpool", "mlp"),
    formats=("uic_core", "uic_official", "torchvision"),
)
