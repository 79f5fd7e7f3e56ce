"""Resume an mmengine training: random draws that depend only on seed, pass and image, and our own saved state.

mmengine resumes from pickles, which may run code; our states are tensors and JSON (uic_core.run.saved_state). Between
two optimiser steps a state consists of weights, momenta, schedule and iteration, because all randomness derives from
the seed and the iteration or the draw.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import DATA_SAMPLERS
from torch import Tensor, nn
from torch.utils.data import Sampler

from uic_core.errors import InputError
from uic_core.run import randomness
from uic_core.run.parallel import Ranks
from uic_core.run.saved_state import Saver, State, demand_same
from uic_core.run.signals import Signals
from uic_core.run.state_tensors import demand_finite, momenta, part, restore_momenta


@DATA_SAMPLERS.register_module()
class Draws(Sampler[int]):
    """Endless shuffled passes over N images. A draw is pass · N + image; each rank yields every world-th draw.

    The data set derives the image and its random numbers from the draw (see SeededDraws).
    """

    def __init__(self, dataset: Sized, seed: int) -> None:
        self._size, self._seed = len(dataset), seed
        self._first, self._step = get_dist_info()

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._draws(), self._first, None, self._step)

    def __len__(self) -> int:
        return self._size

    def skip(self, samples: int) -> None:
        """Skip this many draws of this rank; mmengine's training loop calls it when it resumes."""
        self._first += samples * self._step

    def _draws(self) -> Iterator[int]:
        for number in itertools.count():
            order = np.random.default_rng([self._seed, number]).permutation(self._size)
            yield from (number * self._size + order).tolist()


class SeededDraws:
    """Mixin for an mmengine data set: item `pass · N + image` is that image, flipped and scaled by (seed, draw).

    The result does not depend on the number of workers or on restarts.
    """

    def __init__(self, *args: Any, seed: int = 0, **others: Any) -> None:
        self.seed = seed
        super().__init__(*args, **others)

    def __getitem__(self, draw: int) -> Any:
        numbers = np.random.SeedSequence([self.seed, draw]).generate_state(2)
        random.seed(int(numbers[0]))
        np.random.seed(int(numbers[1]))
        return super().__getitem__(draw % len(self))  # type: ignore[misc, arg-type]


class Resume(Hook):
    """Resumes from the state in the runner's folder; saves one every few minutes and when the job gets a signal to end.

    Args:
        state: the state's files and the identity it must match.
        accumulate: iterations per optimiser step; states are saved only after a step.
        every: seconds between states.
        device: for the process group's tensors.

    Attributes:
        loss: mean over the last twentieth of the training, set at its end.
    """

    def __init__(
        self,
        state: State,
        ranks: Ranks,
        signals: Signals,
        seed: int,
        accumulate: int,
        every: float,
        device: torch.device,
    ) -> None:
        self.loss = 0.0
        self._state, self._ranks, self._seed, self._accumulate = state, ranks, seed, accumulate
        self._saver, self._device = Saver(state, ranks, signals, every), device

    def before_train(self, runner: Any) -> None:
        """Restore model, optimiser and schedule from the newest state, if there is one.

        A segmentation's iterations are passes of one process, of which two processes make half as many. So a state
        counts images over all processes.

        Raises:
            InputError: the state has other settings, weights or data; there are states, but none is readable; or its
                images are no whole number of this group's iterations, or more than the training has.
        """
        found = self._state.load(runner.logger.info)
        demand_same(self._state, found, self._ranks, self._device)
        if found is None:
            return
        path, content, tensors = found
        iteration = self._iteration(runner, path, content)
        unwrapped(runner).load_state_dict(part(tensors, "model."))
        restore_momenta(runner.optim_wrapper.optimizer, _parameters(runner), tensors)
        for group, lr in zip(runner.optim_wrapper.optimizer.param_groups, content["lr"], strict=True):
            group["lr"] = lr
        for scheduler in runner.param_schedulers:  # stepped once an iteration
            vars(scheduler).update(last_step=iteration, _global_step=iteration)
        runner.train_loop._iter = runner.optim_wrapper._inner_count = iteration
        self.loss = content["loss"]
        changed = self._ranks.changed(content["processes"])
        runner.logger.info(f"{path}: going on from iteration {iteration + 1}{changed}")

    def _iteration(self, runner: Any, path: Path, content: dict[str, Any]) -> int:
        """The iterations of this group of processes that make the images of a state."""
        if "images" not in content:
            raise InputError(
                f"{path}: an earlier version saved it, without the number of processes; remove "
                f"{self._state.family(path)} to start afresh"
            )
        images, iterations = self._images(runner), int(runner.train_loop.max_iters)
        steps, rest = divmod(int(content["images"]), images * self._accumulate)
        iteration = steps * self._accumulate
        if rest or iteration > iterations:
            raise InputError(
                f"{path}: {content['processes']} process(es) trained on {content['images']:,} images; "
                f"{self._ranks.world} process(es) take {images * self._accumulate:,} images a step and "
                f"{images * iterations:,} in all; take {content['processes']} process(es)"
            )
        return iteration

    def _images(self, runner: Any) -> int:
        """Images of an iteration, over all processes."""
        return int(runner.train_dataloader.batch_size) * self._ranks.world

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Seed RoI sampling and dropout from the iteration, so that they do not depend on earlier iterations."""
        randomness.seed_torch(self._seed, runner.iter, self._ranks.rank)

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Save if a save is due or the job got a signal to end.

        Raises:
            Interrupted: the job got a signal to end; the state is saved.
        """
        done = runner.iter + 1
        if done % self._accumulate == 0 and done < runner.max_iters:  # then `after_train` saves, with the loss
            requests = self._saver.exchanged(self._saver.every, self._device)
            self._saver.stop_or_save(requests, f"iteration {done + 1}", lambda: self._save(runner, done))

    def after_train(self, runner: Any) -> None:
        """Save, so that a job killed during its test does not train again."""
        losses = runner.message_hub.log_scalars.get("train/loss")
        if losses is None:  # the training had ended before, and its state is there
            return
        self.loss = float(losses.mean(max(1, runner.max_iters // 20)))
        if not self._ranks.rank:
            self._save(runner, runner.iter)

    def before_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Stop on a signal. A test has no state: the next attempt restarts it from the state saved after training.

        Raises:
            Interrupted: the job got a signal to end.
        """
        stop, _ = self._saver.exchanged(self._saver.every, self._device)
        self._saver.stop(stop, "the test")

    def _save(self, runner: Any, iteration: int) -> None:
        """Save a state. Raises InputError, and keeps the existing states, if a weight or momentum is not finite."""
        tensors: dict[str, Tensor] = {f"model.{name}": each for name, each in unwrapped(runner).state_dict().items()}
        tensors |= momenta(runner.optim_wrapper.optimizer, _parameters(runner))
        demand_finite(tensors, f"before iteration {iteration + 1}", "lower its lr in the config")
        content = {
            "images": iteration * self._images(runner),
            "processes": self._ranks.world,
            "loss": self.loss,
            "lr": [group["lr"] for group in runner.optim_wrapper.optimizer.param_groups],
        }
        self._state.save(tensors, content)


def state_of(work_dir: Path, identity: dict[str, Any]) -> State:
    """Create the State of a task in its folder; make the folder if it is missing."""
    work_dir.mkdir(parents=True, exist_ok=True)
    return State(work_dir, identity)


def unwrapped(runner: Any) -> Any:
    """The model without its wrapper for several processes."""
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _parameters(runner: Any) -> list[nn.Parameter]:
    return [each for group in runner.optim_wrapper.optimizer.param_groups for each in group["params"]]
