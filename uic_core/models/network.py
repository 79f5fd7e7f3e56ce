"""The base of all architectures: layers with readable activations, a classifier, a top layer of K classes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_linear_bn_weights

from uic_core.errors import InputError
from uic_core.models.architecture import FC7
from uic_core.models.sobel import Sobel


class Network(nn.Module):
    """Images -> sobel -> features -> classifier -> top -> logits [B, K].

    Attributes:
        arch: name of the architecture.
        image_size: side of the square input the classifier is built for; `features` take any size.
        classes: K, outputs of `top`.
        uses_sobel: True if greyscale and Sobel filters come before the first layer.
        layers: names that `taps` accepts, from shallow to deep.
        embedding_size: D, length of the vectors that `embed` returns.
        coverage: share of the weights that a checkpoint filled, 0..1; below 1 only if it had no top layer.
    """

    layers: tuple[str, ...]
    embedding_size: int
    coverage: float = 1.0

    def __init__(
        self,
        arch: str,
        *,
        features: nn.Sequential,
        classifier: nn.Sequential,
        embedding_size: int,
        ends: dict[str, str],
        classes: int,
        image_size: int,
        sobel: bool,
    ) -> None:
        """`ends` maps a layer's name to the child of `features` whose output is that layer's activation."""
        super().__init__()
        self.arch, self.classes, self.image_size, self.uses_sobel = arch, classes, image_size, sobel
        self.layers = tuple(ends)
        self.embedding_size = embedding_size
        self._ends = ends
        self.sobel = Sobel() if sobel else nn.Identity()
        self.features = features
        self.classifier = classifier
        self.top = nn.Linear(embedding_size, classes)

    @property
    def top_filled(self) -> bool:
        """False if the checkpoint had no top layer and a new one replaces it. No other weight may be missing."""
        return self.coverage == 1

    def forward(self, x: Tensor) -> Tensor:
        """Normalised images float [B, 3, S, S] -> logits [B, K], in the top layer's own precision even under autocast.

        With the 8 bits of bf16, early in training, many of thousands of classes would have equal logits. The argmax,
        which becomes the pseudo-label, would always be the first of them.
        """
        hidden = self.hidden(x)
        with torch.autocast(x.device.type, enabled=False):
            logits: Tensor = self.top(hidden.to(self.top.weight.dtype))
        return logits

    def hidden(self, x: Tensor) -> Tensor:
        """Images -> features [B, D] that the top layer sees: AlexNet's fc7 after its ReLU."""
        return self._classify(self.maps(x))

    def maps(self, x: Tensor) -> Tensor:
        """Images [B, 3, h, w] of any size -> last convolutional map after its pooling [B, C, h', w']."""
        maps: Tensor = self.features(self.sobel(x))
        return maps

    def embed(self, x: Tensor) -> Tensor:
        """Images -> features [B, D] for DeepCluster: the top layer's input, before the ReLU of the last fc layer."""
        return self._embed(self.maps(x))

    def taps(self, x: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """Activations of `layers`, after their ReLU and before the network's own pooling.

        Layers deeper than the deepest of them are not computed. A classifier with an `fc7` has that layer too, [B, D]:
        only for images of the size that the network is built for.

        Raises:
            InputError: the network does not have a layer.
        """
        wanted = list(layers)
        whole = FC7 in wanted and hasattr(self.classifier, FC7)
        maps = [layer for layer in wanted if layer != FC7 or not whole]
        self._check(maps)
        children = {self._ends[layer]: layer for layer in maps}
        found: dict[str, Tensor] = {}
        x = self.sobel(x)
        for name, child in self.features.named_children():
            x = child(x)
            if name in children:
                found[children[name]] = x
                if len(found) == len(children) and not whole:
                    break
        if whole:
            found[FC7] = self._classify(x)
        return {layer: found[layer] for layer in wanted}

    @torch.no_grad()
    def linear_layers(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Weights [out, in] and biases [out] of the classifier's linear layers, by name.

        A batch norm after a layer is folded in: with its running statistics the function is the same.
        """
        found: dict[str, tuple[Tensor, Tensor]] = {}
        name = ""
        for child_name, child in self.classifier.named_children():
            if isinstance(child, nn.Linear):
                name = child_name
                bias = child.weight.new_zeros(child.out_features) if child.bias is None else child.bias
                found[name] = (child.weight, bias)
            elif isinstance(child, nn.BatchNorm1d):
                assert child.running_mean is not None
                assert child.running_var is not None
                found[name] = fuse_linear_bn_weights(
                    *found[name], child.running_mean, child.running_var, child.eps, child.weight, child.bias
                )
        return found

    def pool_last(self, x: Tensor) -> Tensor:
        """Apply the network's last max-pooling to the last layer's activation (few-shot's conv5+MP)."""
        last = list(self.features.children())[-1]
        assert isinstance(last, nn.MaxPool2d)
        pooled: Tensor = last(x)
        return pooled

    def _check(self, layers: list[str]) -> None:
        unknown = [layer for layer in layers if layer not in self.layers]
        if unknown:
            raise InputError(f"layers: {self.arch} has no layer '{unknown[0]}' (known: {', '.join(self.layers)})")

    def _classify(self, maps: Tensor) -> Tensor:
        hidden: Tensor = self.classifier(torch.flatten(maps, 1))
        return hidden

    def _embed(self, maps: Tensor) -> Tensor:
        # DeepCluster drops the last ReLU when it computes features.
        hidden = torch.flatten(maps, 1)
        *children, last = self.classifier.children()
        assert isinstance(last, nn.ReLU), "a classifier ends with fc7's ReLU"
        for child in children:
            hidden = child(hidden)
        return hidden


class PooledNetwork(Network):
    """A network whose `classifier` is an average pooling, `avgpool`, and an optional head. `taps` returns vectors."""

    def _embed(self, maps: Tensor) -> Tensor:
        return self._classify(maps)

    def _classify(self, maps: Tensor) -> Tensor:
        return torch.flatten(self.classifier(maps), 1)

    def taps(self, x: Tensor, layers: Iterable[str]) -> dict[str, Tensor]:
        """Average-pooled features and the MLP head's output, each [B, D]. Raises InputError for other names."""
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


def map_side(features: nn.Sequential, sobel: bool, image_size: int) -> tuple[int, int]:
    """(channels, side) of the last map for an input of `image_size`, derived from shapes only."""
    with torch.device("meta"):
        x = torch.empty(1, 2 if sobel else 3, image_size, image_size)
    for child in features.children():
        x = _shape_after(child, x)
    return x.shape[1], x.shape[2]


def _shape_after(child: nn.Module, x: Tensor) -> Tensor:
    if isinstance(child, nn.Conv2d):
        side = (x.shape[2] + 2 * int(child.padding[0]) - child.kernel_size[0]) // child.stride[0] + 1
        return x.new_empty(1, child.out_channels, side, side)
    if isinstance(child, nn.MaxPool2d):
        assert isinstance(child.kernel_size, int)
        assert isinstance(child.stride, int)
        side = (x.shape[2] - child.kernel_size) // child.stride + 1
        return x.new_empty(1, x.shape[1], side, side)
    return x


def initialise(module: nn.Module) -> None:
    """DeepCluster's initial weights: conv N(0, sqrt(2/(k^2 out))), linear N(0, .01), biases 0, BN 1 and 0."""
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.normal_(child.weight, 0.0, (2.0 / (child.kernel_size[0] ** 2 * child.out_channels)) ** 0.5)
        elif isinstance(child, nn.Linear):
            nn.init.normal_(child.weight, 0.0, 0.01)
        elif isinstance(child, nn.BatchNorm2d):
            nn.init.ones_(child.weight)
        if isinstance(child, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and child.bias is not None:
            nn.init.zeros_(child.bias)
