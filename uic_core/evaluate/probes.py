"""Train and test linear probes (docs/protocol.md, Linear probes).

One trunk serves all layers: it runs once per batch, up to the deepest probed layer, and each layer's head learns from
its own activations with its own loss. A head's input depends only on seed, epoch and image, so the result equals that
of training the head by itself.

Ten-crop testing costs much more than the heads. Because the trunk never changes, the heads of many epochs are kept and
tested in one pass over the validation images. The result is that of the original code, which tests after every epoch,
at a fraction of the cost.
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
from torch import nn

from uic_core.data.augment import UNIFORMS, augment
from uic_core.data.index import Index
from uic_core.data.resident import open_loader
from uic_core.errors import InputError
from uic_core.evaluate import ten_crop
from uic_core.evaluate.frozen import frozen
from uic_core.evaluate.heads import Affine, activations, build_heads
from uic_core.evaluate.inputs import demand_one_data_set, layers_of
from uic_core.evaluations import LinearProbe
from uic_core.evaluations.linear_probe import SNAPSHOT_BYTES
from uic_core.models.network import Network
from uic_core.run import devices, metrics, randomness
from uic_core.run.parallel import ALONE, Ranks
from uic_core.run.saved_state import EPOCH_SECONDS, Saver, demand_same
from uic_core.run.state_tensors import demand_finite, momenta, part, restore_momenta


@dataclass(frozen=True)
class Curve:
    """Validation accuracy of one layer's head after each epoch, 0..1: float64 [epochs] each.

    `remark` says that the training diverged, and is '' otherwise. `loss` is that of the last epoch over a guess's.
    """

    top1: NDArray[np.float64]
    top5: NDArray[np.float64]
    remark: str = ""
    loss: float | None = None


def settings(network: Network, protocol: LinearProbe, section: str = "linear_probe") -> tuple[list[str], str]:
    """Return (layers to probe, kind of training crop) for the network's architecture; `section` is the config's.

    Raises:
        InputError: a key of the protocol lacks this architecture; names the key and the known architectures.
    """
    layers = layers_of(network.arch, protocol, section, "crop", "images", "val_images")
    return list(layers), protocol.crop[network.arch]


def learning_rate(protocol: LinearProbe, epoch: int) -> float:
    """Return `lr` divided by ten, or a peer's factor, for each of `lr_steps` reached; epochs count from 0."""
    rate: float = protocol.lr / protocol.switches.lr_factor ** sum(epoch >= step for step in protocol.lr_steps)
    return rate


