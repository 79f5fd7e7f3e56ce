"""One training loop for every method: images in, checkpoint, labels and history out."""

from __future__ import annotations

import contextlib
import functools
import json
import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from uic_core.data import partition
from uic_core.data.augment import UNIFORMS, augment, normalize
from uic_core.data.index import Index
from uic_core.data.loader import Loader
from uic_core.errors import InputError
from uic_core.files import atomic, write_text
from uic_core.models import Network, checkpoint
from uic_core.pretrain import labels
from uic_core.pretrain.methods import cross_entropy, method
from uic_core.pretrain.order import Order, merge_labels
from uic_core.pretrain.progress import Progress
from uic_core.pretrain.state import Position, restore, save
from uic_core.recipe import Recipe
from uic_core.run import devices, randomness, saved_state
from uic_core.run.parallel import Ranks
from uic_core.run.precision import autocast, prepare, resolve
from uic_core.run.saved_state import Saver, State
from uic_core.run.signals import Signals

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_BATCHES = 64  # of the order, drawn at a time


class Trainer:
    """A run in progress: the network, its labels and how far it has come.

    Attributes:
        index: the images trained on (`recipe.images` of the whole index).
        labels: int32 [N], the only thing kept for each image but for its place in `groups`.
        groups: the images by their labels, or by the targets of the epoch under way.
        agreement: NMI of the labels with those before them.
        optimizer: one SGD over all weights; DeepCluster's top layer, new each epoch, has no momentum.
        history: a line for each finished epoch.
        position: what comes next.
        rate: images a second of this process's part, in the epoch under way.
        folder: of the run, once it runs.
    """

    def __init__(
        self, recipe: Recipe, index: Index, network: Network, start: str, ranks: Ranks, workers: int,
        save_every: float, threads: int = 1,
    ) -> None:  # fmt: skip
        """Set up a run.

        Args:
            start: what tells the weights in `network` from others a run of this recipe might start from.
            workers: decoding processes; 0 decodes in this one.
            save_every: seconds between states within an epoch.
            threads: for what rank 0 does while all others wait.

        Raises:
            InputError: the recipe does not fit the index.
        """
        self.recipe, self.ranks, self.threads = recipe, ranks, threads
        self.index = index.subset(recipe.images, recipe.seed)
        _check(recipe, self.index)
        if recipe.epochs:  # now, not after a pass over all images
            ranks.bounds(len(self.index), recipe.batch_size)
        self.identity = {"recipe": recipe.model_dump(), "hash": recipe.hash(), "data": self.index.fingerprint}
        self.identity["start"] = start
        self.device = devices.current()
        self.precision = resolve(recipe.precision, self.device)
        self.precision_name = str(self.precision).removeprefix("torch.")
        self.method = method(recipe.method, recipe.label_view)
        self.network = network.to(self.device)
        prepare(self.network, self.precision, self.device)
        top = list(self.network.top.parameters())
        body = [parameter for name, parameter in self.network.named_parameters() if not name.startswith("top.")]
        groups: list[dict[str, Any]] = [{"params": body}, {"params": top}]
        if not self.method.top_momentum:
            groups[1]["momentum"] = 0.0
        self.optimizer = torch.optim.SGD(
            groups,
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        part = -(-recipe.batch_size // ranks.world)
        self.loader = Loader(self.index, recipe.image_size, recipe.resize, part, workers, self.device)
        self.save_every = save_every
        self.position = Position()
        self._saver: Saver | None = None
        self.labels: partition.Labels = np.zeros(0, np.int32)
        self.groups = partition.group(self.labels, recipe.classes)
        self.agreement = 1.0
        self.history: list[dict[str, Any]] = []
        self.rate = 0.0
        self.folder = Path()
        self._writer: SummaryWriter | None = None

    def run(self, folder: Path) -> None:
        """Train to the end of the recipe and write labels.npy, history.jsonl and checkpoint.safetensors.

        A state left by an interrupted run of the same recipe on the same images is gone on from.

        Raises:
            InputError: an unreadable image; a loss that is not finite, naming the step; a full disk; a state of
                another run; another process has taken this run over.
            Interrupted: SIGTERM or SIGUSR1 came, and the state is saved.
        """
        state = State(folder, self.identity, self.recipe.hash(), alone=True)
        self.folder = folder
        with state.claimed(self.ranks), contextlib.closing(self.loader), Signals() as signals:
            self._train(Saver(state, self.ranks, signals, self.save_every))
            if not self.ranks.rank:
                self._write_history()
                with atomic(folder / "labels.npy") as temporary:
                    np.save(temporary, self.labels)
                extra = {"data": self.index.fingerprint, "precision": self.precision_name}
                checkpoint.save(folder / "checkpoint.safetensors", self.network, self.recipe, extra)
                state.remove()
        if self._writer is not None:
            self._writer.close()
        self.ranks.barrier()

    def relabel(self, found: partition.Labels, epoch: int) -> None:
        """Take other labels: their agreement with the present ones, and their groups for `epoch`."""
        if len(self.groups.members):
            self.agreement = partition.nmi(self.groups, found)
        self.labels = found
        del self.groups  # before the new ones are made: eight bytes an image, not twelve
        self.groups = partition.group(found, self.recipe.classes, np.random.default_rng([self.recipe.seed, 1, epoch]))

    def pause(self) -> None:
        """Between two parts of a method's preparation of an epoch, on all ranks: end here if one was told to.

        The state is that before the preparation, which must have changed nothing of the run yet.

        Raises:
            Interrupted: the state is saved.
        """
        assert self._saver is not None, "no run is in progress"
        stop, _ = self._saver.agreed(math.inf, self.device)
        self._obey([stop, 0.0])

    def say(self, line: str) -> None:
        """Print a line, once for all ranks."""
        if not self.ranks.rank:
            print(line, flush=True)

    def predict(self) -> partition.Labels:
        """Argmax of a centre-crop pass in eval mode and float32 over all images, int32 [N], the same on every rank."""
        found = self._centre_pass(lambda x: self.network(x).argmax(1).to(torch.int32), everywhere=True)
        assert found is not None
        return found

    def embeddings(self) -> NDArray[np.float32] | None:
        """Features before the top layer of a centre-crop pass in eval mode, float32 [N, D]; on rank 0 alone."""
        return self._centre_pass(self.network.embed, everywhere=False)

    @torch.no_grad()
    def _centre_pass(self, function: Callable[[Tensor], Tensor], *, everywhere: bool) -> NDArray[Any] | None:
        # In float32 whatever the training's precision, as DeepCluster's code: in bf16 an image near the border of two
        # classes would fall into the other.
        self.ranks.align(self.network)
        self.network.eval()
        images, size = len(self.index), self.recipe.batch_size
        parts = [
            np.array_split(np.arange(start, min(start + size, images)), self.ranks.world)
            for start in range(0, images, size)
        ]
        # A rank without an image in the last batch passes one for nothing.
        own = (part[self.ranks.rank] if len(part[self.ranks.rank]) else part[0][:1] for part in parts)
        found: NDArray[Any] | None = None
        for part, (crops, _) in zip(parts, self.loader.stream(own, "center_crop", self.recipe.seed, 0), strict=True):
            self.pause()
            x = normalize(crops).contiguous(memory_format=torch.channels_last)
            rows = function(x)[: len(part[self.ranks.rank])]
            values = self.ranks.gather(rows, [len(positions) for positions in part])
            if not everywhere and self.ranks.rank:
                continue
            if found is None:  # one array from the start: DeepCluster's features are 21 GB on ImageNet
                found = np.empty((images, *values.shape[1:]), values.cpu().numpy().dtype)
            found[part[0][0] : part[0][0] + len(values)] = values.cpu().numpy()
        return found

    def _train(self, saver: Saver) -> None:
        recipe, self._saver = self.recipe, saver
        self.position = restore(saver.state, self)
        if not len(self.labels):
            self.relabel(self.method.initial(self), 0)
        self.say(
            f"{recipe.method}, {recipe.arch}: {len(self.index)} images, {self.ranks.world} process(es) on "
            f"{self.device.type}, {self.precision_name}"
        )
        network = self.ranks.wrap(self.network) if recipe.epochs else self.network
        for epoch in range(self.position.epoch, recipe.epochs):
            if not self.position.step:
                self.position.empty = self.method.prepare(self, epoch)
            order = self.method.order(self, epoch)
            self._epoch(network, order, saver)
            covered = order.coverage()
            del order  # and with it the old groups
            if self.method.learns_labels:
                self.relabel(self.labels, epoch + 1)
            self._record(covered)
            self.position = Position(epoch + 1)
            if epoch + 1 < recipe.epochs:
                self._obey(saver.agreed(saved_state.EPOCH_SECONDS, self.device))

    def _obey(self, wishes: list[float]) -> None:
        assert self._saver is not None, "no run is in progress"
        self._saver.obey(wishes, self.position, functools.partial(save, self._saver.state, self))

    def _epoch(self, network: nn.Module, order: Order, saver: Saver) -> None:
        """The epoch's steps from `position` on. Every step's numbers are read while the next one runs."""
        recipe, position, rank = self.recipe, self.position, self.ranks.rank
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, position.epoch)
        network.train()
        bounds = self.ranks.bounds(len(order), recipe.batch_size)
        targets: deque[NDArray[np.int32]] = deque()

        def shares() -> Iterator[NDArray[np.int64]]:
            for start in range(position.step, len(bounds), _BATCHES):
                block = bounds[start : start + _BATCHES]
                drawn, classes = order.draw(block[0][0], block[-1][1])
                for first, last in block:
                    own = self.ranks.share(first, last, block[0][0])
                    targets.append(classes[own])
                    yield drawn[own]

        stream = self.loader.stream(shares(), "resized_crop", recipe.seed, position.epoch)
        progress = Progress(self, len(bounds))
        waiting: _Step | None = None
        for step, (crops, draws) in enumerate(stream, position.step):
            # All randomness of a step starts here, so a resumed run draws what an undisturbed one would.
            seeds = np.random.SeedSequence([recipe.seed, 3, position.epoch, step, rank])
            torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0] >> 1))
            numbers = randomness.uniforms(recipe.seed, position.epoch, draws, UNIFORMS)
            x = augment(crops, numbers, recipe.augmentation)
            x = x.contiguous(memory_format=torch.channels_last)
            with autocast(self.precision, self.device):
                logits = network(x)
            target = devices.onto(self.device, targets.popleft())
            loss = cross_entropy(logits, target)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            found = logits.detach().argmax(1).to(torch.int32) if self.method.learns_labels else None
            ended, waiting = waiting, self._left(step, draws, loss.detach().float(), found)
            if ended is not None:
                obeyed = self._settle(ended, bounds, progress)
                if any(obeyed):
                    self._settle(waiting, bounds, progress)
                    waiting = None
                    if position.step < len(bounds):
                        self._merge(order, bounds[: position.step])
                        self._obey(obeyed)
        if waiting is not None:
            self._settle(waiting, bounds, progress)
        progress.close()
        self._merge(order, bounds)

    def _merge(self, order: Order, bounds: list[tuple[int, int]]) -> None:
        """The labels that all ranks wrote in these batches."""
        if self.method.learns_labels:
            merge_labels(self.labels, order, bounds, self.ranks, self.device)

    def _left(self, step: int, draws: NDArray[np.int64], loss: Tensor, predictions: Tensor | None) -> _Step:
        """What a step leaves, on its way to the CPU: the loss is the mean over the ranks."""
        assert self._saver is not None
        wishes = self._saver.wishes(self._saver.every)
        # Filled on the device: copies of a few numbers from the CPU would wait for all that runs there.
        said = torch.stack([loss, *(torch.full_like(loss, wish) for wish in wishes)])
        said = self.ranks.mean(said).to("cpu", non_blocking=True)
        if predictions is not None:
            predictions = predictions.to("cpu", non_blocking=True)
        arrived = None
        if self.device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        return _Step(step, draws % len(self.index), predictions, said, arrived)

    def _settle(self, step: _Step, bounds: list[tuple[int, int]], progress: Progress) -> list[float]:
        """Take over what a step left; the ranks' wishes to stop and to save."""
        if step.arrived is not None:
            step.arrived.synchronize()  # and not the step after it, which runs
        position = self.position
        loss, *wishes = step.said.tolist()
        if not math.isfinite(loss):
            raise InputError(
                f"epoch {position.epoch + 1}, step {step.number + 1}: the loss is {loss}; lower lr in the recipe "
                "(the last good state is kept, no checkpoint is written)"
            )
        if step.predictions is not None:
            # The same forward that is being learned from: labels cost no pass of their own.
            labels.update(self.labels, step.positions, step.predictions.numpy())
        first, last = bounds[step.number]
        position.step = step.number + 1
        position.loss += loss * (last - first)
        position.images += last - first
        progress.show()
        return wishes

    def _record(self, covered: float) -> None:
        """Append to the history (no clock in it: the same seed gives the same bytes) and tell the reader."""
        position = self.position
        line = {
            "epoch": position.epoch,
            "loss": round(position.loss / position.images, 6),
            "lr": round(learning_rate(self.recipe, position.epoch), 8),
            "nmi_previous": round(self.agreement, 6),
            "nmi_annotated": round(partition.nmi(self.groups, self.index.labels), 6),
            "empty_classes": position.empty,
            "coverage": round(covered, 6),
        }
        self.history.append(line)
        if not self.ranks.rank:
            self._board(line)
            self._write_history()
        shown = "  ".join(f"{key} {value:g}" for key, value in line.items() if key != "epoch")
        self.say(f"epoch {position.epoch + 1}/{self.recipe.epochs}  {shown}  {self.rate:.0f} images/s")

    def _write_history(self) -> None:
        assert self._saver is not None
        self._saver.state.check_owner()
        write_text(self.folder / "history.jsonl", "".join(json.dumps(line) + "\n" for line in self.history))

    def _board(self, line: dict[str, Any]) -> None:
        """The line for TensorBoard; what an interrupted run wrote of the same epochs is dropped."""
        epoch = line["epoch"]
        if self._writer is None:
            # Here and not above: what trains nothing needs none.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=epoch)
        for key, value in line.items():
            self._writer.add_scalar(key, value, epoch)
        self._writer.add_scalar("images_per_second", self.rate, epoch)
        self._writer.flush()


@dataclass
class _Step:
    """What a step leaves: read one step later, so that the device does not wait.

    Attributes:
        predictions: int32 [B], or None where the method keeps its labels.
        said: loss and the ranks' wishes, means over the ranks, float [3].
        arrived: when both are there, where they come from a GPU.
    """

    number: int
    positions: NDArray[np.int64]
    predictions: Tensor | None
    said: Tensor
    arrived: torch.cuda.Event | None


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
