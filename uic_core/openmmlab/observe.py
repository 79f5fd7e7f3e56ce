"""What is seen of a training and a test besides losses and metrics: time spent waiting for data, sample predictions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, METRICS

_KEPT = ("img_path", "xml_path", "pred_instances", "pred_sem_seg")


@HOOKS.register_module()
class DataTime(Hook):  # type: ignore[misc]
    """Logs at the end which share of the training's time the loop waited for images; the first step is not counted."""

    priority = "VERY_LOW"

    def before_train(self, runner: Any) -> None:
        """Nothing waited for yet."""
        self._waited, self._begun, self._ended = 0.0, 0.0, 0.0

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """The batch is there."""
        if self._begun:
            self._waited += time.perf_counter() - self._ended

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """The next batch is asked for."""
        self._ended = time.perf_counter()
        self._begun = self._begun or self._ended  # workers start in the first step

    def after_train(self, runner: Any) -> None:
        """Log the share, where there were two steps."""
        if self._ended > self._begun:
            share = 100 * self._waited / (self._ended - self._begun)
            runner.logger.info(f"waiting for data: {share:.1f} % of the training's time")


@METRICS.register_module()
class KeepSamples(BaseMetric):  # type: ignore[misc]
    """Keeps what the model says of a few images: `kept`, image id → its data sample, on rank 0 after the test.

    Args:
        ids: of the images; their files bear them as names.
    """

    def __init__(self, ids: Sequence[str], **others: Any) -> None:
        super().__init__(**others)
        self.ids = frozenset(ids)
        self.kept: dict[str, dict[str, Any]] = {}

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """An entry an image, kept or not: mmengine's gathering leaves out what not every process has."""
        for sample in data_samples:
            image = Path(sample["img_path"]).stem
            few = {name: sample[name] for name in _KEPT if name in sample}
            self.results.append((image, few) if image in self.ids else None)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """No metric."""
        self.kept = dict(filter(None, results))
        return {}