class Probes:
    """The heads on the layers of a frozen network, and the progress of their training and test.

    Attributes:
        layers: names of the L probed layers.
        heads: the heads by layer, identical on every rank.
        epoch, step: position of the next training step.
        loss: sum over the images of the epoch's steps so far, float [L].
        waiting: heads of E epochs whose test is not complete.
        tested: number of validation images on which `waiting` has been tested.
        hits: int64 [L, 2, E], how many of these were classified correctly, top-1 and top-5.
        curves: accuracy after each tested epoch, 0..1, float64 [L, 2, epochs].
        losses: mean training loss of each layer in each finished epoch.
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
        section: str = "linear_probe",
    ) -> None:
        """Create heads on the network's device, or restore them from a saved state.

        Args:
            train_index: the images to train on, all of them; crops are `network.image_size` wide.
            resize: shorter side before random and ten crops, pixels.
            workers: decoding processes; 0 decodes in this one.
            saver: saves and loads states; None saves none.
            section: the config's, for messages.

        Raises:
            InputError: from `settings`; the two indexes have different classes; batch norm gets too few images; or
                there are states, but none is usable.
        """
        self.layers, self._crop = settings(network, protocol, section)
        demand_one_data_set(train_index, val_index)
        if protocol.batch_norm and min(protocol.batch_size, len(train_index)) < 2 * ranks.world:
            raise InputError(
                f"{section}.batch_size: {protocol.batch_size} of {len(train_index)} images for {ranks.world} "
                "process(es); batch norm takes two or more each: raise it, or take fewer processes"
            )
        self.network, self.train_index, self.val_index = network.eval(), train_index, val_index
        self.protocol, self.ranks, self.saver = protocol, ranks, saver
        self._resize, self._workers, self._section = resize, workers, section
        self._device = next(network.parameters()).device
        self.heads = build_heads(network, self.layers, len(train_index.classes), protocol)
        self._module = nn.ModuleDict(self.heads)
        self._trained = list(self._module.parameters())
        self._optimizer = torch.optim.SGD(
            self._trained, lr=protocol.lr, momentum=protocol.momentum, weight_decay=protocol.weight_decay,
            nesterov=protocol.switches.nesterov, fused=True,
        )  # fmt: skip
        share = -(-protocol.batch_size // ranks.world)
        self._loader = open_loader(train_index, network.image_size, resize, share, workers, self._device)
        self._labels = torch.from_numpy(train_index.labels).long().to(self._device)
        self.epoch = self.step = self.tested = 0
        self.loss = torch.zeros(len(self.layers), device=self._device)
        self.waiting: list[dict[str, Affine]] = []
        self.hits = torch.zeros(0, dtype=torch.int64)
        self.curves = np.zeros((len(self.layers), 2, 0))
        self.losses: list[list[float]] = []
        if saver is not None:
            self._restore(saver)

    def run(self) -> dict[str, Curve]:
        """Train to the last epoch and test every epoch's heads.

        The network ends in eval mode and frozen; an assertion checks that it is bitwise unchanged.

        Returns:
            Curves with `protocol.epochs` entries, by layer.

        Raises:
            InputError: an image cannot be read (names the file); a loss or weight is not finite (names the layer).
            Interrupted: SIGTERM or SIGUSR1 arrived; the state is saved.
        """
        with frozen(self.network):
            while self.waiting or self.epoch < self.protocol.epochs:
                if self._must_test():
                    self.test()
                else:
                    self.train_epoch()
                self._pause(EPOCH_SECONDS)
        return {
            layer: Curve(top1, top5, self._remark(number), self._loss(number))
            for number, (layer, (top1, top5)) in enumerate(zip(self.layers, self.curves, strict=True))
        }

    def train_epoch(self) -> None:
        """Train all heads from `step` to the end of the epoch, then append a copy to `waiting`.

        Order, crops and flips depend only on (seed, epoch, image); the ranks share each batch.

        Raises:
            InputError: an image cannot be read (names the file); a loss or weight is not finite (names the layer).
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
        # A rank without an image in the last batch processes one with weight 0.
        own = (share if len(share) else batch[:1] for share, batch in zip(shares, left, strict=True))
        stream = self._loader.stream(own, self._crop, protocol.seed, epoch)  # type: ignore[arg-type]
        for number, (crops, positions) in enumerate(stream):
            numbers = randomness.uniforms(protocol.seed, epoch, positions, UNIFORMS)
            features = activations(self.network, augment(crops, numbers, "standard"), self.layers, protocol.precision)
            truth = self._labels[devices.onto(self._device, positions)]
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
        """Compute the ten-crop accuracy of the `waiting` heads, starting at image `tested`.

        Raises:
            InputError: an image cannot be read; names the file.
        """
        if not self.tested:
            self.hits = torch.zeros(len(self.layers), 2, len(self.waiting), dtype=torch.int64, device=self._device)
        left = ten_crop.hits(
            self.network, self.waiting, self.val_index, self._resize, self._workers, self.ranks, self.tested,
            self.protocol.switches.test, self.protocol.precision,
        )  # fmt: skip
        for self.tested, found in left:
            self.hits += found
            if self.tested < len(self.val_index):
                self._pause()
        shares = (self.hits.double() / len(self.val_index)).cpu().numpy()
        self.curves = np.concatenate([self.curves, shares], axis=2)
        self.waiting.clear()
        self.tested = 0

    def say(self, line: str) -> None:
        """Print a line, on rank 0 only."""
        if not self.ranks.rank:
            print(line, flush=True)

    def close(self) -> None:
        """End the decoding processes."""
        self._loader.close()

    def _batches(self) -> list[NDArray[np.int64]]:
        """The epoch's batches of positions, not yet divided among the ranks."""
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
                    f"{self._section}: {layer}: loss {means[layer]} or a weight of the head is not finite in epoch "
                    f"{self.epoch + 1}, lr {lr:g}; check the checkpoint's weights, or lower {self._section}.lr"
                )
        shown = "  ".join(f"{layer} {mean:.4f}" for layer, mean in means.items())
        self.epoch, self.step = self.epoch + 1, 0
        self.loss.zero_()
        self.losses.append(list(means.values()))
        self.waiting.append(snapshot)
        self.say(f"epoch {self.epoch}/{self.protocol.epochs}  lr {lr:g}  loss: {shown}  {rate:.0f} images/s")

    @property
    def _guess(self) -> float:
        return math.log(len(self.train_index.classes))

    def _remark(self, layer: int) -> str:
        if not self.losses:
            return ""
        return metrics.diverged(self.losses[0][layer], self.losses[-1][layer], self._guess, self.protocol.lr)

    def _loss(self, layer: int) -> float | None:
        return self.losses[-1][layer] / self._guess if self.losses else None

    def _must_test(self) -> bool:
        """True if heads await a test, and training is over or one more epoch's heads would exceed SNAPSHOT_BYTES."""
        if not self.waiting or self.epoch == self.protocol.epochs:
            return bool(self.waiting)
        size = sum(tensor.nbytes for affine in self.waiting[0].values() for tensor in affine)
        return (len(self.waiting) + 1) * size > SNAPSHOT_BYTES

    def _pause(self, seconds: float | None = None) -> None:
        """Stop or save if a rank requested it, at this pause or, with several ranks, at the one before.

        Args:
            seconds: a save is due this long after the last one; None: `saver.every`.
        """
        if self.saver is not None:
            requests = self.saver.exchanged(self.saver.every if seconds is None else seconds, self._device)
            self.saver.stop_or_save(requests, self._position(), self._save)

    def _position(self) -> str:
        if self.tested or self._must_test():
            return f"validation image {self.tested + 1} of the test after epoch {self.epoch}"
        return f"epoch {self.epoch + 1}, step {self.step + 1}"

    def _save(self) -> None:
        assert self.saver is not None
        tensors = {f"heads.{name}": tensor for name, tensor in self._module.state_dict().items()}
        tensors |= momenta(self._optimizer, self._trained)
        remedy = f"check the checkpoint's weights, or lower {self._section}.lr"
        demand_finite(tensors, f"{self._section}: before {self._position()}", remedy)
        for epoch, snapshot in enumerate(self.waiting):
            for layer, (weight, bias) in snapshot.items():
                tensors |= {f"waiting.{epoch}.{layer}.weight": weight, f"waiting.{epoch}.{layer}.bias": bias}
        tensors |= {"loss": self.loss, "hits": self.hits, "curves": torch.from_numpy(self.curves)}
        content: dict[str, Any] = {"epoch": self.epoch, "step": self.step, "tested": self.tested}
        self.saver.state.save(
            tensors, content | {"waiting": len(self.waiting), "losses": self.losses, "ranks": self.ranks.world}
        )

    def _restore(self, saver: Saver) -> None:
        found = saver.state.load(self.say)
        demand_same(saver.state, found, self.ranks, self._device)
        if found is None:
            return
        path, content, tensors = found
        self._module.load_state_dict(part(tensors, "heads."))
        restore_momenta(self._optimizer, self._trained, tensors)
        # Copy: safetensors' tensors are memory-mapped from the file, which is removed at the end.
        on_device = {name: tensor.to(self._device, copy=True) for name, tensor in tensors.items()}
        self.waiting = [
            {layer: (snapshot[f"{layer}.weight"], snapshot[f"{layer}.bias"]) for layer in self.layers}
            for snapshot in (part(on_device, f"waiting.{epoch}.") for epoch in range(content["waiting"]))
        ]
        self.loss, self.hits, self.curves = on_device["loss"], on_device["hits"], tensors["curves"].numpy()
        self.epoch, self.step, self.tested = content["epoch"], content["step"], content["tested"]
        self.losses = content.get("losses", [])  # states of earlier versions have none
        self.say(f"{path}: going on from {self._position()}{self.ranks.changed(content['ranks'])}")
