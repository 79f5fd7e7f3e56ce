"""ResNet50, and ResNet50 with a two-layer MLP head that linear probes keep (PROTOCOL section 1, paper section 5.2)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from uic_core.models.network import Network

DIMENSION = 2048


class ResNet(Network):
    """torchvision's ResNet50 as `features`; the taps are vectors: `avgpool` and, with the head, `mlp`, [B, 2048]."""

    def _embed(self, maps: Tensor) -> Tensor:
        return self._classify(maps)

    def _classify(self, maps: Tensor) -> Tensor:
        return torch.flatten(self.classifier(maps), 1)

    def taps(self, x: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """Average-pooled features and the MLP head's output, each [B, 2048]. Raises InputError for other names."""
        wanted = list(layers)
        self._check(wanted)
        pooled = self.classifier.get_submodule("avgpool")(self.maps(x))
        found = {"avgpool": torch.flatten(pooled, 1)}
        if "mlp" in wanted:
            head = pooled
            for child in list(self.classifier.children())[1:]:
                head = child(head)
            found["mlp"] = torch.flatten(head, 1)
        return {layer: found[layer] for layer in wanted}


def resnet50(*, classes: int, image_size: int, sobel: bool, mlp: bool = False) -> Network:
    """ResNet50 for inputs of any size; `mlp` adds [1x1 conv 2048, BN, ReLU] twice after the pooling."""
    # Here and not above: torchvision takes seconds to import, and every stage imports the networks.
    from torchvision.models import resnet50 as torchvision_resnet50

    trunk = torchvision_resnet50(weights=None)
    children = OrderedDict(trunk.named_children())
    del children["avgpool"], children["fc"]
    if sobel:
        children["conv1"] = nn.Conv2d(2, 64, 7, stride=2, padding=3, bias=False)
    head: OrderedDict[str, nn.Module] = OrderedDict(avgpool=nn.AdaptiveAvgPool2d(1))
    for number in (1, 2) if mlp else ():
        head[f"conv{number}"] = nn.Conv2d(DIMENSION, DIMENSION, 1, bias=False)
        head[f"bn{number}"] = nn.BatchNorm2d(DIMENSION)
        head[f"relu{number}"] = nn.ReLU()
    network = ResNet(
        "resnet50_mlp" if mlp else "resnet50",
        features=nn.Sequential(children),
        classifier=nn.Sequential(head),
        embedding_size=DIMENSION,
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
