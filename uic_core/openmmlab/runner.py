"""What detection and segmentation share: an mmengine config's training part, and running it once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings

from uic_core import config
from uic_core.openmmlab.observe import KeepSamples
from uic_core.openmmlab.resume import Resume, state_of
from uic_core.run import devices
from uic_core.run.parallel import Ranks
from uic_core.run.randomness import seed_everything
from uic_core.run.signals import Signals


def training(
    protocol: config.Detection | config.Segmentation, work_dir: Path, accumulate: int, biases: dict[str, Any]
) -> dict[str, Any]:
    """The part of an mmengine config that both tasks share: SGD, steps, logs, one checkpoint at the end.

    Args:
        accumulate: forward-backward passes a step.
        biases: mmengine's `paramwise_cfg`, which biases learn faster and do not decay.
    """
    iterations, steps = protocol.iterations, list(protocol.lr_steps)
    if isinstance(protocol, config.Segmentation):  # so many images, of which each process takes its share
        processes = world()
        iterations, steps = iterations // processes, [step // processes for step in steps]
    every = max(1, min(50, iterations // 20))  # iterations from one line of the log to the next
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
    """Processes that torchrun started."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def dataloader(dataset: dict[str, Any], batch_size: int, workers: int, *, train: bool, seed: int = 0) -> dict[str, Any]:
    """Config of a data loader: an endless shuffled stream to train on, or the list once, in order.

    Args:
        batch_size: of one process.
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
    content: dict[str, Any], identity: dict[str, Any], ranks: Ranks, save_every: float
) -> Iterator[tuple[dict[str, float], dict[str, dict[str, Any]]]]:
    """Train, then test; the same config gives the same numbers on one CPU (RoI pooling adds in any order on a GPU).

    A training that was interrupted goes on from the state in `work_dir`, which is removed when the block ends. Logs,
    `config.py`, which mmengine's tools read, and the last weights stay there.

    Args:
        content: the config.
        identity: what a state must share to be gone on from.
        save_every: seconds between states.

    Yields:
        The test metrics by their bare names, without the evaluator's prefix, and what `KeepSamples` kept.

    Raises:
        InputError: another process has taken the work over.
        Interrupted: SIGTERM or SIGUSR1 came, and the state is saved.
    """
    # Named, so that the run's folder holds one config.py; the text is only shown where a config was read from a file.
    cfg = Config(content, cfg_text=" ", filename="config.py")
    import_modules_from_strings(**cfg.custom_imports)
    seed_everything(cfg.randomness.seed)
    name = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    state = state_of(Path(cfg.work_dir), identity, name)
    with state.claimed(ranks), Signals() as signals:
        runner = Runner.from_cfg(cfg)
        accumulate = cfg.optim_wrapper.accumulative_counts
        resume = Resume(state, ranks, signals, cfg.randomness.seed, accumulate, save_every, devices.current())
        runner.register_hook(resume, priority="LOWEST")
        assert runner.test_loop  # builds the test data now: what is wrong with it must not come out after the training
        runner.train()
        values = {name: float(value) for name, value in runner.test().items()}
        state.check_owner()
        yield values, next(each.kept for each in runner.test_evaluator.metrics if isinstance(each, KeepSamples))
        if not ranks.rank:
            state.remove()
