"""What several tests of frozen networks look at."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from uic_core.data.index import Index, build_folder
from uic_core.models import build
from uic_core.models.network import Network


@pytest.fixture(scope="module")
def alexnet() -> Network:
    torch.manual_seed(0)
    return build("alexnet", classes=4, image_size=64, sobel=True).eval()


@pytest.fixture(scope="module")
def indexes(demo_data: SimpleNamespace) -> tuple[Index, Index]:
    return build_folder(demo_data.imagenet, "train", "imagenet"), build_folder(demo_data.imagenet, "val", "imagenet")
