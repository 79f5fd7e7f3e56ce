"""Operators where there is a GPU: torchvision's pooling beside mmcv's, which only a CUDA build of mmcv has."""

from __future__ import annotations

import mmcv.ops
import pytest
import torch
from torch import Tensor

from uic_core.openmmlab import fast_rcnn

pytestmark = pytest.mark.gpu


@pytest.fixture
def kernels() -> None:
    """Skip where mmcv was built for CPUs. (Its own `get_compiling_cuda_version` crashes in a CUDA build.)"""
    try:
        mmcv.ops.nms(torch.tensor([[0.0, 0, 9, 9]], device="cuda"), torch.ones(1, device="cuda"), 0.5)
    except RuntimeError as error:
        if "implementation for device" not in str(error):
            raise
        pytest.skip("needs mmcv's CUDA build")


def boxes(count: int, side: int) -> Tensor:
    """[n, 5]: image 0 or 1, then corners on whole pixels below `side`."""
    torch.manual_seed(0)
    low = torch.randint(0, side // 2, (count, 2))
    high = low + torch.randint(0, side // 2, (count, 2))
    return torch.cat([torch.randint(0, 2, (count, 1)), low, high], 1).float()


@pytest.mark.usefixtures("kernels")
def test_pooling_equals_mmcvs() -> None:
    # A cell a pixel: at a stride of 16 torchvision rounds a box to cells, as Fast R-CNN's code does, mmcv does not.
    features = torch.randn(2, 8, 40, 40, device="cuda", requires_grad=True)
    other = features.detach().clone().requires_grad_()
    rois = boxes(200, 40).cuda()
    extractor = fast_rcnn.MaxRoIExtractor(roi_layer={"output_size": 6}, out_channels=8, featmap_strides=[1])
    ours = extractor((features,), rois)
    theirs = mmcv.ops.RoIPool((6, 6), 1.0)(other, rois)
    assert torch.equal(ours, theirs)
    weights = torch.randn_like(ours)
    (ours * weights).sum().backward()
    (theirs * weights).sum().backward()
    torch.testing.assert_close(features.grad, other.grad)


def test_pooling_at_the_stride_equals_that_of_a_cpu() -> None:
    features, rois = torch.randn(2, 8, 40, 40), boxes(200, 640)
    extractor = fast_rcnn.MaxRoIExtractor(roi_layer={"output_size": 6}, out_channels=8, featmap_strides=[16])
    assert torch.equal(extractor((features.cuda(),), rois.cuda()).cpu(), extractor((features,), rois))


@pytest.mark.usefixtures("kernels")
def test_suppression_on_the_cpu_keeps_what_mmcvs_kernel_keeps() -> None:
    found, scores = boxes(500, 200)[:, 1:] + torch.tensor([0, 0, 1, 1]), torch.rand(500)
    kept = mmcv.ops.nms(found, scores, 0.3)[1]
    assert 10 < len(kept) < 500
    assert torch.equal(mmcv.ops.nms(found.cuda(), scores.cuda(), 0.3)[1].cpu(), kept)
