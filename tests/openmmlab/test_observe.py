"""Sample predictions that a test keeps."""

from __future__ import annotations

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from uic_core.openmmlab.observe import KeepSamples


def test_kept_samples_leave_the_gpu_before_they_are_gathered() -> None:
    with FakeTensorMode():
        mask = {"data": torch.zeros(1, 4, 4, dtype=torch.int64, device="cuda")}
        metric = KeepSamples(["a"])
        metric.process(None, [{"img_path": f"{image}.jpg", "pred_sem_seg": mask} for image in "ab"])
    (kept, other) = metric.results
    assert other is None
    assert kept[1]["img_path"] == "a.jpg"
    assert kept[1]["pred_sem_seg"]["data"].device.type == "cpu"
