"""The training loop of all methods: images -> checkpoint, labels and history."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from uic_core import checkpoint
from uic_core.data import partition
from uic_core.data.augment import SCALE, UNIFORMS
from uic_core.data.index import Index
from uic_core.data.partition import Labels
from uic_core.data.resident import open_loader
from uic_core.errors import InputError
from uic_core.methods import METHODS
from uic_core.methods.labels import update
from uic_core.methods.order import Order
from uic_core.models.network import Network
from uic_core.pretrain.label_passes import LabelPasses
from uic_core.pretrain.merge import merge_labels
from uic_core.pretrain.progress import Board, Progress, timing_labels
from uic_core.pretrain.results import RESULTS, check, remark, write_history, write_results
from uic_core.pretrain.state import RunState, restore, save
from uic_core.recipe import Training
from uic_core.run import devices, finished, metrics, randomness, saved_state, trained
from uic_core.run.parallel import Ranks
from uic_core.run.precision import autocast, prepare, resolve
from uic_core.run.saved_state import Saver, State
from uic_core.run.signals import Signals

_BATCHES = 64  # batches of the order that are drawn at a time


class Trainer:
    """A training run: the network, its labels and its progress.

    Attributes:
        index: the training images (`recipe.images` of the whole index).
        optimizer: one SGD over all weights; the top layer has no momentum if the method says so.
        run_state: labels, history and the next position.
        rate: images per second in this process's part of the last epoch.
        folder: folder of the run, set by `run`.
    """

    def __init__(
        self, recipe: Training, index: Index, network: Network, start: metrics.Origin | None, ranks: Ranks,
        workers: int, save_every: float, threads: int = 1,
    ) -> None:  # fmt: skip
        """Set up a run.

        Args:
            start: the checkpoint that the weights in `network` are of; None: they are those that the recipe draws.
            workers: number of decoding processes; 0 decodes in this one.
            save_every: seconds between states within an epoch.
            threads: CPUs for work of rank 0 while all others wait.

        Raises:
            InputError: the recipe does not fit the index.
        """
        self.recipe, self.ranks = recipe, ranks
        self.method = METHODS[recipe.method]
        self.index = index.subset(recipe.images, recipe.seed)
        check(recipe, self.index)
        ranks.bounds(len(self.index), recipe.batch_size)  # raises now, not after a pass over all images
        self.identity = {"recipe": recipe.written(), "hash": recipe.hash(), "data": self.index.fingerprint}
        self.identity["start"] = start.checkpoint[:16] if start else "fresh"
        self.start = start
        self.device = devices.current()
        self.precision = resolve(recipe.precision, self.device)
        self.precision_name = str(self.precision).removeprefix("torch.")
        self.network = network.to(self.device)
        prepare(self.network, self.precision, self.device)
        body = [parameter for name, parameter in self.network.named_parameters() if not name.startswith("top.")]
        top = list(self.network.top.parameters())
        groups: list[dict[str, Any]] = [{"params": body}, {"params": top}]
        if not self.method.top_momentum:
            groups[1]["momentum"] = 0.0
        self.optimizer = torch.optim.SGD(
            groups,
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=self.method.nesterov and recipe.momentum > 0,  # torch refuses it without momentum
            fused=True,
        )
        part = -(-recipe.batch_size // ranks.world)
        self.loader = open_loader(
            self.index, recipe.image_size, recipe.resize, part, workers, self.device,
            (recipe.crop_scale or SCALE[0], SCALE[1]),
        )  # fmt: skip
        self.inference = LabelPasses(
            recipe, self.method, self.network, self.loader, len(self.index), ranks, self.device, self._pause, self._say,
            threads,
        )  # fmt: skip
        self.save_every = save_every
        self.run_state = RunState()
        self.rate = 0.0
        self.folder = Path()
        self._buffers: dict[str, Tensor] = {}  # batch norm's statistics before a preparation
        self._begun = 0, 0, 0  # what this process has reached when it begins
        self._saver: Saver | None = None
        self._board = Board()

    def run(self, folder: Path) -> None:
        """Train to the end of the recipe and write labels.npy, history.jsonl, checkpoint.safetensors, training.json.

        Resumes from the state of an interrupted run of the same recipe on the same images.

        Raises:
            InputError: an unreadable image; a loss that is not finite (the message names the step); a full disk; a
                state of another run; another process has taken this run over.
            Interrupted: SIGTERM or SIGUSR1 came, and the state is saved.
        """
        state = State(folder, self.identity, self.recipe.hash(), alone=True)
        results = [folder / name for name in (*RESULTS, trained.NAME)]
        self.folder = self.inference.folder = folder
        with state.claimed(self.ranks), contextlib.closing(self.loader), Signals() as signals:
            self._saver = Saver(state, self.ranks, signals, self.save_every)
            if finished.put_back(results, self.identity, self.ranks, self._say, checkpoint.load):
                if not self.ranks.rank:
                    state.discard()
                return
            self._train()
            if not self.ranks.rank:
                self._write_history()
                extra = {"precision": self.precision_name}
                write_results(folder, self.recipe, self.network, self.index, self.run_state.labels, extra)
                last = self.run_state.history[-1]
                trained.write(
                    folder, RESULTS, devices.hardware(), self.ranks.world, recipe=self.recipe.hash(),
                    precision=self.precision_name, last=last,
                    remark=remark(self.recipe, self.start, last["loss"], self._say),
                    epochs=self.run_state.times, start=self.start.checkpoint if self.start else "",
                    start_stamp=self.start.stamp if self.start else (),
                )  # fmt: skip
                finished.keep(results, self.identity)
                state.remove()
        self._board.close()
        self.ranks.barrier()

    def _train(self) -> None:
        recipe, method = self.recipe, self.method
        run = self.run_state = restore(
            self._file, self.network, self.optimizer, self.ranks, self.device, self.precision_name, self._say
        )
        self._begun = self._reached
        if not len(run.labels):
            with timing_labels(run, self.inference):
                self._relabel(method.first_labels(recipe, self.index.labels, self.inference), 0)
        self._say(
            f"{recipe.method}, {recipe.arch}: {len(self.index)} images, {self.ranks.world} process(es) on "
            f"{self.device.type}, {self.precision_name}"
        )
        network = self.ranks.wrap(self.network)
        steps = len(self.ranks.bounds(len(self.index), recipe.batch_size))
        for epoch in range(run.position.epoch, recipe.epochs):
            moments = method.moments(recipe, epoch, steps)
            for first, last in pairwise(sorted({0, *moments, steps})):
                if last <= run.position.step:
                    continue
                # A state saved before a moment's step is one before its preparation, which is then made again.
                if first == run.position.step:
                    self.inference.moment = epoch * steps + first
                    with timing_labels(run, self.inference):
                        self._prepare(epoch, relabel=first in moments)
                order = method.order(recipe, epoch, run.labels, run.groups)
                self._steps(network, order, last)
                covered = order.coverage()
                del order  # frees the old groups too
            if method.learns(recipe, epoch):
                with timing_labels(run, self.inference):
                    self._relabel(run.labels, epoch + 1)
            self._record(covered)
            run.end_epoch()
            if epoch + 1 < recipe.epochs:
                self._stop_or_save(self._requests(saved_state.EPOCH_SECONDS))

    def _prepare(self, epoch: int, *, relabel: bool) -> None:
        """Set labels, groups and top layer for the steps from the position on."""
        recipe, method, run = self.recipe, self.method, self.run_state
        if relabel:
            self._buffers = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
            found = method.labels(recipe, epoch, run.labels, self.inference)
            if found is not None:
                self._relabel(found, epoch)
        run.position.empty = run.groups.empty()
        if method.fill_empty:
            method.fill_empty(run.groups, run.labels)
        if method.start_epoch and not run.position.step:
            method.start_epoch(recipe, epoch, self.network.top)

    def _steps(self, network: nn.Module, order: Order, end: int) -> None:
        """Run the epoch's steps from the position to `end`. The results of a step are read while the next one runs."""
        recipe, method, position, rank = self.recipe, self.method, self.run_state.position, self.ranks.rank
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.learning_rate(position.epoch)
        network.train()
        learns = method.learns(recipe, position.epoch)
        bounds = self.ranks.bounds(len(order), recipe.batch_size)
        targets: deque[NDArray[np.int32]] = deque()

        def shares() -> Iterator[NDArray[np.int64]]:
            for start in range(position.step, end, _BATCHES):
                block = bounds[start : min(start + _BATCHES, end)]
                drawn, classes = order.draw(block[0][0], block[-1][1])
                for first, last in block:
                    own = self.ranks.share(first, last, block[0][0])
                    targets.append(classes[own])
                    yield drawn[own]

        stream = self.loader.stream(shares(), "resized_crop", recipe.seed, position.epoch)
        progress = Progress(self.run_state, recipe.epochs, len(bounds), self.ranks, self._say)
        waiting: _Step | None = None
        for step, (crops, draws) in enumerate(stream, position.step):
            # All randomness of a step is seeded here, so a resumed run draws the same as an uninterrupted one.
            randomness.seed_torch(recipe.seed, randomness.Stream.STEP, position.epoch, step, rank)
            numbers = randomness.uniforms(recipe.seed, position.epoch, draws, UNIFORMS)
            x = method.views(recipe, crops, numbers)
            x = x.contiguous(memory_format=torch.channels_last)
            position.inputs += len(x) * self.ranks.world
            with autocast(self.precision, self.device):
                logits = network(x)
            target = devices.onto(self.device, targets.popleft())
            loss = method.loss(recipe, logits, target)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            self.optimizer.step()
            # Labels come from the training forward, so they cost no extra pass.
            predictions = logits.detach().argmax(1).to(torch.int32) if learns else None
            means = {"loss": loss.detach(), **method.measures(recipe, logits.detach(), target)}
            ended, waiting = waiting, self._send(step, draws, means, predictions)
            if ended is not None:
                requests = self._take(ended, bounds, progress)
                if any(requests):
                    self._take(waiting, bounds, progress)
                    waiting = None
                    if position.step < end:
                        self._merge(order, bounds[: position.step])
                        self._stop_or_save(requests)
        if waiting is not None:
            self._take(waiting, bounds, progress)
        progress.close()
        self.rate = progress.rate
        with timing_labels(self.run_state, self.inference):
            self._merge(order, bounds[:end])

    def _merge(self, order: Order, bounds: list[tuple[int, int]]) -> None:
        """Merge the labels that all ranks wrote in these batches."""
        if self.method.learns(self.recipe, self.run_state.position.epoch):
            merge_labels(self.run_state.labels, order, bounds, self.ranks, self.device)

    def _send(
        self, step: int, draws: NDArray[np.int64], means: dict[str, Tensor], predictions: Tensor | None
    ) -> _Step:  # fmt: skip
        """Start to copy a step's results to the CPU; loss, measures and requests are means over the ranks."""
        assert self._saver is not None
        requests = self._saver.requests(self._saver.every)
        loss, *measured = (value.float() for value in means.values())
        # Filled on the device: a copy of a few numbers from the CPU would wait for all running kernels.
        reduced = torch.stack([*(torch.full_like(loss, request) for request in requests), loss, *measured])
        reduced = self.ranks.mean(reduced).to("cpu", non_blocking=True)
        if predictions is not None:
            predictions = predictions.to("cpu", non_blocking=True)
        arrived = None
        if self.device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        return _Step(step, draws % len(self.index), predictions, tuple(means), reduced, arrived)

    def _take(self, step: _Step, bounds: list[tuple[int, int]], progress: Progress) -> list[float]:
        """Store a step's labels, loss and measures. Returns the ranks' requests to stop and to save."""
        if step.arrived is not None:
            step.arrived.synchronize()  # does not wait for the next step, which is running
        position = self.run_state.position
        stop, save, *values = step.reduced.tolist()
        measured = dict(zip(step.names, values, strict=True))
        loss = measured.pop("loss")
        if not math.isfinite(loss):
            raise InputError(
                f"epoch {position.epoch + 1}, step {step.number + 1}: the loss is {loss}; lower lr in the recipe "
                "(the last good state is kept, no checkpoint is written)"
            )
        if step.predictions is not None:
            update(self.run_state.labels, step.positions, step.predictions.numpy())
        first, last = bounds[step.number]
        position.step = step.number + 1
        position.loss += loss * (last - first)
        position.images += last - first
        for name, value in measured.items():
            position.measured[name] = position.measured.get(name, 0.0) + value * (last - first)
        progress.show()
        return [stop, save]

    def _record(self, covered: float) -> None:
        """Append a line to the history and print it. It has no times, so the same seed gives the same bytes."""
        run = self.run_state
        position = run.position
        means = {name: round(value, 6) for name, value in position.means().items()}
        line = {
            "epoch": position.epoch,
            "loss": means.pop("loss"),
            "lr": round(self.recipe.learning_rate(position.epoch), 8),
            "nmi_previous": round(run.agreement, 6),
            "nmi_annotated": round(partition.nmi(run.groups, self.index.labels), 6),
            "empty_classes": position.empty,
            "coverage": round(covered, 6),
            **means,
        }
        run.history.append(line)
        if not self.ranks.rank:
            self._board.write(self.folder, line, self.rate)
            self._write_history()
        shown = "  ".join(f"{key} {value:g}" for key, value in line.items() if key != "epoch")
        self._say(f"epoch {position.epoch + 1}/{self.recipe.epochs}  {shown}  {self.rate:.0f} images/s")

    def _write_history(self) -> None:
        self._file.check_owner()
        write_history(self.folder, self.run_state.history)

    @property
    def _file(self) -> State:
        assert self._saver is not None, "no run is in progress"
        return self._saver.state

    def _relabel(self, found: Labels, epoch: int) -> None:
        self.run_state.relabel(found, self.recipe.classes, self.recipe.seed, epoch)

    def _requests(self, seconds: float) -> list[float]:
        assert self._saver is not None, "no run is in progress"
        return self._saver.agreed(seconds, self.device)

    @property
    def _reached(self) -> tuple[int, int, int]:
        """Epoch, step, and number of images that have labels."""
        run = self.run_state
        return run.position.epoch, run.position.step, len(run.labels)

    def _stop_or_save(self, requests: list[float]) -> None:
        assert self._saver is not None, "no run is in progress"
        run = self.run_state
        self._saver.stop_or_save(
            requests,
            run.position,
            lambda: save(self._file, run, self.network, self.optimizer, self.ranks, self.precision_name),
        )

    def _pause(self) -> None:
        """Save and stop if a signal came. Called on all ranks while a method prepares steps.

        The saved state is the one before the preparation, which may have moved batch norm's statistics, but no more. If
        this process began with it, there is nothing to save.
        """
        assert self._saver is not None, "no run is in progress"
        stop, _ = self._requests(math.inf)
        if stop and self._reached != self._begun:
            self.network.load_state_dict(self._buffers, strict=False)
            self._stop_or_save([stop, 0.0])
        self._saver.stop(stop, f"the making of labels before {self.run_state.position}")

    def _say(self, line: str) -> None:
        """Print a line, once for all ranks."""
        if not self.ranks.rank:
            print(line, flush=True)


@dataclass
class _Step:
    """A step's results during their copy to the CPU. They are read one step later, so that the device does not wait.

    Attributes:
        predictions: int32 [B], or None if the method keeps its labels.
        names: `loss`, and the names of the method's measures.
        reduced: means over the ranks: the two requests, the loss, the measures; float [3 or more].
        arrived: on a GPU, the event after both copies; else None.
    """

    number: int
    positions: NDArray[np.int64]
    predictions: Tensor | None
    names: tuple[str, ...]
    reduced: Tensor
    arrived: torch.cuda.Event | None
