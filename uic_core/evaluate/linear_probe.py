"""Stage `linear_probe`: linear classifiers on frozen layers of a network (PROTOCOL section 4).

Tables 1, 2, 3, 6 and 7. Expect for AlexNets on ImageNet, conv1 to conv5: 12.8 34.3 41.6 41.5 39.0 after UIC and
further fine-tuning, 19.3 36.3 44.2 48.3 50.5 with annotated labels, 11.6 17.1 16.9 16.3 14.1 from random weights.
Cost at paper scale: 32 epochs of forward passes for all layers together, and three of ten-crop testing.

One trunk serves all layers: it runs once a batch, up to the deepest of them, and every layer's head learns from its
own activation with its own loss. What a head sees depends on seed, epoch and image alone, so it comes out as if it
had been trained by itself.

Ten-crop testing costs much more than the heads. As the trunk never changes, the heads of many epochs are kept and
tested in one pass over the validation images: what the originals compute after every epoch, for a part of the cost.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from uic_core import metrics, recipe, runtime
from uic_core.config import LinearProbe
from uic_core.data.augment import UNIFORMS, augment, normalize
from uic_core.data.index import Index
from uic_core.data.loader import Loader
from uic_core.errors import InputError, stage
from uic_core.evaluate.frozen import frozen
from uic_core.evaluate.ten_crop import CROPS, ten_crops
from uic_core.models import Network
from uic_core.models.probe_pool import probe_pool
from uic_core.pretrain import checkpoint

SNAPSHOT_BYTES = 2 << 30
"""Heads waiting for their test; when one more epoch would not fit, they are tested. ImageNet and five AlexNet layers
take 189 MB an epoch: three test passes instead of 32. Twice as much is in use during a test."""

_TEST_IMAGES = 25  # a forward pass sees ten times as many crops

Affine = tuple[Tensor, Tensor]
"""A trained head: weight [K, D] and bias [K]."""


class Head(nn.Module):
    """A linear classifier of flattened activations, with a non-affine batch norm before it on request.

    As in SelfLabel, RotNet and Zhang, the batch norm has one mean and one deviation a channel, not a place.
    """

    def __init__(self, channels: int, dimension: int, classes: int, batch_norm: bool) -> None:
        super().__init__()
        self.channels = channels
        self.norm = nn.BatchNorm1d(channels, affine=False) if batch_norm else None
        self.linear = nn.Linear(dimension, classes)

    def forward(self, features: Tensor) -> Tensor:
        """[B, D], channel by channel, to logits [B, K]."""
        if self.norm is not None:
            features = self.norm(features.unflatten(1, (self.channels, -1))).flatten(1)
        logits: Tensor = self.linear(features)
        return logits

    @torch.no_grad()
    def affine(self) -> Affine:
        """A copy of what the head computes in eval mode: its batch norm is folded into weight and bias."""
        weight, bias = self.linear.weight.clone(), self.linear.bias.clone()
        if self.norm is not None:
            mean, variance = self.norm.running_mean, self.norm.running_var
            assert mean is not None
            assert variance is not None
            places = weight.shape[1] // self.channels
            weight /= (variance + self.norm.eps).sqrt().repeat_interleave(places)
            bias -= weight @ mean.repeat_interleave(places)
        return weight, bias


@dataclass(frozen=True)
class Curve:
    """Validation accuracy of one layer's head after each epoch, 0..1: two float64 arrays [epochs]."""

    top1: NDArray[np.float64]
    top5: NDArray[np.float64]


def settings(network: Network, protocol: LinearProbe) -> tuple[list[str], str]:
    """(layers to probe, kind of training crop) for the network's architecture.

    Raises:
        InputError: the protocol has none for this architecture; names the key and what is known.
    """
    arch = network.arch
    for key in ("layers", "crop", "images", "val_images"):
        archs = getattr(protocol, key)
        if arch not in archs:
            raise InputError(f"linear_probe.{key}: nothing for {arch} (known: {', '.join(archs)}); add a line")
    return list(protocol.layers[arch]), protocol.crop[arch]  # type: ignore[index]  # checked above


