"""The heads of linear probes, and the activations they classify (docs/protocol.md, Linear probes)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from uic_core.evaluate.frozen import taps
from uic_core.evaluations import LinearProbe
from uic_core.evaluations.evaluation import Precision
from uic_core.models.network import Network
from uic_core.models.probe_pool import probe_pool

Affine = tuple[Tensor, Tensor]
"""A trained head: weight [K, D] and bias [K]."""


class Head(nn.Module):
    """A linear classifier of flattened activations, optionally preceded by a non-affine batch norm.

    As in SelfLabel, RotNet and Zhang, the batch norm has one mean and one deviation per channel, not per position. With
    several processes each one normalises over its own images, and tests use the statistics of rank 0.
    """

    def __init__(self, channels: int, dimension: int, classes: int, batch_norm: bool) -> None:
        super().__init__()
        self.channels = channels
        self.norm = nn.BatchNorm1d(channels, affine=False) if batch_norm else None
        self.linear = nn.Linear(dimension, classes)

    def forward(self, features: Tensor) -> Tensor:
        """Map features [B, D], ordered by channel, to logits [B, K]."""
        if self.norm is not None:
            features = self.norm(features.unflatten(1, (self.channels, -1))).flatten(1)
        logits: Tensor = self.linear(features)
        return logits

    @torch.no_grad()
    def affine(self) -> Affine:
        """Copy weight and bias, with the eval-mode batch norm folded into them."""
        weight, bias = self.linear.weight.clone(), self.linear.bias.clone()
        if self.norm is not None:
            mean, variance = self.norm.running_mean, self.norm.running_var
            assert mean is not None
            assert variance is not None
            places = weight.shape[1] // self.channels
            weight /= (variance + self.norm.eps).sqrt().repeat_interleave(places)
            bias -= weight @ mean.repeat_interleave(places)
        return weight, bias


@torch.no_grad()
def activations(
    network: Network, images: Tensor, layers: Sequence[str], precision: Precision = "fp32"
) -> dict[str, Tensor]:
    """Compute pooled, flattened activations per layer, in one pass of the network in a precision.

    Args:
        images: normalised, float32 [B, 3, S, S].

    Returns:
        float32 [B, D] by layer.
    """
    found = taps(network, images.contiguous(memory_format=torch.channels_last), layers, precision)
    return {layer: probe_pool(layer, tap, network.arch).float() for layer, tap in found.items()}


@torch.no_grad()
def build_heads(network: Network, layers: Sequence[str], classes: int, protocol: LinearProbe) -> dict[str, Head]:
    """Create heads on the network's device, with the protocol's first weights: N(0, .01) in the paper's, biases 0.

    The weights depend on seed and layer only, not on which other layers are probed.
    """
    device = next(network.parameters()).device
    blank = torch.zeros(1, 3, network.image_size, network.image_size, device=device)
    heads = {}
    for layer, tap in network.taps(blank, layers).items():
        dimension = probe_pool(layer, tap, network.arch).shape[1]
        head = Head(tap.shape[1], dimension, classes, protocol.batch_norm)
        digest = hashlib.sha256(f"{protocol.seed} {layer}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
        weight = head.linear.weight
        if protocol.switches.start == "xavier":  # of a convolution over all places, as SelfLabel's head is
            nn.init.xavier_uniform_(weight.unflatten(1, (tap.shape[1], -1)), generator=generator)
        else:
            deviation = {"normal": 0.01, "he": math.sqrt(2 / classes)}[protocol.switches.start]
            nn.init.normal_(weight, 0, deviation, generator=generator)
        nn.init.zeros_(head.linear.bias)
        heads[layer] = head.to(device)
    return heads
