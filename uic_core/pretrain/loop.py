"""One training loop for every method: images in, checkpoint, labels and history out."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from uic_core import runtime
from uic_core.data.augment import UNIFORMS, augment, normalize
from uic_core.data.index import Index
from uic_core.data.loader import Loader
from uic_core.errors import InputError
from uic_core.files import atomic, write_text
from uic_core.models import Network
from uic_core.pretrain import checkpoint, labels
from uic_core.pretrain.methods import cross_entropy, method
from uic_core.pretrain.precision import autocast, resolve
from uic_core.pretrain.state import State
from uic_core.recipe import Recipe


class Trainer:
    """A run in progress: the network, its labels and how far it has come.

    Attributes:
        index: the images trained on (`recipe.images` of the whole index).
        labels: int32 [N], the only thing kept for each image.
        optimizer: one SGD over all weights.
    """

    def __init__(self, recipe: Recipe, index: Index, network: Network, save_every: float) -> None:
        """`save_every`: seconds between saved states; 0 saves after each epoch."""
        self.recipe = recipe
        self.index = index.subset(recipe.images, recipe.seed) if recipe.images else index
        self.device = runtime.device()
        self.precision = resolve(recipe.precision, self.device)
        # Tensor cores and oneDNN both prefer channels last.
        self.network = network.to(self.device)
        for parameter in self.network.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        self.loader = Loader(self.index, recipe.image_size, recipe.resize, recipe.workers)
        self.save_every = save_every
        self.labels = np.zeros(0, np.int32)
        self.history: list[dict[str, Any]] = []

    def run(self, folder: Path) -> None:
        """Train to the end of the recipe and write labels.npy, history.jsonl and checkpoint.safetensors.

        A state left by an interrupted run of the same recipe on the same images is gone on from.

        Raises:
            InputError: an unreadable image; a loss that is not finite, naming the step; a full disk.
        """
        recipe = self.recipe
        state = State(folder / "state.safetensors", key=f"{recipe.hash()}-{self.index.fingerprint}")
        chosen = method(self)
        first = state.restore(self)
        if not first:
            self.labels = chosen.initial(self)
        saved = time.monotonic()
        for epoch in range(first, recipe.epochs):
            # All randomness of an epoch starts here, so a resumed run draws what an undisturbed one would.
            torch.manual_seed(recipe.seed * 1_000_003 + epoch)
            rng = np.random.default_rng([recipe.seed, 1, epoch])
            before = self.labels.copy()
            empty = int((labels.class_sizes(before, recipe.classes) == 0).sum())
            plan = chosen.plan(self, epoch, rng)
            loss = self._epoch(epoch, plan.order, plan.targets, chosen.observe)
            self._record(epoch, loss, before, empty, labels.coverage(plan.order, len(self.index)))
            if epoch + 1 < recipe.epochs and time.monotonic() - saved >= self.save_every:
                state.save(self, epoch + 1)
                saved = time.monotonic()
        self.loader.close()
        with atomic(folder / "labels.npy") as temporary:
            np.save(temporary, self.labels)
        write_text(folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in self.history))
        checkpoint.save(folder / "checkpoint.safetensors", self.network, recipe, {"data": self.index.fingerprint})
        state.remove()

    def predict(self) -> NDArray[np.int32]:
        """Argmax of a centre-crop pass in eval mode over all images, int32 [N]."""
        return self._centre_pass(lambda x: self.network(x).argmax(1)).astype(np.int32)

    def embeddings(self) -> NDArray[np.float32]:
        """Features before the top layer of a centre-crop pass in eval mode, float32 [N, D]."""
        return self._centre_pass(lambda x: self.network.embed(x).float())

    @torch.no_grad()
    def _centre_pass(self, function: Any) -> NDArray[Any]:
        self.network.eval()
        found = []
        order = np.arange(len(self.index))
        for images, _ in self.loader.batches(order, self.recipe.batch_size, "center_crop", self.recipe.seed, 0):
            x = normalize(images.to(self.device, non_blocking=True)).contiguous(memory_format=torch.channels_last)
            with autocast(self.precision, self.device):
                found.append(function(x).cpu().numpy())
        return np.concatenate(found)

    def _epoch(self, epoch: int, order: NDArray[np.int64], targets: labels.Labels, observe: Any) -> float:
        """One pass over `order`; mean loss."""
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, epoch)
        self.network.train()
        size = recipe.batch_size
        if len(order) % size == 1:
            order = order[:-1]  # batch norm cannot normalise a single image
        total, started = 0.0, time.monotonic()
        batches = self.loader.batches(order, size, "resized_crop", recipe.seed, epoch)
        for step, (images, positions) in enumerate(_progress(batches, len(order), size, epoch, recipe.epochs)):
            numbers = runtime.uniforms(recipe.seed, epoch, positions.numpy(), UNIFORMS)
            x = augment(images.to(self.device, non_blocking=True), numbers, recipe.augmentation)
            x = x.contiguous(memory_format=torch.channels_last)
            with autocast(self.precision, self.device):
                logits = self.network(x)
            loss = cross_entropy(logits, torch.from_numpy(targets[positions.numpy()]).to(self.device))
            value = float(loss.detach())
            if not math.isfinite(value):
                raise InputError(
                    f"epoch {epoch}, step {step}: the loss is {value}; lower lr in the recipe "
                    "(the last good state is kept, no checkpoint is written)"
                )
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            observe(self, positions, logits.detach())
            total += value * len(positions)
        self.rate = len(order) / (time.monotonic() - started)
        return total / len(order)

    def _record(self, epoch: int, loss: float, before: labels.Labels, empty: int, covered: float) -> None:
        """Append to the history (no clock in it: the same seed gives the same bytes) and tell the reader."""
        line = {
            "epoch": epoch,
            "loss": round(loss, 6),
            "lr": round(learning_rate(self.recipe, epoch), 8),
            "nmi_previous": round(labels.nmi(self.labels, before), 6),
            "nmi_annotated": round(labels.nmi(self.labels, self.index.labels), 6),
            "empty_classes": empty,
            "coverage": round(covered, 6),
        }
        self.history.append(line)
        shown = "  ".join(f"{key} {value:g}" for key, value in line.items() if key != "epoch")
        print(f"epoch {epoch + 1}/{self.recipe.epochs}  {shown}  {self.rate:.0f} images/s", flush=True)


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Learning rate of an epoch, 0 <= epoch < recipe.epochs (PROTOCOL section 2: stepped per epoch, to 0)."""
    done = epoch / recipe.epochs
    factor = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}[recipe.schedule]
    return recipe.lr * factor


def _progress(batches: Any, images: int, size: int, epoch: int, epochs: int) -> Any:
    """A bar on a terminal; in a log the line an epoch is enough."""
    with contextlib.suppress(AttributeError):
        if sys.stderr.isatty():
            return tqdm(batches, f"epoch {epoch + 1}/{epochs}", total=math.ceil(images / size), leave=False)
    return batches
