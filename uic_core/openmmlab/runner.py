"""What detection and segmentation share: an mmengine config's training part, and running it once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.utils import import_modules_from_strings

from uic_core import config
from uic_core.runtime import seed_everything


def training(
    protocol: config.Detection | config.Segmentation, work_dir: Path, accumulate: int, biases: dict[str, Any]
) -> dict[str, Any]:
    """The part of an mmengine config that both tasks share: SGD, steps, logs, one checkpoint at the end.

    Args:
        accumulate: forward-backward passes a step.
        biases: mmengine's `paramwise_cfg`, which biases learn faster and do not decay.
    """
    rare = max(1, protocol.iterations // 20)
    return {
        "work_dir": str(work_dir),
        "launcher": "none",
        "log_level": "INFO",
        "load_from": None,
        "resume": False,
        "train_cfg": {"type": "IterBasedTrainLoop", "max_iters": protocol.iterations},
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
        "param_scheduler": [
            {"type": "MultiStepLR", "by_epoch": False, "milestones": list(protocol.lr_steps), "gamma": 0.1}
        ],
        "default_hooks": {
            "timer": {"type": "IterTimerHook"},
            "logger": {"type": "LoggerHook", "interval": rare, "log_metric_by_epoch": False},
            "param_scheduler": {"type": "ParamSchedulerHook"},
            "checkpoint": {
                "type": "CheckpointHook",
                "by_epoch": False,
                "interval": protocol.iterations,
                "max_keep_ckpts": 1,
                "save_optimizer": False,
                "save_param_scheduler": False,
            },
            "sampler_seed": {"type": "DistSamplerSeedHook"},
        },
        "custom_hooks": [{"type": "StopIfNotFinite", "interval": 10}],
        "log_processor": {"type": "LogProcessor", "by_epoch": False, "window_size": rare},
        "visualizer": {"type": "Visualizer", "vis_backends": [{"type": "LocalVisBackend"}]},
        "env_cfg": {
            "cudnn_benchmark": False,
            "mp_cfg": {"mp_start_method": "fork", "opencv_num_threads": 0},
            "dist_cfg": {"backend": "nccl"},
        },
        "randomness": {"seed": protocol.seed},
    }


def dataloader(dataset: dict[str, Any], batch_size: int, workers: int, *, train: bool) -> dict[str, Any]:
    """Config of a data loader: an endless shuffled stream to train on, or the list once, in order."""
    sampler = {"type": "InfiniteSampler", "shuffle": True} if train else {"type": "DefaultSampler", "shuffle": False}
    return {
        "batch_size": batch_size,
        "num_workers": workers,
        "persistent_workers": workers > 0,
        "sampler": sampler,
        "dataset": dataset,
    }


def train_and_test(content: dict[str, Any]) -> dict[str, float]:
    """Train, then test; the same config gives the same numbers on one CPU (RoI pooling adds in any order on a GPU).

    Logs, the config and the last weights stay in `work_dir`, as mmengine users expect.

    Returns:
        The test metrics by their bare names, without the evaluator's prefix.
    """
    cfg = Config(content)
    import_modules_from_strings(**cfg.custom_imports)
    seed_everything(cfg.randomness.seed)
    runner = Runner.from_cfg(cfg)
    assert runner.test_loop  # builds the test data now: what is wrong with it must not come out after the training
    runner.train()
    return {name: float(value) for name, value in runner.test().items()}
