"""One training loop for every method: images in, checkpoint, labels and history out."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
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

LINE_SECONDS = 60

Batch = tuple[Tensor, Tensor]  # uint8 [B, 3, S, S], int64 positions [B]
Observe = Callable[["Trainer", Tensor, Tensor], None]


class Trainer:
    """A run in progress: the network, its labels and how far it has come.

    Attributes:
        index: the images trained on (`recipe.images` of the whole index).
        labels: int32 [N], the only thing kept for each image.
        optimizer: one SGD over all weights.
    """

    def __init__(
        self, recipe: Recipe, index: Index, network: Network, start: str, save_every: float, workers: int
    ) -> None:
        """Set up a run.

        Args:
            start: what tells the weights in `network` from others a run of this recipe might start from.
            save_every: seconds between saved states; 0 saves after each epoch.
            workers: decoding processes; 0 decodes in this one.

        Raises:
            InputError: the recipe does not fit the index.
        """
        self.recipe = recipe
        self.index = index.subset(recipe.images, recipe.seed)
        _check(recipe, self.index)
        self.key = f"{recipe.hash()}-{self.index.fingerprint}-{start}"
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
        self.loader = Loader(self.index, recipe.image_size, recipe.resize, workers)
        self.save_every = save_every
        self.labels = np.zeros(0, np.int32)
        self.history: list[dict[str, Any]] = []

    def run(self, folder: Path) -> None:
        """Train to the end of the recipe and write labels.npy, history.jsonl and checkpoint.safetensors.

        A state left by an interrupted run of the same recipe on the same images is gone on from.

        Raises:
            InputError: an unreadable image; a loss that is not finite, naming the step; a full disk.
        """
        state = State(folder / "state.safetensors", self.key)
        with contextlib.closing(self.loader):
            self._train(state)
        with atomic(folder / "labels.npy") as temporary:
            np.save(temporary, self.labels)
        write_text(folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in self.history))
        checkpoint.save(folder / "checkpoint.safetensors", self.network, self.recipe, {"data": self.index.fingerprint})
        state.remove()

    def _train(self, state: State) -> None:
        recipe, chosen = self.recipe, method(self)
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

    def predict(self) -> NDArray[np.int32]:
        """Argmax of a centre-crop pass in eval mode over all images, int32 [N]."""
        return self._centre_pass(lambda x: self.network(x).argmax(1)).astype(np.int32)

    def embeddings(self) -> NDArray[np.float32]:
        """Features before the top layer of a centre-crop pass in eval mode, float32 [N, D]."""
        return self._centre_pass(lambda x: self.network.embed(x).float())

    @torch.no_grad()
    def _centre_pass(self, function: Callable[[Tensor], Tensor]) -> NDArray[Any]:
        self.network.eval()
        found: NDArray[Any] | None = None
        order = np.arange(len(self.index))
        for images, positions in self.loader.batches(order, self.recipe.batch_size, "center_crop", self.recipe.seed, 0):
            x = normalize(images.to(self.device, non_blocking=True)).contiguous(memory_format=torch.channels_last)
            with autocast(self.precision, self.device):
                values = function(x).cpu().numpy()
            if found is None:  # one array from the start: DeepCluster's features are 21 GB on ImageNet
                found = np.empty((len(order), *values.shape[1:]), values.dtype)
            found[positions.numpy()] = values
        assert found is not None, "an index holds at least one image"
        return found

    def _epoch(self, epoch: int, order: NDArray[np.int64], targets: labels.Labels, observe: Observe) -> float:
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


def _check(recipe: Recipe, index: Index) -> None:
    """Refuse a recipe whose classes the images cannot fill."""
    images = len(index)
    if recipe.method == "supervised" and len(index.classes) != recipe.classes:
        raise InputError(f"classes: {recipe.classes}, but {index.name} has {len(index.classes)} annotated classes")
    if recipe.classes > images:
        raise InputError(f"classes: {recipe.classes} for the {images} images of {index.name}; lower classes")


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Learning rate of an epoch, 0 <= epoch < recipe.epochs (PROTOCOL section 2: stepped per epoch, to 0)."""
    done = epoch / recipe.epochs
    factor = {"linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done)), "constant": 1.0}[recipe.schedule]
    return recipe.lr * factor


def _progress(batches: Iterable[Batch], images: int, size: int, epoch: int, epochs: int) -> Iterator[Batch]:
    """Pass batches on, with a bar on a terminal; in a log, with a line a minute in epochs that take longer."""
    title, steps = f"epoch {epoch + 1}/{epochs}", math.ceil(images / size)
    if sys.stderr is not None and sys.stderr.isatty():
        yield from tqdm(batches, title, total=steps, leave=False)
        return
    said = time.monotonic()
    for step, batch in enumerate(batches):
        if time.monotonic() - said >= LINE_SECONDS:
            print(f"{title}  step {step}/{steps}", flush=True)
            said = time.monotonic()
        yield batch
