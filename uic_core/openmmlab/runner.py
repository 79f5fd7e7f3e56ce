"""Code shared by detection and segmentation: the training part of an mmengine config, and one training and test."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings

from uic_core import evaluations
from uic_core.data.voc import CLASSES_SEGMENTATION
from uic_core.openmmlab.observe import KeepSamples
from uic_core.openmmlab.resume import Resume, state_of
from uic_core.run import devices, metrics
from uic_core.run.parallel import Ranks
from uic_core.run.randomness import seed_everything
from uic_core.run.signals import Signals


def training(
    protocol: evaluations.Detection | evaluations.Segmentation, work_dir: Path, accumulate: int, biases: dict[str, Any]
) -> dict[str, Any]:
    """Build the part of an mmengine config that both tasks share: SGD, schedule, logs, one checkpoint at the end.

    Args:
        accumulate: forward-backward passes per optimiser step.
        biases: mmengine's `paramwise_cfg`, which selects the biases with a higher learning rate and no weight decay.
    """
    iterations, steps = protocol.iterations, list(protocol.lr_steps)
    if isinstance(protocol, evaluations.Segmentation):  # iterations count passes, which the processes share
        processes = world()
        iterations, steps = iterations // processes, [step // processes for step in steps]
    every = max(1, min(50, iterations // 20))  # iterations between log lines
    return {
        "work_dir": str(work_dir),
        "launcher": "pytorch" if world() > 1 else "none",
        # mmengine's own choice of device_ids fails on a CPU
        "model_wrapper_cfg": {
            "type": "MMDistributedDataParallel",
            "device_ids": None,
            "broadcast_buffers": False,
        },
        "log_level": "INFO",
        "load_from": None,
        "resume": False,
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": iterations},
        "test_cfg": {"type": "TestLoop"},
        "optim_wrapper": {
            "type": "OptimWrapper",
            "optimizer": {
                "type": "SGD",
                "lr": protocol.lr,
                "momentum": protocol.momentum,
                "weight_decay": protocol.weight_decay,
            },
            "paramwise_cfg": biases,
            "accumulative_counts": accumulate,
        },
        "param_scheduler": [{"type": "MultiStepLR", "by_epoch": False, "milestones": steps, "gamma": 0.1}],
        "default_hooks": {
            "timer": {"type": "IterTimerHook"},
            "logger": {"type": "LoggerHook", "interval": every, "log_metric_by_epoch": False},
            "param_scheduler": {"type": "ParamSchedulerHook"},
            "checkpoint": {
                "type": "CheckpointHook",
                "by_epoch": False,
                "interval": iterations,
                "max_keep_ckpts": 1,
                "save_optimizer": False,
                "save_param_scheduler": False,
            },
        },
        "custom_hooks": [{"type": "StopIfNotFinite", "interval": 10}, {"type": "DataTime"}],
        "log_processor": {"type": "LogProcessor", "by_epoch": False, "window_size": every},
        "visualizer": {"type": "Visualizer", "vis_backends": [{"type": "LocalVisBackend"}]},
        "env_cfg": {
            "cudnn_benchmark": False,
            "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0},
            "dist_cfg": {"backend": "nccl"},
        },
        "randomness": {"seed": protocol.seed},
    }


def world() -> int:
    """Number of processes that torchrun started; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def dataloader(dataset: dict[str, Any], batch_size: int, workers: int, *, train: bool, seed: int = 0) -> dict[str, Any]:
    """Config of a data loader: an endless shuffled stream for training, or the list once, in order.

    Args:
        batch_size: images per batch of one process.
    """
    sampler = {"type": "Draws", "seed": seed} if train else {"type": "DefaultSampler", "shuffle": False}
    return {
        "batch_size": batch_size,
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "worker_init_fn": {"type": "ignore_foreign_sigterm"},
        "sampler": sampler,
        "dataset": dataset,
    }


@contextlib.contextmanager
def train_and_test(
    content: dict[str, Any], identity: dict[str, Any], ranks: Ranks, save_every: float, tested: int
) -> Iterator[tuple[dict[str, metrics.Value], dict[str, dict[str, Any]], float]]:
    """Train, then test. On one CPU the same config gives the same numbers; on a GPU RoI pooling sums in any order.

    An interrupted training resumes from the state in `work_dir`, which is removed when the block ends. Logs, the last
    weights and `config.py`, which mmengine's tools read, stay there.

    Args:
        content: the config.
        identity: settings, weights and data that a state must match to be resumed.
        save_every: seconds between states.
        tested: number of test images.

    Yields:
        The test metrics in percent by name, without the evaluator's prefix, with a remark if the training diverged; the
        samples kept by `KeepSamples`; and the seconds of the interrupted processes that this one resumed.

    Raises:
        InputError: another process has taken over the folder.
        Interrupted: SIGTERM or SIGUSR1 arrived; the state is saved.
    """
    # The name makes mmengine write one config.py into the run's folder; the text matters only for configs from files.
    # mmengine would lay it out six times, as yapf does: a third of a small task's seconds.
    cfg = Config(content, cfg_text=" ", filename="config.py", format_python_code=False)
    import_modules_from_strings(**cfg.custom_imports)
    seed_everything(cfg.randomness.seed)
    state = state_of(Path(cfg.work_dir), identity)
    with state.claimed(ranks), Signals() as signals:
        runner = Runner.from_cfg(cfg)
        accumulate = cfg.optim_wrapper.accumulative_counts
        resume = Resume(state, ranks, signals, cfg.randomness.seed, accumulate, save_every, devices.current())
        runner.register_hook(resume, priority="LOWEST")
        assert runner.test_loop  # builds the test data now, so that errors in it appear before the training
        runner.train()
        guess = math.log(len(CLASSES_SEGMENTATION))  # the background is a class in both tasks
        remark = metrics.diverged(guess, resume.loss, guess, cfg.optim_wrapper.optimizer.lr)
        values = {
            name: metrics.Value(value=float(value), unit="%", n=tested, remark=remark)
            for name, value in runner.test().items()
        }
        if remark:
            runner.logger.warning(f"{remark}; lower its lr in the config")
        state.check_owner()
        kept = next(each.kept for each in runner.test_evaluator.metrics if isinstance(each, KeepSamples))
        yield values, kept, state.earlier_seconds
        if not ranks.rank:
            state.remove()