def learning_rate(protocol: LinearProbe, epoch: int) -> float:
    """`lr`, divided by ten at each of `lr_steps`; epochs count from 0."""
    rate: float = protocol.lr / 10 ** sum(epoch >= step for step in protocol.lr_steps)
    return rate


@torch.no_grad()
def activations(network: Network, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Pooled and flattened activations of normalised images float [B, 3, S, S]: [B, D] a layer, in one pass."""
    taps = network.taps(images.contiguous(memory_format=torch.channels_last), layers)
    return {layer: probe_pool(layer, tap, network.arch) for layer, tap in taps.items()}


@torch.no_grad()
def build_heads(network: Network, layers: Sequence[str], classes: int, protocol: LinearProbe) -> dict[str, Head]:
    """New heads on the network's device: weights N(0, .01), biases 0.

    The draw depends on seed and layer only, so a layer starts the same whatever other layers are probed with it.
    """
    device = next(network.parameters()).device
    blank = torch.zeros(1, 3, network.image_size, network.image_size, device=device)
    taps = network.taps(blank, layers)
    heads = {}
    for layer, tap in taps.items():
        dimension = probe_pool(layer, tap, network.arch).shape[1]
        head = Head(tap.shape[1], dimension, classes, protocol.batch_norm)
        digest = hashlib.sha256(f"{protocol.seed} {layer}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:7]))
        nn.init.normal_(head.linear.weight, 0, 0.01, generator=generator)
        nn.init.zeros_(head.linear.bias)
        heads[layer] = head.to(device)
    return heads


def train(
    network: Network, heads: dict[str, Head], index: Index, protocol: LinearProbe, resize: int, workers: int = 0
) -> Iterator[dict[str, Affine]]:
    """Train all heads in place on a frozen network; yield a copy of them after each epoch.

    Order, crops and flips depend on (seed, epoch, image) alone.

    Args:
        index: the training images; crops are `network.image_size` wide.
        resize: shorter side before a random crop, pixels.
        workers: decoding processes; 0 decodes in this one.

    Raises:
        InputError: an image cannot be read (names the file), or a loss or weight is not finite (names the layer).
    """
    layers, crop = settings(network, protocol)
    device = next(network.parameters()).device
    labels = torch.from_numpy(index.labels).long().to(device)
    trained = [parameter for head in heads.values() for parameter in head.parameters()]
    assert not any(parameter.requires_grad for parameter in network.parameters()), "the backbone is not frozen"
    optimizer = torch.optim.SGD(
        trained, lr=protocol.lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay, fused=True
    )
    for head in heads.values():
        head.train()
    loader = Loader(index, network.image_size, resize, protocol.batch_size, workers, device)
    try:
        for epoch in range(protocol.epochs):
            started = time.monotonic()
            lr = learning_rate(protocol, epoch)
            for group in optimizer.param_groups:
                group["lr"] = lr
            order = np.random.default_rng([protocol.seed, epoch]).permutation(len(index))
            if protocol.batch_norm and len(order) % protocol.batch_size == 1:
                order = order[:-1]  # batch norm cannot normalise a single image
            totals = torch.zeros(len(layers), device=device)
            for images, positions in loader.batches(order, crop, protocol.seed, epoch):  # type: ignore[arg-type]
                numbers = runtime.uniforms(protocol.seed, epoch, positions, UNIFORMS)
                batch = augment(images, numbers, "standard")
                features = activations(network, batch, layers)
                truth = labels[torch.from_numpy(positions).to(device)]
                losses = torch.stack([F.cross_entropy(heads[layer](features[layer]), truth) for layer in layers])
                optimizer.zero_grad()
                losses.sum().backward()  # each head's gradient comes from its own loss
                optimizer.step()
                totals += losses.detach() * len(positions)
            means = dict(zip(layers, (totals / len(order)).tolist(), strict=True))
            snapshot = {layer: heads[layer].affine() for layer in layers}
            for layer, tensors in snapshot.items():
                if not (math.isfinite(means[layer]) and all(torch.isfinite(tensor).all() for tensor in tensors)):
                    raise InputError(
                        f"linear_probe: {layer}: loss {means[layer]} or a weight of the head is not finite in epoch "
                        f"{epoch + 1}; check the checkpoint's weights, or lower linear_probe.lr"
                    )
            shown = "  ".join(f"{layer} {mean:.4f}" for layer, mean in means.items())
            rate = len(order) / (time.monotonic() - started)
            print(f"epoch {epoch + 1}/{protocol.epochs}  lr {lr:g}  loss: {shown}  {rate:.0f} images/s", flush=True)
            yield snapshot
    finally:
        loader.close()


@torch.no_grad()
def ten_crop_accuracy(
    network: Network, snapshots: Sequence[dict[str, Affine]], index: Index, resize: int, workers: int
) -> dict[str, Curve]:
    """Top-1 and top-5 accuracy of the heads of several epochs in one ten-crop pass.

    An image's score for a class is the mean over its ten crops of the softmax. With fewer than five classes top-5 is
    always right.

    Args:
        snapshots: E of them, as `train` yields them.
        index: the validation images.
        resize: shorter side of the image that the crops are cut from, pixels.

    Returns:
        Curves of E entries, by layer.

    Raises:
        InputError: an image cannot be read; names the file.
    """
    device = next(network.parameters()).device
    labels = torch.from_numpy(index.labels).long().to(device)
    layers = list(snapshots[0])
    # All epochs of a layer make one large matrix product.
    stacked = {
        layer: tuple(torch.cat([snapshot[layer][part] for snapshot in snapshots]) for part in (0, 1))
        for layer in layers
    }
    hits = {layer: torch.zeros(2, len(snapshots), dtype=torch.int64, device=device) for layer in layers}
    for crops, positions in ten_crops(index, network.image_size, resize, _TEST_IMAGES, workers):
        images = normalize(crops.to(device, non_blocking=True).flatten(0, 1))
        truth = labels[positions.to(device)]
        for layer, features in activations(network, images, layers).items():
            logits = F.linear(features, *stacked[layer]).view(len(positions), CROPS, len(snapshots), -1)
            scores = logits.softmax(3).mean(1)  # [b, E, K]
            best = scores.topk(min(5, scores.shape[2]), dim=2).indices == truth[:, None, None]
            hits[layer] += torch.stack([best[..., 0].sum(0), best.any(2).sum(0)])
    shares = {layer: (found.double() / len(index)).cpu().numpy() for layer, found in hits.items()}
    return {layer: Curve(top1=share[0], top5=share[1]) for layer, share in shares.items()}


def evaluate(
    network: Network, train_index: Index, val_index: Index, protocol: LinearProbe, resize: int, workers: int = 0
) -> dict[str, Curve]:
    """Train a probe on each layer and test every epoch's, on the device the network lies on.

    The network is left in eval mode, frozen; that it is bitwise what it was is asserted.

    Args:
        train_index: the images the heads learn from, all of them.
        resize: shorter side before random and ten crops, pixels.
        workers: decoding processes; 0 decodes in this one.

    Returns:
        Curves of `protocol.epochs` entries, by layer.

    Raises:
        InputError: as `settings`, `train` and `ten_crop_accuracy` do, or the two indexes have different classes.
    """
    layers, _ = settings(network, protocol)
    if train_index.classes != val_index.classes:
        raise InputError(
            f"{val_index.name} ({val_index.root}): its classes are not those of {train_index.name} "
            f"({train_index.root}); give indexes of one data set"
        )
    parts: dict[str, list[Curve]] = {layer: [] for layer in layers}
    waiting: list[dict[str, Affine]] = []
    with frozen(network):
        heads = build_heads(network, layers, len(train_index.classes), protocol)
        for epoch, snapshot in enumerate(train(network, heads, train_index, protocol, resize, workers), 1):
            waiting.append(snapshot)
            size = sum(tensor.nbytes for affine in snapshot.values() for tensor in affine)
            if epoch == protocol.epochs or (len(waiting) + 1) * size > SNAPSHOT_BYTES:
                for layer, curve in ten_crop_accuracy(network, waiting, val_index, resize, workers).items():
                    parts[layer].append(curve)
                waiting.clear()
    return {
        layer: Curve(*(np.concatenate([getattr(curve, name) for curve in curves]) for name in ("top1", "top5")))
        for layer, curves in parts.items()
    }


def values(curves: dict[str, Curve], images: int) -> dict[str, metrics.Value]:
    """What the metrics say of each layer.

    `<layer>` and `<layer>/top5` at the epoch with the best top-1 (the first of equals; chosen on the validation
    images themselves, as the originals do), `<layer>/best_epoch` counting from 1, and `<layer>/last`.

    Args:
        images: validation images n; intervals are binomial, 1.96·√(p(1 − p)/n).
    """
    found = {}
    for layer, curve in curves.items():
        best = int(curve.top1.argmax())
        found[layer] = _percent(curve.top1[best], images)
        found[f"{layer}/top5"] = _percent(curve.top5[best], images)
        found[f"{layer}/best_epoch"] = metrics.Value(value=best + 1, unit="epoch")
        found[f"{layer}/last"] = _percent(curve.top1[-1], images)
    return found


def main(arguments: list[str] | None = None) -> None:
    """Linear probes on a checkpoint's frozen layers; writes the metrics JSON."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--protocol", type=Path, required=True, help="the config's linear_probe section")
    parser.add_argument("--train-index", type=Path, required=True)
    parser.add_argument("--val-index", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="metrics JSON to write")
    parser.add_argument("--run", required=True, help="the run's name")
    runtime.add_threads(parser)
    options = parser.parse_args(arguments)
    with stage():
        protocol = recipe.load(LinearProbe, options.protocol)
        runtime.seed_everything(protocol.seed)
        network, trained_by = checkpoint.load(options.checkpoint)
        network = network.to(runtime.device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
        layers, crop = settings(network, protocol)
        arch = trained_by.arch
        train_index = Index.load(options.train_index).subset(protocol.images[arch], protocol.seed)
        val_index = Index.load(options.val_index).subset(protocol.val_images[arch], protocol.seed)
        curves = evaluate(network, train_index, val_index, protocol, trained_by.resize, options.threads - 1)
        found = values(curves, len(val_index))
        beyond: dict[str, Any] = {
            "layers": layers,
            "crop": crop,
            "images": len(train_index),
            "val_images": len(val_index),
            "image_size": network.image_size,
            "resize": trained_by.resize,
            "test": f"mean softmax of {CROPS} crops",
            "classes": len(train_index.classes),
            "precision": "fp32",
        }
        metrics.write(
            options.out,
            metrics.Metrics(
                evaluation="linear_probe",
                run=options.run,
                dataset=metrics.Dataset(
                    name="imagenet",
                    fingerprint=f"{train_index.fingerprint}+{val_index.fingerprint}",
                    sizes={"train": len(train_index), "val": len(val_index)},
                ),
                values=found,
                protocol={**protocol.model_dump(), **beyond},
                provenance=metrics.provenance(
                    recipe_hash=trained_by.hash(),
                    checkpoint=options.checkpoint,
                    seed=protocol.seed,
                    hardware=runtime.hardware(),
                ),
            ),
        )
        shown = "  ".join(f"{layer} {found[layer].value:.1f}" for layer in layers)
        print(f"{options.run}: top-1 % over {len(val_index)} validation images: {shown}")


def _percent(share: float, images: int) -> metrics.Value:
    interval = 1.96 * math.sqrt(share * (1 - share) / images)
    return metrics.Value(value=100 * float(share), unit="%", ci95=100 * interval, n=images)


if __name__ == "__main__":
    main()
