"""Observers of training and test: the time spent waiting for data, and sample predictions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.evaluator.metric import _to_cpu
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, METRICS

_KEPT = ("img_path", "xml_path", "pred_instances", "pred_sem_seg")


@HOOKS.register_module()
class DataTime(Hook):  # type: ignore[misc]
    """Logs the share of training time spent waiting for images, at the end; the first step is not counted."""

    priority = "VERY_LOW"

    def before_train(self, runner: Any) -> None:
        """Reset the times."""
        self._waited, self._begun, self._ended = 0.0, 0.0, 0.0

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        """Add the time since the previous step: the batch has arrived."""
        if self._begun:
            self._waited += time.perf_counter() - self._ended

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Record the time: the loop now requests the next batch."""
        self._ended = time.perf_counter()
        self._begun = self._begun or self._ended  # workers start in the first step

    def after_train(self, runner: Any) -> None:
        """Log the share if there were at least two steps."""
        if self._ended > self._begun:
            share = 100 * self._waited / (self._ended - self._begun)
            runner.logger.info(f"waiting for data: {share:.1f} % of the training's time")


@METRICS.register_module()
class KeepSamples(BaseMetric):  # type: ignore[misc]
    """Keeps the predictions for a few images: `kept`, image id → data sample, on rank 0 after the test.

    Args:
        ids: ids of the images, which are their files' names without the suffix.
    """

    def __init__(self, ids: Sequence[str], **others: Any) -> None:
        super().__init__(**others)
        self.ids = frozenset(ids)
        self.kept: dict[str, dict[str, Any]] = {}

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Store an entry for every image, None if not kept: mmengine's gathering drops entries that a process lacks.

        It pickles them, and a tensor would come back on the GPU of the process that made it: they go to the CPU first.
        """
        for sample in data_samples:
            image = Path(sample["img_path"]).stem
            kept = None
            if image in self.ids:
                kept = image, {name: _to_cpu(sample[name]) for name in _KEPT if name in sample}
            self.results.append(kept)

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Set `kept`; return no metrics."""
        self.kept = dict(filter(None, results))
        return {}
