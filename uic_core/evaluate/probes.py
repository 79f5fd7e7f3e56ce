"""Linear probes in training and in test (PROTOCOL section 4).

One trunk serves all layers: it runs once a batch, up to the deepest of them, and every layer's head learns from its
own activation with its own loss. What a head sees depends on seed, epoch and image alone, so it comes out as if it
had been trained by itself.

Ten-crop testing costs much more than the heads. As the trunk never changes, the heads of many epochs are kept and
tested in one pass over the validation images: what the originals compute after every epoch, for a part of the cost.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from uic_core.config import LinearProbe
from uic_core.data.augment import UNIFORMS, augment
from uic_core.data.index import Index
from uic_core.data.loader import Loader
from uic_core.errors import InputError
from uic_core.evaluate import ten_crop
from uic_core.evaluate.frozen import frozen
from uic_core.evaluate.heads import Affine, activations, build_heads
from uic_core.models.network import Network
from uic_core.run import metrics, randomness
from uic_core.run.parallel import ALONE, Ranks
from uic_core.run.saved_state import EPOCH_SECONDS, Saver, demand_same, momenta, part, restore_momenta

SNAPSHOT_BYTES = 2 << 30
"""Heads waiting for their test; when one more epoch would not fit, they are tested. ImageNet and five AlexNet layers
take 189 MB an epoch: three test passes instead of 32. Twice as much is in use during a test, and a saved state holds
them too."""


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


class Probes:
    """A head on each layer of a frozen network, and how far they have come.

    Attributes:
        layers: L of them.
        heads: by layer, the same on every rank.
        epoch, step: what is trained next.
        loss: of the epoch's steps so far, sum over the images, float [L].
        waiting: heads after E epochs that are not tested to the end.
        tested, hits: validation images that they were tested on so far; int64 [L, 2, E] of them right, top-1 and top-5.
        curves: accuracy after each tested epoch, 0..1, float64 [L, 2, epochs].
        earlier_seconds: what processes took whose state this one went on from.
    """

    def __init__(
        self,
        network: Network,
        train_index: Index,
        val_index: Index,
        protocol: LinearProbe,
        resize: int,
        workers: int = 0,
        ranks: Ranks = ALONE,
        saver: Saver | None = None,
    ) -> None:
        """New heads, on the device the network lies on; or those of a saved state.

        Args:
            train_index: the images the heads learn from, all of them; crops are `network.image_size` wide.
            resize: shorter side before random and ten crops, pixels.
            workers: decoding processes; 0 decodes in this one.
            saver: where a state is kept; None keeps none.

        Raises:
            InputError: as `settings` does; the two indexes have different classes; batch norm over too few images;
                or no state that is there can be used.
        """
        self.layers, self._crop = settings(network, protocol)
        if train_index.classes != val_index.classes:
            raise InputError(
                f"{val_index.name} ({val_index.root}): its classes are not those of {train_index.name} "
                f"({train_index.root}); give indexes of one data set"
            )
        if protocol.batch_norm and min(protocol.batch_size, len(train_index)) < 2 * ranks.world:
            raise InputError(
                f"linear_probe.batch_size: {protocol.batch_size} of {len(train_index)} images for {ranks.world} "
                "process(es); batch norm takes two or more each: raise it, or take fewer processes"
            )
        self.network, self.train_index, self.val_index = network.eval(), train_index, val_index
        self.protocol, self.ranks, self.saver = protocol, ranks, saver
        self._resize, self._workers = resize, workers
        self._device = next(network.parameters()).device
        self.heads = build_heads(network, self.layers, len(train_index.classes), protocol)
        self._module = nn.ModuleDict(self.heads)
        self._trained = list(self._module.parameters())
        self._optimizer = torch.optim.SGD(
            self._trained, lr=protocol.lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay, fused=True
        )
        share = -(-protocol.batch_size // ranks.world)
        self._loader = Loader(train_index, network.image_size, resize, share, workers, self._device)
        self._labels = torch.from_numpy(train_index.labels).long().to(self._device)
        self.epoch = self.step = self.tested = 0
        self.loss = torch.zeros(len(self.layers), device=self._device)
        self.waiting: list[dict[str, Affine]] = []
        self.hits = torch.zeros(0, dtype=torch.int64)
        self.curves = np.zeros((len(self.layers), 2, 0))
        self.earlier_seconds = 0.0
        self._requested: Tensor | None = None
        if saver is not None:
            self._restore(saver)

    def run(self) -> dict[str, Curve]:
        """Train to the last epoch and test every epoch's heads.

        The network is left in eval mode, frozen; that it is bitwise what it was is asserted.

        Returns:
            Curves of `protocol.epochs` entries, by layer.

        Raises:
            InputError: an image cannot be read (names the file); a loss or weight is not finite (names the layer).
            Interrupted: SIGTERM or SIGUSR1 came, and the state is saved.
        """
        with frozen(self.network):
            while self.waiting or self.epoch < self.protocol.epochs:
                if self._must_test():
                    self.test()
                else:
                    self.train_epoch()
                self._pause(EPOCH_SECONDS)
        return {
            layer: Curve(top1=top1, top5=top5) for layer, (top1, top5) in zip(self.layers, self.curves, strict=True)
        }

    def train_epoch(self) -> None:
        """Train all heads from `step` to the end of the epoch; a copy of them then waits for its test.

        Order, crops and flips depend on (seed, epoch, image) alone; the ranks share each batch.

        Raises:
            InputError: see `run`.
        """
        protocol, epoch, started = self.protocol, self.epoch, time.monotonic()
        assert not any(parameter.requires_grad for parameter in self.network.parameters()), "the backbone is not frozen"
        lr = learning_rate(protocol, epoch)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._module.train()
        batches = self._batches()
        images, left = sum(map(len, batches)), batches[self.step :]
        shares = [np.array_split(batch, self.ranks.world)[self.ranks.rank] for batch in left]
        # A rank without an image in the last batch passes one, which then counts nothing.
        own = (share if len(share) else batch[:1] for share, batch in zip(shares, left, strict=True))
        stream = self._loader.stream(own, self._crop, protocol.seed, epoch)  # type: ignore[arg-type]
        for number, (crops, positions) in enumerate(stream):
            numbers = randomness.uniforms(protocol.seed, epoch, positions, UNIFORMS)
            features = activations(self.network, augment(crops, numbers, "standard"), self.layers)
            truth = self._labels[torch.from_numpy(positions).to(self._device)]
            losses = [F.cross_entropy(self.heads[layer](features[layer]), truth) for layer in self.layers]
            size = len(left[number])
            weighted = torch.stack(losses) * (len(shares[number]) / size)
            self._optimizer.zero_grad()
            weighted.sum().backward()  # each head's gradient comes from its own loss
            for parameter in self._trained:
                assert parameter.grad is not None
                self.ranks.add(parameter.grad)
            self._optimizer.step()
            self.loss += self.ranks.add(weighted.detach()) * size
            self.step += 1
            if self.step < len(batches):
                self._pause()
        self._end_epoch(images, lr, sum(map(len, left)) / (time.monotonic() - started))

    def test(self) -> None:
        """Ten-crop accuracy of the waiting heads, from the image `tested` on.

        Raises:
            InputError: an image cannot be read; names the file.
        """
        if not self.tested:
            self.hits = torch.zeros(len(self.layers), 2, len(self.waiting), dtype=torch.int64, device=self._device)
        left = ten_crop.hits(
            self.network, self.waiting, self.val_index, self._resize, self._workers, self.ranks, self.tested
        )
        for self.tested, found in left:
            self.hits += found
            if self.tested < len(self.val_index):
                self._pause()
        shares = (self.hits.double() / len(self.val_index)).cpu().numpy()
        self.curves = np.concatenate([self.curves, shares], axis=2)
        self.waiting.clear()
        self.tested = 0

    def say(self, line: str) -> None:
        """Print a line, once for all ranks."""
        if not self.ranks.rank:
            print(line, flush=True)

    def close(self) -> None:
        """End the decoding processes."""
        self._loader.close()

    def _batches(self) -> list[NDArray[np.int64]]:
        """The epoch's batches over all ranks."""
        images, size = len(self.train_index), self.protocol.batch_size
        order = np.random.default_rng([self.protocol.seed, self.epoch]).permutation(images)
        if self.protocol.batch_norm and images % size < 2 * self.ranks.world:
            order = order[: images - images % size]  # batch norm cannot normalise a single image
        return [order[start : start + size] for start in range(0, len(order), size)]

    def _end_epoch(self, images: int, lr: float, rate: float) -> None:
        means = dict(zip(self.layers, (self.loss / images).tolist(), strict=True))
        self.ranks.align(self._module)
        snapshot = {layer: self.heads[layer].affine() for layer in self.layers}
        for layer, tensors in snapshot.items():
            if not (math.isfinite(means[layer]) and all(torch.isfinite(tensor).all() for tensor in tensors)):
                raise InputError(
                    f"linear_probe: {layer}: loss {means[layer]} or a weight of the head is not finite in epoch "
                    f"{self.epoch + 1}; check the checkpoint's weights, or lower linear_probe.lr"
                )
        shown = "  ".join(f"{layer} {mean:.4f}" for layer, mean in means.items())
        self.epoch, self.step = self.epoch + 1, 0
        self.loss.zero_()
        self.waiting.append(snapshot)
        self.say(f"epoch {self.epoch}/{self.protocol.epochs}  lr {lr:g}  loss: {shown}  {rate:.0f} images/s")

    def _must_test(self) -> bool:
        """Whether training is over, or no room is left for the heads of one more epoch."""
        if not self.waiting or self.epoch == self.protocol.epochs:
            return bool(self.waiting)
        size = sum(tensor.nbytes for affine in self.waiting[0].values() for tensor in affine)
        return (len(self.waiting) + 1) * size > SNAPSHOT_BYTES

    def _pause(self, seconds: float | None = None) -> None:
        """Stop or save as a rank requested at the pause before this one, so that no device waits; request anew.

        Args:
            seconds: since the last state, that another one is due after; None: the saver's.
        """
        if self.saver is None:
            return
        requested, seconds = self._requested, self.saver.every if seconds is None else seconds
        self._requested = self.ranks.add(torch.tensor(self.saver.requests(seconds), device=self._device))
        if requested is not None and requested.any():
            self._requested = None
            self.saver.stop_or_save(requested.tolist(), self._position(), self._save)

    def _position(self) -> str:
        if self.tested or self._must_test():
            return f"validation image {self.tested + 1} of the test after epoch {self.epoch}"
        return f"epoch {self.epoch + 1}, step {self.step + 1}"

    def _save(self) -> None:
        assert self.saver is not None
        tensors = {f"heads.{name}": tensor for name, tensor in self._module.state_dict().items()}
        tensors |= momenta(self._optimizer, self._trained)
        for name, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise InputError(
                    f"linear_probe: {name} is not finite before {self._position()}; check the checkpoint's weights, "
                    "or lower linear_probe.lr (the last good state is kept, no metrics are written)"
                )
        for epoch, snapshot in enumerate(self.waiting):
            for layer, (weight, bias) in snapshot.items():
                tensors |= {f"waiting.{epoch}.{layer}.weight": weight, f"waiting.{epoch}.{layer}.bias": bias}
        tensors |= {"loss": self.loss, "hits": self.hits, "curves": torch.from_numpy(self.curves)}
        content: dict[str, Any] = {"epoch": self.epoch, "step": self.step, "tested": self.tested}
        content["seconds"] = self.earlier_seconds + metrics.seconds()
        self.saver.state.save(tensors, content | {"waiting": len(self.waiting), "ranks": self.ranks.world})

    def _restore(self, saver: Saver) -> None:
        found = saver.state.load(self.say)
        demand_same(saver.state, found, self.ranks, self._device)
        if found is None:
            return
        path, content, tensors = found
        self._module.load_state_dict(part(tensors, "heads."))
        restore_momenta(self._optimizer, self._trained, tensors)
        # Copies: what safetensors gives lies in the file, which is removed in the end.
        on_device = {name: tensor.to(self._device, copy=True) for name, tensor in tensors.items()}
        self.waiting = [
            {layer: (snapshot[f"{layer}.weight"], snapshot[f"{layer}.bias"]) for layer in self.layers}
            for snapshot in (part(on_device, f"waiting.{epoch}.") for epoch in range(content["waiting"]))
        ]
        self.loss, self.hits, self.curves = on_device["loss"], on_device["hits"], tensors["curves"].numpy()
        self.epoch, self.step, self.tested = content["epoch"], content["step"], content["tested"]
        self.earlier_seconds = content["seconds"]
        self.say(f"{path}: going on from {self._position()}{self.ranks.changed(content['ranks'])}")
